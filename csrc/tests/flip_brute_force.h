// SPDX-License-Identifier: Apache-2.0
// A flip search written from the definitions, one point at a time, and a driver of the real one,
// for the tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check_test.h"
#include "random_path.h"
#include "search/flip_search_host.h"

namespace cae::testing {

using search::FlipRules;
using search::FlipSearch;
using search::FlipState;
using search::FlipStatus;
using search::kAnyTarget;
using search::kUndefined;

/// Written from the definitions, without the code under test.
struct BruteForce {
  const RandomCase& test;

  int32_t stride() const { return test.rules.grid / test.rules.coarse; }

  std::vector<float> logits(int32_t step) const {
    std::vector<float> out(static_cast<size_t>(test.rules.num_classes));
    test.path.logits(step, out.data());
    return out;
  }

  bool finite(int32_t step) const {
    const std::vector<float> values = logits(step);
    return std::all_of(values.begin(), values.end(),
                       [](float value) { return std::isfinite(value); });
  }

  long double log_probability(int32_t step, int32_t index) const {
    const std::vector<float> values = logits(step);
    const auto winner = static_cast<size_t>(top(step));
    long double others = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i != winner) {
        others += std::exp(static_cast<long double>(values[i]) - values[winner]);
      }
    }
    return static_cast<long double>(values[static_cast<size_t>(index)]) - values[winner] -
           std::log1p(others);
  }

  int32_t top(int32_t step) const {
    const std::vector<float> values = logits(step);
    return static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
  }

  bool hits(int32_t step) const {
    const int32_t winner = top(step);
    const bool wanted =
        test.target_class == kAnyTarget ? winner != test.source_class : winner == test.target_class;
    return wanted && std::exp(log_probability(step, winner)) >= test.rules.min_probability;
  }

  /// What makes the better point where none hits.
  long double rank(int32_t step) const {
    return test.target_class == kAnyTarget ? -log_probability(step, test.source_class)
                                           : log_probability(step, test.target_class);
  }

  /// Coarse points up to the first that hits or is not finite, that one included.
  int32_t coarse_points() const {
    int32_t count = 1;
    for (int32_t step = 0; step < test.rules.grid && finite(step) && !hits(step);
         step += stride()) {
      ++count;
    }
    return count;
  }

  /// Plain bisection, one point at a time. `evaluations` counts the points that it needs.
  FlipState search() const {
    FlipState out{test.source_class, test.target_class, kUndefined, kUndefined,
                  kUndefined,        kUndefined,        0,          FlipStatus::kNotFlipped};
    int32_t lo = -1;
    int32_t hi = -1;
    for (int32_t step = 0; step <= test.rules.grid && hi < 0; step += stride()) {
      ++out.evaluations;
      if (!finite(step)) {
        return with_status(out, FlipStatus::kNonFinite);
      }
      if (hits(step)) {
        hi = step;
        lo = step - stride();
      }
    }
    if (hi < 0) {
      int32_t best = 0;
      for (int32_t step = stride(); step <= test.rules.grid; step += stride()) {
        if (rank(step) > rank(best) + 1e-12L * std::fabs(rank(best))) {
          best = step;
        }
      }
      return reporting(out, best);
    }
    if (hi == 0) {
      return reporting(with_status(out, FlipStatus::kReconstructionFlips), 0);
    }
    while (hi - lo > 1) {
      const int32_t middle = (lo + hi) / 2;
      ++out.evaluations;
      if (!finite(middle)) {
        return with_status(out, FlipStatus::kNonFinite);
      }
      (hits(middle) ? hi : lo) = middle;
    }
    out.lo = lo;
    out.hi = hi;
    return reporting(with_status(out, FlipStatus::kFlipped), hi);
  }

  static FlipState with_status(FlipState state, FlipStatus status) {
    state.status = status;
    return state;
  }

  FlipState reporting(FlipState state, int32_t step) const {
    state.reported_step = step;
    state.reached_class = top(step);
    return state;
  }
};

inline bool same_outcome(const FlipState& a, const FlipState& b) {
  return a.status == b.status && a.lo == b.lo && a.hi == b.hi &&
         a.reported_step == b.reported_step && a.reached_class == b.reached_class;
}

/// Runs searches that share their rules; checks the bookkeeping on the way.
inline std::vector<FlipState> run(const std::vector<RandomCase>& cases) {
  std::vector<int32_t> source;
  std::vector<int32_t> target;
  for (const RandomCase& test : cases) {
    source.push_back(test.source_class);
    target.push_back(test.target_class);
  }
  const FlipRules rules = cases.front().rules;
  FlipSearch running(source, target, rules);
  const auto classes = static_cast<size_t>(rules.num_classes);
  std::vector<int32_t> kept_step(cases.size(), kUndefined);
  std::vector<int32_t> asked(cases.size(), 0);
  std::vector<float> logits;
  while (!running.done()) {
    const search::PathPoints points = running.points();
    logits.resize(points.step.size() * classes);
    for (size_t i = 0; i < points.step.size(); ++i) {
      const auto image = static_cast<size_t>(points.image_index[i]);
      CAE_TEST_CHECK(running.states()[image].status == FlipStatus::kSearching);
      CAE_TEST_CHECK(points.step[i] >= 0 && points.step[i] <= rules.grid);
      cases[image].path.logits(points.step[i], logits.data() + i * classes);
      ++asked[image];
      const FlipState& state = running.states()[image];
      CAE_TEST_CHECK(state.hi == kUndefined ||
                     (state.lo < points.step[i] && points.step[i] < state.hi));
    }
    const std::vector<uint8_t> keep =
        running.update(logits.data(), static_cast<int64_t>(points.step.size()), rules.num_classes);
    std::vector<int32_t> kept_now(cases.size(), 0);
    for (size_t i = 0; i < keep.size(); ++i) {
      if (keep[i] == 0) {
        continue;
      }
      const auto image = static_cast<size_t>(points.image_index[i]);
      kept_step[image] = points.step[i];
      CAE_TEST_CHECK(++kept_now[image] == 1);
    }
    CAE_TEST_CHECK(running.rounds() <= rules.coarse + 1 + 30 + search::kMarginSlack);
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    const FlipState& state = running.states()[i];
    CAE_TEST_CHECK(state.evaluations == asked[i]);
    if (state.status != FlipStatus::kNonFinite) {
      CAE_TEST_CHECK(state.reported_step == kept_step[i]);
    }
  }
  return running.states();
}

}  // namespace cae::testing
