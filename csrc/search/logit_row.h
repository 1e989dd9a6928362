// SPDX-License-Identifier: Apache-2.0
// What the flip search reads of the logits of one point.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace cae::search {

constexpr int32_t kUndefined = -1;  // a step or class that does not exist
constexpr int32_t kSumLanes = 32;   // partial sums of probabilities: the lanes of a warp

/// Index of the highest of `count` logits, the lowest index on ties; kUndefined if any is NaN/Inf.
CAE_HD inline int32_t top_class(const float* logits, int32_t count) {
  int32_t top = 0;
  for (int32_t i = 0; i < count; ++i) {
    const float value = logits[i];
    if (!(value - value == 0.0F)) {
      return kUndefined;
    }
    if (value > logits[top]) {
      top = i;
    }
  }
  return top;
}

/// Class of the highest logit among those other than `index`, the lowest on ties. count >= 2.
CAE_HD inline int32_t best_other(const float* logits, int32_t count, int32_t index) {
  int32_t best = index == 0 ? 1 : 0;
  for (int32_t i = best + 1; i < count; ++i) {
    if (i != index && logits[i] > logits[best]) {
      best = i;
    }
  }
  return best;
}

/// Sum of exp(logit - reference) over the classes other than `except`: class i belongs to partial
/// sum i % kSumLanes, and these are added pairwise, from half to half. The order is that of a warp,
/// whose sum is the same bit for bit.
CAE_HD inline double sum_exp_except(const float* logits, int32_t count, int32_t except,
                                    double reference) {
  double partial[kSumLanes] = {};
  for (int32_t i = 0; i < count; ++i) {
    if (i != except) {
      partial[i % kSumLanes] += std::exp(static_cast<double>(logits[i]) - reference);
    }
  }
  for (int32_t half = kSumLanes / 2; half > 0; half /= 2) {
    for (int32_t i = 0; i < half; ++i) {
      partial[i] += partial[i + half];
    }
  }
  return partial[0];
}

/// The logits of one point, read by one thread. What judges a point takes any type with these
/// members; a warp has its own, with the same results.
struct LogitRow {
  const float* logits;
  int32_t count;

  CAE_HD double at(int32_t i) const { return logits[i]; }
  CAE_HD int32_t top() const { return top_class(logits, count); }
  CAE_HD int32_t best_other(int32_t index) const {
    return search::best_other(logits, count, index);
  }
  CAE_HD double sum_exp_except(int32_t except, double reference) const {
    return search::sum_exp_except(logits, count, except, reference);
  }
};

/// log(p / (1 - p)) of the softmax probability p of a class; finite. Two classes at least.
template <class Row>
CAE_HD inline double log_odds(const Row& row, int32_t index) {
  const double rival = row.at(row.best_other(index));
  const double sum = row.sum_exp_except(index, rival);  // at least 1, the rival's own
  return row.at(index) - rival - std::log(sum);
}

}  // namespace cae::search
