// SPDX-License-Identifier: Apache-2.0
// Where each guided path leads: the nearest usable codes of the target class in a bank.
#pragma once

#include <cstdint>

#include "search/flip_search.h"

namespace cae::cuda {

// NumPy sums more than 128 numbers in halves, each as fewer are: in another order than here.
constexpr int32_t kMaxNearestDim = 128;

/// Device pointers. An image needs a path if its source class is known and not the target class.
struct NearestParams {
  int32_t images = 0;                         // N
  int32_t rows = 0;                           // of the bank
  int32_t code_dim = 0;                       // D, 1 .. kMaxNearestDim
  int32_t k = 0;                              // rows to average, at least 1
  const float* bank_codes = nullptr;          // [rows][D], finite
  const int32_t* bank_class = nullptr;        // [rows] class, negative where a row is not usable
  const float* codes = nullptr;               // [N][D] class codes of the images, finite
  const search::FlipState* states = nullptr;  // [N] source and target classes
  int32_t* nearest = nullptr;  // [N][k] rows, nearest first, the lower of equally near ones; -1
                               // where the image needs no path or too few rows are usable
  double reach = 1.0;          // where the path ends: 1 at the mean of these rows, 2 as far again
  float* ends = nullptr;       // [N][D] there; the image's own code where the rows are -1
  int32_t* missing = nullptr;  // [N] rows that the target class has too few, for who needs them
  void* workspace = nullptr;   // nearest_workspace_bytes
  bool overlap = false;        // LaunchOptions, of both kernels
};

size_t nearest_workspace_bytes(int32_t images, int32_t rows, int32_t k);

/// The same rows and ends as CodeBank.nearest, exemplars.average and GuidedPaths.vertices give from
/// float32 codes, bit for bit: differences, squares and sums are doubles, a sum goes in NumPy's
/// order, eight partial sums and then the rest (from 8 dimensions on; fewer one by one), a mean is
/// the sum of its rows in order over k, rounded to float; what lies beyond it is a double's sum of
/// two products, rounded again. Launches on `stream`, a cudaStream_t; returns at once for no
/// images. Throws std::invalid_argument if sizes are out of range, std::runtime_error if a launch
/// is refused.
void nearest_codes(const NearestParams& params, void* stream);

}  // namespace cae::cuda
