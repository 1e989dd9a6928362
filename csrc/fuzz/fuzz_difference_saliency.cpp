// SPDX-License-Identifier: Apache-2.0
// difference_saliency: shapes that fit and shapes that do not, any pixels.
#include <cmath>

#include "fuzz_input.h"
#include "ops/difference_saliency.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using cae::fuzz::Bytes;
  Bytes bytes(data, size);
  std::vector<int64_t> shape;
  for (int i = 0; i < 4; ++i) {
    shape.push_back(bytes.small(0, 4));
  }
  std::vector<int64_t> other = shape;
  if (bytes.byte() % 8 == 7) {
    other[static_cast<size_t>(bytes.byte() % 4)] = bytes.size();
  }
  const int64_t numel = shape[0] * shape[1] * shape[2] * shape[3];
  const int64_t pixels = shape[2] * shape[3];
  const std::vector<float> a = bytes.numbers(numel);
  const std::vector<float> b = bytes.numbers(numel);
  std::vector<float> difference(static_cast<size_t>(numel), -7.0F);
  std::vector<float> saliency(static_cast<size_t>(shape[0] * pixels), -7.0F);
  const bool done = cae::fuzz::accepts([&] {
    cae::difference_saliency({a.data(), shape}, {b.data(), other}, {difference.data(), shape},
                             {saliency.data(), {shape[0], shape[2], shape[3]}});
  });
  CAE_FUZZ_CHECK(done == (shape == other));
  if (!done) {
    return 0;
  }
  for (int64_t n = 0; n < shape[0]; ++n) {
    float largest = 0.0F;
    for (int64_t p = 0; p < pixels; ++p) {
      const float value = saliency[static_cast<size_t>(n * pixels + p)];
      CAE_FUZZ_CHECK(value >= 0.0F && value <= 1.0F);  // never NaN
      largest = std::fmax(largest, value);
    }
    CAE_FUZZ_CHECK(largest == 0.0F || largest == 1.0F);
  }
  for (size_t i = 0; i < difference.size(); ++i) {
    const float expected = a[i] - b[i];
    CAE_FUZZ_CHECK(difference[i] == expected || std::isnan(expected));
  }
  return 0;
}
