// SPDX-License-Identifier: Apache-2.0
// What a warp computes once its lanes have met.
#pragma once

#include "emu/emulator.h"

namespace cae::emu {

/// mma m16n8k16, operands half, sums float: from `in` (a0..a3, b0, b1) into `sums`. Products are
/// exact and added to the sum by rising k; the order in a GPU is not documented.
void multiply_matrices(WarpRegisters& r);
/// The same without the instructions that multiply_matrices() may use; bit for bit the same.
void multiply_portable(WarpRegisters& r);

/// ldmatrix x4: lane 8 m + i gives in[0], the address of row i of matrix m; out[m] is its fragment.
void load_matrices(Block& block, WarpRegisters& r);

}  // namespace cae::emu
