// SPDX-License-Identifier: Apache-2.0
// A task is one image.
#include <algorithm>
#include <cmath>

#include "cpu/parallel_cpu.h"
#include "ops/difference_saliency.h"

namespace cae::cpu {
namespace {

void one_image(const float* a, const float* b, int64_t channels, int64_t pixels, float* difference,
               float* saliency) {
  std::fill_n(saliency, pixels, 0.0f);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t i = c * pixels + p;
      difference[i] = a[i] - b[i];
      saliency[p] += std::abs(difference[i]);
    }
  }
  float largest = 0.0f;
  bool finite = true;
  for (int64_t p = 0; p < pixels; ++p) {
    largest = std::max(largest, saliency[p]);
    finite = finite && std::isfinite(saliency[p]);
  }
  if (largest == 0.0f || !finite) {
    std::fill_n(saliency, pixels, 0.0f);
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    saliency[p] /= largest;
  }
}

}  // namespace

void difference_saliency(const float* a, const float* b, int64_t images, int64_t channels,
                         int64_t pixels, float* difference, float* saliency) {
  parallel_for(images, [&](int64_t n) {
    const int64_t image = n * channels * pixels;
    one_image(a + image, b + image, channels, pixels, difference + image, saliency + n * pixels);
  });
}

}  // namespace cae::cpu
