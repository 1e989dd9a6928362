// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

namespace cae {

LinearPlan plan_linear(const TensorView<const float>& weight, const TensorView<const float>& bias) {
  check_shape(weight.shape, "weight", {"O", "I"});
  check_shape(bias.shape, "bias", {weight.dim(0)});
  LinearPlan plan;
  plan.out_features = weight.dim(0);
  plan.in_features = weight.dim(1);
  plan.phase.segments = 1;
  plan.phase.segment_length = plan.in_features;
  plan.bias.assign(bias.data, bias.data + plan.out_features);
  cpu::pack_panels(weight.data, plan.out_features, plan.phase);
  return plan;
}

void linear(const LinearPlan& plan, const float* in, int64_t rows, bool relu, float* out) {
  cpu::linear(plan, in, rows, relu, out);
}

}  // namespace cae
