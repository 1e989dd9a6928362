// SPDX-License-Identifier: Apache-2.0
// Fully connected layer: out[m, o] = [relu](sum over i of in[m, i] * weight[o, i] + bias[o]).
#pragma once

#include <vector>

#include "ops/conv2d.h"

namespace cae {

struct LinearPlan {
  int64_t in_features = 0;
  int64_t out_features = 0;
  ConvPhase phase;  // packed weights
  std::vector<float> bias;
};

/// weight [O, I], bias [O]. Throws std::invalid_argument if the shapes disagree.
LinearPlan plan_linear(const TensorView<const float>& weight, const TensorView<const float>& bias);

/// in [rows, I], out [rows, O]; a row's result does not depend on the other rows.
void linear(const LinearPlan& plan, const float* in, int64_t rows, bool relu, float* out);

namespace cpu {
void linear(const LinearPlan& plan, const float* in, int64_t rows, bool relu, float* out);
}  // namespace cpu

}  // namespace cae
