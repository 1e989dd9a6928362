// SPDX-License-Identifier: Apache-2.0
// Flip search along a guided path, for one image. The one source for the CPU, CUDA kernels and the
// tests: plain C++17 on pointers and small structs, nothing allocated.
//
// Points of the path are the integer steps 0 .. grid (grid a power of two; t = step / grid
// exactly), so every implementation decodes the same points and no two candidates can be confused.
//
// Predicate: a point hits when its top class (highest logit; the lowest index wins ties) is the
// target class with softmax probability >= min_probability. For the target kAnyTarget it hits when
// its top class is another than the source class, with that probability.
//
// The coarse scan looks at coarse + 1 evenly spaced steps, 0 and grid among them, coarse_batch of
// them per round in ascending order, until one hits. The first that hits makes the bracket
// (step before it, it]. What a round asked for behind the first hit has no influence, so the
// outcome does not depend on coarse_batch: only `evaluations` does.
//
// Inside the bracket, two methods. Both end with a point that hits at hi and one that does not at
// lo = hi - 1, whatever the classifier says along the path. On a path that hits from some step on,
// hi is exactly that step, so they agree; on other paths each finds a boundary inside the first
// coarse bracket, perhaps another one.
//
// kBisection: each round looks at the 2^levels - 1 inner points of the next `levels` bisection
// levels at once and then walks that tree as plain bisection would, so the outcome does not depend
// on `depth`. A point that plain bisection would not visit has no influence, not even if its logits
// are NaN.
//
// kMargin: one inner point per round, where the margins of lo and hi put the flip; see
// margin_offset for the bound on its evaluations.
#pragma once

#include <cmath>
#include <cstdint>

#include "search/logit_row.h"

namespace cae::search {

constexpr int32_t kAnyTarget = -1;
constexpr int32_t kMaxDepth = 4;
constexpr int32_t kMaxCoarse = 4096;  // more is no search: a path is looked at point by point
constexpr int32_t kWholeScan = kMaxCoarse + 1;  // coarse_batch: the coarse scan in one round
// Evaluations that kMargin may spend inside a bracket beyond those of bisection. With 0 every point
// is forced to the middle; see docs/method.md for what 1 gains.
constexpr int32_t kMarginSlack = 1;
// In double, a softmax probability with higher log odds is exactly 1.
constexpr double kCertainLogOdds = 37.0;
// Log probabilities this close are equal: what is left is the order of summation and the rounding
// of exp, which differs between machines.
constexpr double kRankTolerance = 1e-12;

/// The values are part of the Python interface.
enum class FlipStatus : int32_t {
  kSearching = -1,
  kFlipped = 0,              // hits at hi, not at lo = hi - 1
  kNotFlipped = 1,           // no coarse point hits; the best one is reported
  kAlreadyTarget = 2,        // source class == target class: nothing to look for
  kReconstructionFlips = 3,  // step 0, the reconstruction, hits already
  kNonFinite = 4,            // a point that was needed had NaN or Inf logits
};

/// How the inner points of a bracket are chosen.
enum class FlipMethod : int32_t { kBisection = 0, kMargin = 1 };

/// What all images of a search share.
struct FlipRules {
  int32_t num_classes;     // >= 1
  int32_t grid;            // power of two
  int32_t coarse;          // intervals of the coarse scan; power of two, <= grid and kMaxCoarse
  int32_t depth;           // bisection levels per round, 1 .. kMaxDepth; 1 for kMargin
  double min_probability;  // in [0, 1]
  int32_t coarse_batch = kWholeScan;  // points of the coarse scan per round, >= 1
  FlipMethod method = FlipMethod::kBisection;
};

/// Search of one image.
struct FlipState {
  int32_t source_class;
  int32_t target_class;   // or kAnyTarget
  int32_t lo;             // bracket; kUndefined before there is one
  int32_t hi;             //
  int32_t reported_step;  // point reported so far, kUndefined without one
  int32_t reached_class;  // top class there
  int32_t evaluations;    // points asked for and answered; before a bracket, the next coarse point
  FlipStatus status;
  int32_t allowance = 0;   // kMargin: evaluations that the bracket may still take
  double record = 0.0;     // log probability at reported_step while nothing has hit
  double margin_lo = 0.0;  // kMargin: hit_margin at lo (scanning: at the last point), <= 0
  double margin_hi = 0.0;  // kMargin: hit_margin at hi, >= 0
};

/// What the search needs to know of one classified point.
struct PointVerdict {
  int32_t top_class;  // kUndefined if a logit is NaN or Inf
  bool hits;
  double log_probability;  // of the target (kAnyTarget: minus that of the source); coarse scan only
  double margin;           // hit_margin; kMargin only
};

/// Starts the search of one image. `source_class` is the top class of the image itself (kUndefined
/// if its logits are not finite), classes are in [-1, num_classes).
CAE_HD inline FlipState start_search(int32_t source_class, int32_t target_class) {
  FlipState state{source_class, target_class, kUndefined, kUndefined,
                  kUndefined,   kUndefined,   0,          FlipStatus::kSearching};
  if (source_class == kUndefined) {
    state.status = FlipStatus::kNonFinite;
  } else if (source_class == target_class) {
    state.status = FlipStatus::kAlreadyTarget;
    state.reached_class = source_class;  // the image itself is what is reported
  }
  return state;
}

CAE_HD inline bool has_bracket(const FlipState& state) { return state.hi != kUndefined; }

/// Bisection levels of the next round: `depth`, or the fewer that the bracket still has.
CAE_HD inline int32_t round_levels(const FlipRules& rules, const FlipState& state) {
  int32_t levels = 0;
  while (levels < rules.depth && ((state.hi - state.lo) >> (levels + 1)) > 0) {
    ++levels;
  }
  return levels;
}

/// Number of points to classify for this image in the next round; 0 when it is done.
CAE_HD inline int32_t num_points(const FlipRules& rules, const FlipState& state) {
  if (state.status != FlipStatus::kSearching) {
    return 0;
  }
  if (!has_bracket(state)) {
    const int32_t left = rules.coarse + 1 - state.evaluations;
    return left < rules.coarse_batch ? left : rules.coarse_batch;
  }
  return (1 << round_levels(rules, state)) - 1;
}

/// Distance from lo, in (0, width), of the inner point that kMargin looks at next.
///
/// The rule is that of ITP (Oliveira and Takahashi, ACM TOMS 47(1), 2020, doi:10.1145/3423597) on
/// integers: where the straight line through both margins crosses zero, moved towards the middle,
/// then projected onto the points that keep bisection's bound. Their truncation constant k1 is 0
/// here: rounding to the step on the middle's side is all that is moved, as more cost evaluations
/// on balance. That rounding is what makes the last confirmation cheap: the point beyond a
/// flip that was estimated to a step is evaluated next, and the bracket collapses.
///
/// Bound: width <= 2^allowance holds in every round. It does at first, where the width is 2^b and
/// the allowance b + kMarginSlack. If it holds for a width of at least 2, half = 2^(allowance - 1)
/// is at least width / 2, so offsets in [width - half, half] exist, among them one in (0, width);
/// either part of the bracket is at most `half` wide, and the allowance falls by one. So after at
/// most b + kMarginSlack evaluations the width is 1, whatever the margins were; bisection takes b.
CAE_HD inline int32_t margin_offset(const FlipState& state) {
  const int32_t width = state.hi - state.lo;
  const int32_t half = 1 << (state.allowance - 1);
  // Margins are finite, <= 0 at lo and >= 0 at hi; where both are 0 they say nothing.
  const double rise = state.margin_hi - state.margin_lo;
  const double middle = 0.5 * width;
  const double crossing = rise > 0.0 ? width * (-state.margin_lo / rise) : middle;
  auto offset =
      static_cast<int32_t>(crossing < middle ? std::ceil(crossing) : std::floor(crossing));
  const int32_t lowest = width - half > 1 ? width - half : 1;
  offset = offset < lowest ? lowest : offset;
  return offset > width - lowest ? width - lowest : offset;
}

/// Step of point `slot` of the next round; steps ascend with the slot.
CAE_HD inline int32_t point_step(const FlipRules& rules, const FlipState& state, int32_t slot) {
  if (!has_bracket(state)) {
    return (state.evaluations + slot) * (rules.grid / rules.coarse);
  }
  if (rules.method == FlipMethod::kMargin) {
    return state.lo + margin_offset(state);
  }
  // Widths are powers of two not below 2^levels, so this divides evenly.
  return state.lo + (slot + 1) * ((state.hi - state.lo) >> round_levels(rules, state));
}

/// How far a point is from the edge of the predicate, in logits: >= 0 where it hits, <= 0 where it
/// does not, finite. The lead of the class that is to win over the best other one; with a threshold
/// no more than what the log odds of its probability are above those of min_probability.
template <class Row>
CAE_HD inline double hit_margin(const FlipRules& rules, const FlipState& state, const Row& row,
                                bool hits) {
  if (rules.num_classes == 1) {
    return 0.0;
  }
  const bool any = state.target_class == kAnyTarget;
  const int32_t ranked = any ? state.source_class : state.target_class;
  const int32_t rival = row.best_other(ranked);
  const int32_t winner = any ? rival : ranked;
  const int32_t loser = any ? ranked : rival;
  double margin = row.at(winner) - row.at(loser);
  const double threshold = rules.min_probability;
  if (threshold > 0.0) {
    const double wanted =
        threshold < 1.0 ? std::log(threshold / (1.0 - threshold)) : kCertainLogOdds;
    const double surplus = log_odds(row, winner) - wanted;
    margin = surplus < margin ? surplus : margin;
  }
  // The predicate decides; rounding, and ties that go to the lower index, do not.
  return (margin > 0.0) == hits ? margin : 0.0;
}

/// Judges one point from its `rules.num_classes` logits.
template <class Row>
CAE_HD inline PointVerdict judge_row(const FlipRules& rules, const FlipState& state,
                                     const Row& row) {
  const int32_t top = row.top();
  PointVerdict verdict{top, false, 0.0, 0.0};
  if (top == kUndefined) {
    return verdict;
  }
  const bool any = state.target_class == kAnyTarget;
  verdict.hits = any ? top != state.source_class : top == state.target_class;
  const bool scanning = !has_bracket(state);
  if (scanning || (verdict.hits && rules.min_probability > 0.0)) {
    // Relative to the top, so that nothing overflows and a saturated softmax still orders points.
    // The probability of the top is 1 / (1 + others).
    const double others = row.sum_exp_except(top, row.at(top));
    verdict.hits = verdict.hits && 1.0 / (1.0 + others) >= rules.min_probability;
    const int32_t ranked = any ? state.source_class : state.target_class;
    const double log_probability = row.at(ranked) - row.at(top) - std::log1p(others);
    verdict.log_probability = any ? -log_probability : log_probability;
  }
  if (rules.method == FlipMethod::kMargin) {
    verdict.margin = hit_margin(rules, state, row, verdict.hits);
  }
  return verdict;
}

CAE_HD inline PointVerdict judge_point(const FlipRules& rules, const FlipState& state,
                                       const float* logits) {
  return judge_row(rules, state, LogitRow{logits, rules.num_classes});
}

CAE_HD inline void report_point(FlipState& state, int32_t step, int32_t reached_class) {
  state.reported_step = step;
  state.reached_class = reached_class;
}

CAE_HD inline void end_non_finite(FlipState& state) {
  state.status = FlipStatus::kNonFinite;
  state.lo = state.hi = kUndefined;
  report_point(state, kUndefined, kUndefined);
}

/// Makes the bracket that ends at a coarse point other than the first.
CAE_HD inline void begin_bracket(const FlipRules& rules, FlipState& state, int32_t hi,
                                 double margin) {
  const int32_t stride = rules.grid / rules.coarse;
  state.lo = hi - stride;
  state.hi = hi;
  state.margin_hi = margin;
  state.allowance = kMarginSlack;
  while ((1 << (state.allowance - kMarginSlack)) < stride) {
    ++state.allowance;
  }
  if (stride == 1) {
    state.status = FlipStatus::kFlipped;
  }
}

/// Takes the verdicts of a round of the coarse scan. Returns the slot whose point is now the one
/// reported, kUndefined if none is.
template <class Verdicts>
CAE_HD inline int32_t advance_coarse(const FlipRules& rules, FlipState& state,
                                     const Verdicts& verdicts) {
  const int32_t count = num_points(rules, state);
  int32_t best = kUndefined;
  for (int32_t slot = 0; slot < count; ++slot) {
    const PointVerdict verdict = verdicts[slot];
    const int32_t step = point_step(rules, state, slot);
    if (verdict.top_class == kUndefined) {
      end_non_finite(state);
      return kUndefined;
    }
    if (verdict.hits) {
      report_point(state, step, verdict.top_class);
      if (step == 0) {
        state.status = FlipStatus::kReconstructionFlips;
      } else {
        begin_bracket(rules, state, step, verdict.margin);
      }
      return slot;
    }
    state.margin_lo = verdict.margin;
    const double least = state.record + kRankTolerance * std::fabs(state.record);
    if (step == 0 || verdict.log_probability > least) {
      state.record = verdict.log_probability;
      report_point(state, step, verdict.top_class);
      best = slot;
    }
  }
  if (state.evaluations + count > rules.coarse) {
    state.status = FlipStatus::kNotFlipped;
  }
  return best;
}

/// Takes the verdicts of a later round. Returns the slot that is the new hi, kUndefined if none.
template <class Verdicts>
CAE_HD inline int32_t advance_bracket(const FlipRules& rules, FlipState& state,
                                      const Verdicts& verdicts) {
  const FlipState before = state;
  int32_t kept = kUndefined;
  int32_t left = -1;  // slots between which the boundary lies; -1 and num_points are lo and hi
  int32_t right = num_points(rules, before);
  while (right - left > 1) {
    const int32_t slot = left + (right - left) / 2;
    const PointVerdict verdict = verdicts[slot];
    if (verdict.top_class == kUndefined) {
      end_non_finite(state);
      return kUndefined;
    }
    const int32_t step = point_step(rules, before, slot);
    if (verdict.hits) {
      right = kept = slot;
      state.hi = step;
      state.margin_hi = verdict.margin;
      report_point(state, step, verdict.top_class);
    } else {
      left = slot;
      state.lo = step;
      state.margin_lo = verdict.margin;
    }
  }
  --state.allowance;
  if (state.hi - state.lo == 1) {
    state.status = FlipStatus::kFlipped;
  }
  return kept;
}

/// Takes the verdicts of the round's num_points points, in slot order: a pointer, or anything whose
/// [slot] is a PointVerdict judged by the state before the call. Returns the slot whose point is
/// now the one reported for this image (its decoded image must be kept), kUndefined if none is.
template <class Verdicts>
CAE_HD inline int32_t advance_search(const FlipRules& rules, FlipState& state,
                                     const Verdicts& verdicts) {
  if (state.status != FlipStatus::kSearching) {
    return kUndefined;
  }
  const int32_t points = num_points(rules, state);
  const int32_t kept = has_bracket(state) ? advance_bracket(rules, state, verdicts)
                                          : advance_coarse(rules, state, verdicts);
  state.evaluations += points;
  return kept;
}

}  // namespace cae::search
