// SPDX-License-Identifier: Apache-2.0
#include "ops/pad_image.h"

namespace cae {

void pad_image(const PaddedShape& shape, const std::vector<PadImage>& images) {
  cpu::pad_image(shape, images);
}

void pad_planes(const PaddedShape& shape, const std::vector<PadPlanes>& images) {
  cpu::pad_planes(shape, images);
}

void source_planes(const PaddedShape& shape, const std::vector<ConvSource>& sources, float* planes,
                   Scratch& scratch) {
  cpu::source_planes(shape, sources, planes, scratch);
}

void relu_mean(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
               float* out) {
  cpu::relu_mean(shape, in, bias, out);
}

}  // namespace cae
