// SPDX-License-Identifier: Apache-2.0
// What a search can need at most, known before it begins: a GPU reserves memory for that, and may
// launch every round without asking whether one is left.
#pragma once

#include <cstdint>

#include "search/flip_search.h"

namespace cae::search {

struct FlipPlan {
  int32_t slots;   // points of one image in one round
  int32_t rounds;  // that one image can take
  int32_t points;  // of one image over all rounds
};

/// Bisection levels of a bracket of the scan.
inline int32_t bracket_levels(const FlipRules& rules) {
  int32_t levels = 0;
  while ((rules.coarse << levels) < rules.grid) {
    ++levels;
  }
  return levels;
}

/// The rules must be valid, see flip_search_host.h.
inline FlipPlan plan_flips(const FlipRules& rules) {
  const int32_t scan = rules.coarse + 1;
  const int32_t batch = rules.coarse_batch < scan ? rules.coarse_batch : scan;
  FlipPlan plan{batch, (scan + batch - 1) / batch, scan};
  const int32_t levels = bracket_levels(rules);
  if (levels == 0) {
    return plan;  // a bracket of the scan is the result
  }
  const bool margin = rules.method == FlipMethod::kMargin;
  int32_t left = margin ? levels + kMarginSlack : levels;
  while (left > 0) {
    const int32_t taken = margin ? 1 : (left < rules.depth ? left : rules.depth);
    const int32_t points = (1 << taken) - 1;
    plan.slots = points > plan.slots ? points : plan.slots;
    plan.points += points;
    ++plan.rounds;
    left -= taken;
  }
  return plan;
}

/// Points that one image can need in round `round`. Where one round scans, all images go on in
/// step: those that are still searched have brackets of the same size.
inline int32_t round_slots(const FlipRules& rules, int32_t round) {
  if (rules.coarse_batch <= rules.coarse) {
    return plan_flips(rules).slots;
  }
  if (round == 0) {
    return rules.coarse + 1;
  }
  const int32_t left = bracket_levels(rules) - (round - 1) * rules.depth;
  if (rules.method == FlipMethod::kMargin || left <= 1) {
    return 1;
  }
  return (1 << (left < rules.depth ? left : rules.depth)) - 1;
}

}  // namespace cae::search
