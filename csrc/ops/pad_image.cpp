// SPDX-License-Identifier: Apache-2.0
#include "ops/pad_image.h"

namespace cae {

void pad_image(const PaddedShape& shape, const std::vector<PadImage>& images) {
  cpu::pad_image(shape, images);
}

void pad_planes(const PaddedShape& shape, const std::vector<PadPlanes>& images) {
  cpu::pad_planes(shape, images);
}

void unpad_planes(const PaddedShape& shape, const std::vector<const float*>& in, float* planes) {
  cpu::unpad_planes(shape, in, planes);
}

void tanh_planes(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
                 float* planes) {
  cpu::tanh_planes(shape, in, bias, planes);
}

void relu_mean(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
               float* out) {
  cpu::relu_mean(shape, in, bias, out);
}

}  // namespace cae
