// SPDX-License-Identifier: Apache-2.0
// lerp_codes and path_codes: shapes that fit and shapes that do not, any values, indices and steps.
#include <algorithm>
#include <cmath>

#include "fuzz_input.h"
#include "ops/lerp_codes.h"
#include "ops/path_codes.h"

namespace {

using cae::TensorView;
using cae::fuzz::Bytes;

constexpr int64_t kMost = 6;  // of each dimension

/// [a, b, ...], some with a dimension too many, too few or of another size: any size only where
/// that is refused.
std::vector<int64_t> shape_like(Bytes& bytes, std::vector<int64_t> shape, bool any_size = true) {
  switch (bytes.byte()) {
    case 1:
      shape.push_back(bytes.small(0, kMost));
      break;
    case 2:
      shape.pop_back();
      break;
    case 3:
      shape[static_cast<size_t>(bytes.byte()) % shape.size()] =
          any_size ? bytes.size() : bytes.small(0, kMost);
      break;
    default:
      break;
  }
  return shape;
}

/// Elements that a view of this shape may read; a shape that is refused may lie about them.
int64_t stored(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    count *= std::clamp<int64_t>(size, 0, kMost);
  }
  return count;
}

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

void fuzz_lerp(Bytes& bytes) {
  const int64_t count = bytes.small(0, kMost);
  const int64_t code_dim = bytes.small(0, kMost);
  const auto start_shape = shape_like(bytes, {count, code_dim});
  const auto end_shape = shape_like(bytes, {count, code_dim});
  const auto t_shape = shape_like(bytes, {count});
  const std::vector<float> start = bytes.numbers(stored(start_shape));
  const std::vector<float> end = bytes.numbers(stored(end_shape));
  std::vector<float> t = bytes.numbers(stored(t_shape));
  if (!t.empty()) {
    t[0] = 0.0F;
  }
  std::vector<float> out(static_cast<size_t>(count * code_dim), 0.0F);
  const bool done = cae::fuzz::accepts([&] {
    cae::lerp_codes({start.data(), start_shape}, {end.data(), end_shape}, {t.data(), t_shape},
                    {out.data(), {count, code_dim}});
  });
  const std::vector<int64_t> wanted{count, code_dim};
  CAE_FUZZ_CHECK(done == (start_shape == wanted && end_shape == wanted &&
                          t_shape == std::vector<int64_t>{count}));
  if (done && count > 0 && all_finite(end)) {
    for (size_t d = 0; d < static_cast<size_t>(code_dim); ++d) {
      CAE_FUZZ_CHECK(!std::isfinite(start[d]) || out[d] == start[d]);
    }
  }
}

void fuzz_path(Bytes& bytes) {
  const int64_t images = bytes.small(0, kMost);
  const int64_t vertex_count = bytes.small(0, kMost);
  const int64_t code_dim = bytes.small(0, kMost);
  const int64_t count = bytes.small(0, kMost);
  const int64_t grid = bytes.byte() % 8 == 7 ? bytes.raw<int64_t>() : bytes.small(0, 32);
  const auto vertices_shape = shape_like(bytes, {images, vertex_count, code_dim}, false);
  const auto index_shape = shape_like(bytes, {count});
  const auto step_shape = shape_like(bytes, {count});
  const std::vector<float> vertices = bytes.numbers(stored(vertices_shape));
  std::vector<int32_t> index;
  std::vector<int32_t> step;
  for (int64_t m = 0; m < std::max(count, kMost); ++m) {
    const bool wild = bytes.byte() % 16 == 15;
    index.push_back(wild ? bytes.raw<int32_t>() : static_cast<int32_t>(bytes.small(0, 5)));
    step.push_back(wild ? bytes.raw<int32_t>() : static_cast<int32_t>(bytes.small(0, 32)));
  }
  std::vector<float> out(static_cast<size_t>(count * code_dim), 0.0F);
  const bool done = cae::fuzz::accepts([&] {
    cae::path_codes({vertices.data(), vertices_shape}, {index.data(), index_shape},
                    {step.data(), step_shape}, grid, {out.data(), {count, code_dim}});
  });
  if (!done) {
    return;
  }
  CAE_FUZZ_CHECK(grid >= 1 && vertices_shape.size() == 3 && vertices_shape[1] >= 1);
  for (int64_t m = 0; m < count; ++m) {
    const auto row = static_cast<size_t>(m);
    CAE_FUZZ_CHECK(index[row] >= 0 && index[row] < vertices_shape[0]);
    CAE_FUZZ_CHECK(step[row] >= 0 && step[row] <= grid);
    for (int64_t d = 0; step[row] == 0 && d < code_dim; ++d) {
      const float first =
          vertices[static_cast<size_t>(index[row] * vertices_shape[1] * code_dim + d)];
      const float value = out[static_cast<size_t>(m * code_dim + d)];
      CAE_FUZZ_CHECK(value == first || std::isnan(first));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  if (bytes.byte() % 2 == 0) {
    fuzz_lerp(bytes);
  } else {
    fuzz_path(bytes);
  }
  return 0;
}
