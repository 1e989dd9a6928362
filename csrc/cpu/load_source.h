// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/kernel_table.h"
#include "ops/conv_source.h"

namespace cae::cpu {

/// Values of `pixels` consecutive pixels of a source, from float `offset` of its image on.
inline void load_source(const KernelTable& table, const ConvSource& source, int64_t offset,
                        int64_t pixels, int64_t channels, float* out) {
  AffineArgs args;
  args.in = source.in + offset;
  args.scale = source.scale;
  args.shift = source.shift;
  args.residual = source.residual == nullptr ? nullptr : source.residual + offset;
  args.out = out;
  args.pixels = pixels;
  args.channels = channels;
  args.relu = source.relu;
  table.affine(args);
}

}  // namespace cae::cpu
