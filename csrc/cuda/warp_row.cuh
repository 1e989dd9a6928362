// SPDX-License-Identifier: Apache-2.0
// The logits of one point as a warp reads them for the flip search: a search::LogitRow with the
// same results, bit for bit. Every lane calls every member with the same arguments.
#pragma once

#include <cmath>

#include "search/flip_search.h"
#include "simt/simt.h"

namespace cae::cuda {

static_assert(search::kSumLanes == 32, "a partial sum is a lane's");

struct WarpRow {
  const float* logits;
  int32_t count;
  int32_t lane;

  KFN_MEMBER double at(int32_t i) const { return dev::load(logits + i); }

  KFN_MEMBER int32_t top() const {
    int32_t bad = 0;
    for (int32_t i = lane; i < count; i += 32) {
      const float value = dev::load(logits + i);
      bad |= value - value == 0.0F ? 0 : 1;
    }
    UNROLL for (int m = 16; m > 0; m >>= 1) { bad |= dev::shfl_xor(bad, m); }
    return bad != 0 ? search::kUndefined : highest([](int32_t) { return true; });
  }

  KFN_MEMBER int32_t best_other(int32_t index) const {
    return highest([=](int32_t i) { return i != index; });
  }

  KFN_MEMBER double sum_exp_except(int32_t except, double reference) const {
    double sum = 0.0;
    for (int32_t i = lane; i < count; i += 32) {
      if (i != except) {
        sum += std::exp(at(i) - reference);
      }
    }
    UNROLL for (int m = 16; m > 0; m >>= 1) { sum += dev::shfl_xor(sum, m); }
    return sum;
  }

  /// Class of the highest logit among those that are `wanted`, the lowest on ties; kUndefined if
  /// none is. All logits are finite.
  template <class Wanted>
  KFN_MEMBER int32_t highest(const Wanted& wanted) const {
    int32_t best = search::kUndefined;
    float best_value = 0.0F;
    for (int32_t i = lane; i < count; i += 32) {
      const float value = dev::load(logits + i);
      if (wanted(i) && (best == search::kUndefined || value > best_value)) {
        best = i;
        best_value = value;
      }
    }
    UNROLL for (int m = 16; m > 0; m >>= 1) {
      const int32_t other = dev::shfl_xor(best, m);
      const float value = dev::shfl_xor(best_value, m);
      const bool better =
          best == search::kUndefined || value > best_value || (value == best_value && other < best);
      if (other != search::kUndefined && better) {
        best = other;
        best_value = value;
      }
    }
    return best;
  }
};

}  // namespace cae::cuda
