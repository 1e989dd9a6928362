// SPDX-License-Identifier: Apache-2.0
// The choice of exemplars on the emulated GPU against a sort.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/nearest_cuda.h"
#include "device_values.h"
#include "tests/check_test.h"

namespace {

using cae::cuda::NearestParams;
using cae::search::FlipState;
using cae::search::kAnyTarget;
using cae::testing::DeviceArray;

/// A sum as NumPy makes it of up to 128 values.
double numpy_sum(const std::vector<double>& values) {
  const size_t eights = values.size() / 8 * 8;
  double sum = 0.0;
  if (eights > 0) {
    std::vector<double> r(values.begin(), values.begin() + 8);
    for (size_t i = 8; i < eights; ++i) {
      r[i % 8] += values[i];
    }
    sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  }
  return std::accumulate(values.begin() + static_cast<int64_t>(eights), values.end(), sum);
}

struct Problem {
  int32_t rows, dim, k;
  std::vector<float> bank, codes;
  std::vector<int32_t> bank_class;
  std::vector<FlipState> states;

  int32_t images() const { return static_cast<int32_t>(states.size()); }

  Problem(int32_t row_count, int32_t dimensions, int32_t chosen, bool ties, unsigned seed)
      : rows(row_count), dim(dimensions), k(chosen) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    // With ties: few different codes, so that many rows are equally near.
    const auto draw = [&] {
      return ties ? static_cast<float>(random() % 2) * 0.1F : normal(random);
    };
    for (int32_t i = 0; i < rows * dim; ++i) {
      bank.push_back(draw());
    }
    for (int32_t i = 0; i < rows; ++i) {
      bank_class.push_back(static_cast<int32_t>(random() % 5) - 1);  // -1: not usable
    }
    const int32_t wishes[][2] = {{0, 1}, {1, kAnyTarget}, {-1, 2}, {2, 2}, {3, 0}, {0, 4}};
    for (const auto& [source, target] : wishes) {
      states.push_back(cae::search::start_search(source, target));
      for (int32_t j = 0; j < dim; ++j) {
        codes.push_back(draw());
      }
    }
  }

  /// All usable rows of an image, nearest first.
  std::vector<int32_t> sorted(int32_t image) const {
    const FlipState& state = states[image];
    std::vector<double> distance(static_cast<size_t>(rows));
    std::vector<int32_t> usable;
    for (int32_t row = 0; row < rows; ++row) {
      const int32_t label = bank_class[row];
      if (label < 0 || (state.target_class == kAnyTarget ? label == state.source_class
                                                         : label != state.target_class)) {
        continue;
      }
      std::vector<double> squares;
      for (int32_t j = 0; j < dim; ++j) {
        const double d = static_cast<double>(bank[row * dim + j]) - codes[image * dim + j];
        squares.push_back(d * d);
      }
      distance[row] = numpy_sum(squares);
      usable.push_back(row);
    }
    std::sort(usable.begin(), usable.end(), [&](int32_t a, int32_t b) {
      return distance[a] < distance[b] || (distance[a] == distance[b] && a < b);
    });
    return usable;
  }
};

void test_choice(const Problem& p, double reach = 1.0) {
  const auto n = static_cast<size_t>(p.images());
  const DeviceArray<float> bank(p.bank), codes(p.codes), ends(p.codes.size(), -9.0F);
  const DeviceArray<int32_t> bank_class(p.bank_class), missing(n, -9),
      nearest(n * static_cast<size_t>(p.k), -9);
  const DeviceArray<FlipState> states(p.states);
  const cae::gpu::DeviceBuffer workspace(
      0, cae::cuda::nearest_workspace_bytes(p.images(), p.rows, p.k));
  NearestParams params;
  params.overlap = true;  // the emulator is strictest then
  params.images = p.images();
  params.rows = p.rows;
  params.code_dim = p.dim;
  params.k = p.k;
  params.reach = reach;
  params.bank_codes = bank.data();
  params.bank_class = bank_class.data();
  params.codes = codes.data();
  params.states = states.data();
  params.nearest = nearest.data();
  params.ends = ends.data();
  params.missing = missing.data();
  params.workspace = workspace.data();
  cae::cuda::nearest_codes(params, nullptr);
  const std::vector<int32_t> chosen = nearest.values();
  const std::vector<float> end = ends.values();
  for (int32_t i = 0; i < p.images(); ++i) {
    const FlipState& state = p.states[i];
    const bool needed = state.source_class >= 0 && state.source_class != state.target_class;
    std::vector<int32_t> expected = needed ? p.sorted(i) : std::vector<int32_t>();
    const auto found = std::min(static_cast<int32_t>(expected.size()), p.k);
    CAE_TEST_CHECK(missing.values()[i] == (needed ? p.k - found : 0));
    expected.resize(static_cast<size_t>(p.k), -1);
    if (found < p.k) {
      std::fill(expected.begin(), expected.end(), -1);
    }
    CAE_TEST_CHECK(std::equal(expected.begin(), expected.end(), chosen.begin() + i * p.k));
    for (int32_t j = 0; j < p.dim; ++j) {
      double sum = 0.0;
      for (int32_t row : expected) {
        sum += row < 0 ? 0.0 : p.bank[row * p.dim + j];
      }
      const float own = p.codes[i * p.dim + j];
      const auto mean = static_cast<float>(sum / p.k);
      const double beyond = (1.0 - reach) * own + reach * mean;
      CAE_TEST_CHECK(end[i * p.dim + j] == (found < p.k ? own : static_cast<float>(beyond)));
    }
  }
}

void test_errors() {
  NearestParams params;
  cae::cuda::nearest_codes(params, nullptr);  // no images: nothing happens
  params.images = params.k = 1;
  const auto launch = [&] { cae::cuda::nearest_codes(params, nullptr); };
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  params.code_dim = 129;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  params.code_dim = 8;
  params.k = 0;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  params.k = 1;
  params.reach = 0.5;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
}

}  // namespace

int main() {
  for (const bool ties : {false, true}) {
    test_choice(Problem(5000, 8, 1, ties, 1));
    test_choice(Problem(4100, 8, 5, ties, 2));
    test_choice(Problem(300, 3, 2, ties, 3));
    test_choice(Problem(300, 20, 70, ties, 4));  // more than some classes have
    test_choice(Problem(100, 64, 3, ties, 5));
    test_choice(Problem(2048, 1, 1, ties, 6));
    test_choice(Problem(0, 8, 1, ties, 7));
    test_choice(Problem(3, 8, 4, ties, 8));
  }
  test_choice(Problem(2100, 2, 2100, true, 9));
  for (const double reach : {1.5, 1.3}) {
    test_choice(Problem(4100, 8, 5, false, 10), reach);
    test_choice(Problem(300, 20, 70, true, 11), reach);
  }
  test_errors();
  return cae::testing::finish("test_nearest_emu");
}
