// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace cae {

/// kFast: Winograd's filtering where it saves work. kExact: direct sums only.
enum class Arithmetic { kFast, kExact };

}  // namespace cae
