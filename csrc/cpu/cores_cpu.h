// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace cae::cpu {

/// Cores that this process may keep busy: its affinity mask, cut to the CPU quota of its control
/// groups (rounded up), at least 1.
int usable_cores();

}  // namespace cae::cpu
