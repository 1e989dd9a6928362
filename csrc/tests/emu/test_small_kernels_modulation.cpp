// SPDX-License-Identifier: Apache-2.0
// Path points and linear layers in the emulator: points bit for bit as the CPU makes them, layers
// against plain sums in double.
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cuda/modulation_cuda.h"
#include "ops/path_codes.h"
#include "tests/check_test.h"
#include "tests/emu/small_case.h"

namespace {

using cae::cuda::LinearParams;
using cae::cuda::PathCodesParams;
using cae::test::DeviceArray;
using cae::test::Random;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

uint32_t bits_of(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

/// All steps of a grid on two paths; `vertices` [2, V, D].
void check_paths(const std::vector<float>& vertices, int vertex_count, int code_dim, int grid) {
  std::vector<int32_t> image_index;
  std::vector<int32_t> step;
  for (int i = 0; i <= grid; ++i) {
    image_index.push_back(i % 3 == 0 ? 0 : 1);
    step.push_back((i * 7) % (grid + 1));
  }
  const int rows = grid + 1;
  std::vector<int32_t> active(rows, 1);
  active[rows / 2] = 0;
  const DeviceArray<float> device_vertices(vertices);
  const DeviceArray<int32_t> device_index(image_index);
  const DeviceArray<int32_t> device_step(step);
  const DeviceArray<int32_t> device_active(active);
  const DeviceArray<float> codes(static_cast<size_t>(rows) * code_dim);
  PathCodesParams params;
  params.overlap = true;  // the emulator is strictest then
  params.rows = rows;
  params.vertex_count = vertex_count;
  params.code_dim = code_dim;
  params.grid = grid;
  params.vertices = device_vertices.data();
  params.image_index = device_index.data();
  params.step = device_step.data();
  params.active = device_active.data();
  params.codes = codes.data();
  cae::cuda::path_codes(params, nullptr);
  const std::vector<float> got = codes.read();
  std::vector<float> want(got.size());
  cae::cpu::path_codes(vertices.data(), vertex_count, code_dim, image_index.data(), step.data(),
                       rows, grid, want.data());
  for (size_t i = 0; i < got.size(); ++i) {
    const bool is_off = static_cast<int>(i) / code_dim == rows / 2;
    CAE_TEST_CHECK(bits_of(got[i]) == (is_off ? 0xffffffffU : bits_of(want[i])));
  }
}

void test_path_codes() {
  Random random(5);
  for (const int vertex_count : {1, 2, 3, 5, 300}) {
    for (const int code_dim : {1, 8, 130}) {
      std::vector<float> vertices =
          random.normals(static_cast<size_t>(2) * vertex_count * code_dim);
      check_paths(vertices, vertex_count, code_dim, 16);
      // Vertices that coincide, in one path all of them.
      for (int i = 0; i < vertex_count * code_dim; ++i) {
        vertices[i] = vertices[i % code_dim];
      }
      for (int d = 0; vertex_count > 2 && d < code_dim; ++d) {
        vertices[(vertex_count + 2) * code_dim + d] = vertices[(vertex_count + 1) * code_dim + d];
      }
      check_paths(vertices, vertex_count, code_dim, 7);
      vertices[code_dim * vertex_count] = kNan;
      check_paths(vertices, vertex_count, code_dim, 4);
    }
  }
}

/// Without indices and steps: the whole grids of two paths.
void test_whole_grid() {
  Random random(6);
  constexpr int kCodeDim = 5;
  constexpr int kGrid = 8;
  const std::vector<float> paths = random.normals(2 * 3 * kCodeDim);
  constexpr int kRows = 2 * (kGrid + 1);
  std::vector<int32_t> image_index;
  std::vector<int32_t> step;
  for (int i = 0; i < kRows; ++i) {
    image_index.push_back(i < kRows / 2 ? 0 : 1);
    step.push_back(i % (kRows / 2));
  }
  const DeviceArray<float> vertices(paths);
  const DeviceArray<float> codes(static_cast<size_t>(kRows) * kCodeDim);
  PathCodesParams params;
  params.rows = kRows;
  params.vertex_count = 3;
  params.code_dim = kCodeDim;
  params.grid = kGrid;
  params.vertices = vertices.data();
  params.codes = codes.data();
  cae::cuda::path_codes(params, nullptr);
  std::vector<float> want(static_cast<size_t>(kRows) * kCodeDim);
  cae::cpu::path_codes(paths.data(), 3, kCodeDim, image_index.data(), step.data(), kRows, kGrid,
                       want.data());
  CAE_TEST_CHECK(codes.read() == want);
}

struct LinearCase {
  int in, out;
  bool relu;
};

void test_linear(const LinearCase& c) {
  constexpr int kRows = 35;
  const int x_stride = c.in + 3;
  Random random(static_cast<unsigned>(c.in * 7 + c.out));
  std::vector<float> x = random.normals(static_cast<size_t>(kRows) * x_stride);
  std::vector<float> weight = random.normals(static_cast<size_t>(c.in) * c.out);
  const std::vector<float> bias = random.normals(c.out);
  x[static_cast<size_t>(2) * x_stride] = kNan;
  const DeviceArray<float> device_x(x);
  const DeviceArray<float> device_weight(weight);
  const DeviceArray<float> device_bias(bias);
  LinearParams params;
  params.overlap = true;  // the emulator is strictest then
  params.in = c.in;
  params.out = c.out;
  params.relu = c.relu ? 1 : 0;
  params.x = device_x.data();
  params.x_stride = x_stride;
  params.weight = device_weight.data();
  device_weight.seal();
  params.bias = c.out > 4 ? device_bias.data() : nullptr;
  std::vector<float> first;
  for (const int rows : {kRows, 1, 3, 5, 17}) {
    const DeviceArray<float> y(static_cast<size_t>(rows) * c.out);
    params.rows = rows;
    params.y = y.data();
    cae::cuda::linear(params, nullptr);
    const std::vector<float> got = y.read();
    if (rows == kRows) {
      first = got;
    }
    for (size_t i = 0; i < got.size(); ++i) {  // whatever the number of rows
      CAE_TEST_CHECK(std::isnan(first[i]) ? std::isnan(got[i])
                                          : bits_of(got[i]) == bits_of(first[i]));
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int n = 0; n < c.out; ++n) {
      double want = params.bias == nullptr ? 0.0 : bias[n];
      double size = 1.0;
      for (int k = 0; k < c.in; ++k) {
        const double term = static_cast<double>(x[static_cast<size_t>(row) * x_stride + k]) *
                            weight[static_cast<size_t>(k) * c.out + n];
        want += term;
        size += std::fabs(term);
      }
      const float value = first[static_cast<size_t>(row) * c.out + n];
      if (row == 2) {
        CAE_TEST_CHECK(std::isnan(value));
      } else {
        CAE_TEST_CHECK(std::fabs(value - (c.relu ? std::fmax(want, 0.0) : want)) <= 1e-6 * size);
      }
    }
  }
}

void test_refusals() {
  LinearParams layer;
  cae::cuda::linear(layer, nullptr);  // no rows: nothing
  PathCodesParams path;
  cae::cuda::path_codes(path, nullptr);
  layer.rows = 1;
  layer.in = 3;
  layer.out = 6;
  CAE_TEST_CHECK(
      cae::testing::throws<std::invalid_argument>([&] { cae::cuda::linear(layer, nullptr); }));
  path.rows = 1;
  path.code_dim = 1;
  path.grid = 1;
  path.vertex_count = cae::cuda::kMaxPathVertices + 1;
  CAE_TEST_CHECK(
      cae::testing::throws<std::invalid_argument>([&] { cae::cuda::path_codes(path, nullptr); }));
}

}  // namespace

int main() {
  test_path_codes();
  test_whole_grid();
  test_linear({1, 4, false});
  test_linear({8, 64, true});
  test_linear({20, 36, false});
  test_linear({256, 40, true});
  test_linear({300, 100, false});
  test_refusals();
  return cae::testing::finish("test_small_kernels_modulation");
}
