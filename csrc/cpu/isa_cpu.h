// SPDX-License-Identifier: Apache-2.0
// Which instruction sets this machine runs, and the one in use.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace cae::cpu {

/// Names of the instruction sets that are built in and that this machine runs, slowest first.
std::vector<std::string> available_isas();

/// Inner loops in use: the last of available_isas(), or the one named by the environment variable
/// CAE_CPU_ISA, read once. Throws std::invalid_argument if that one is unknown or missing here.
const KernelTable& kernels();

}  // namespace cae::cpu
