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
// Round 0 looks at coarse + 1 evenly spaced steps, 0 and grid among them. The first that hits makes
// the bracket (step before it, it]. Each later round looks at the 2^levels - 1 inner points of the
// next `levels` bisection levels at once and then walks that tree as plain bisection would, so the
// outcome does not depend on `depth`, whatever the classifier says along the path: it hits at hi
// and does not at lo = hi - 1. On a path that hits from some step on, hi is exactly that step; on
// other paths it is a boundary inside the first coarse bracket. A point that plain bisection would
// not visit has no influence, not even if its logits are NaN.
//
// A method that chooses other inner points (say, by the logit margin) replaces num_points,
// point_step and advance_bisection; states, predicate and outcomes stay.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define CAE_HD __host__ __device__
#else
#define CAE_HD
#endif

namespace cae::search {

constexpr int32_t kAnyTarget = -1;
constexpr int32_t kUndefined = -1;  // a step or class that does not exist
constexpr int32_t kMaxDepth = 4;
constexpr int32_t kMaxCoarse = 4096;  // more is no search: a path is looked at point by point
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

/// What all images of a search share.
struct FlipRules {
  int32_t num_classes;     // >= 1
  int32_t grid;            // power of two
  int32_t coarse;          // intervals of round 0; power of two, <= grid and kMaxCoarse
  int32_t depth;           // bisection levels per round, 1 .. kMaxDepth
  double min_probability;  // in [0, 1]
};

/// Search of one image.
struct FlipState {
  int32_t source_class;
  int32_t target_class;   // or kAnyTarget
  int32_t lo;             // bracket; kUndefined before there is one
  int32_t hi;             //
  int32_t reported_step;  // point reported so far, kUndefined without one
  int32_t reached_class;  // top class there
  int32_t evaluations;    // points asked for and answered
  FlipStatus status;
};

/// What the search needs to know of one classified point.
struct PointVerdict {
  int32_t top_class;  // kUndefined if a logit is NaN or Inf
  bool hits;
  double log_probability;  // of the target (kAnyTarget: minus that of the source)
};

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

/// Sum of exp(logit - top logit) over the classes other than `top`: the probability of `top` is
/// 1 / (1 + this). In double and relative to the top, so that nothing overflows and a saturated
/// softmax still orders points.
CAE_HD inline double sum_exp_others(const float* logits, int32_t count, int32_t top) {
  double sum = 0.0;
  for (int32_t i = 0; i < count; ++i) {
    if (i != top) {
      sum += std::exp(static_cast<double>(logits[i]) - static_cast<double>(logits[top]));
    }
  }
  return sum;
}

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
    return rules.coarse + 1;
  }
  return (1 << round_levels(rules, state)) - 1;
}

/// Step of point `slot` of the next round; steps ascend with the slot.
CAE_HD inline int32_t point_step(const FlipRules& rules, const FlipState& state, int32_t slot) {
  if (!has_bracket(state)) {
    return slot * (rules.grid / rules.coarse);
  }
  // Widths are powers of two not below 2^levels, so this divides evenly.
  return state.lo + (slot + 1) * ((state.hi - state.lo) >> round_levels(rules, state));
}

/// Judges one point from its `rules.num_classes` logits.
CAE_HD inline PointVerdict judge_point(const FlipRules& rules, const FlipState& state,
                                       const float* logits) {
  const int32_t top = top_class(logits, rules.num_classes);
  PointVerdict verdict{top, false, 0.0};
  if (top == kUndefined) {
    return verdict;
  }
  const bool any = state.target_class == kAnyTarget;
  verdict.hits = any ? top != state.source_class : top == state.target_class;
  // The sum is needed for a threshold and, among coarse points, to rank those that do not hit.
  if ((!verdict.hits || rules.min_probability <= 0.0) && has_bracket(state)) {
    return verdict;
  }
  const double others = sum_exp_others(logits, rules.num_classes, top);
  verdict.hits = verdict.hits && 1.0 / (1.0 + others) >= rules.min_probability;
  const int32_t ranked = any ? state.source_class : state.target_class;
  const double log_probability =
      static_cast<double>(logits[ranked]) - static_cast<double>(logits[top]) - std::log1p(others);
  verdict.log_probability = any ? -log_probability : log_probability;
  return verdict;
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

/// Takes the verdicts of round 0. Returns the slot whose point is reported, kUndefined if none.
CAE_HD inline int32_t advance_coarse(const FlipRules& rules, FlipState& state,
                                     const PointVerdict* verdicts) {
  int32_t best = 0;
  for (int32_t slot = 0; slot <= rules.coarse; ++slot) {
    const PointVerdict& verdict = verdicts[slot];
    if (verdict.top_class == kUndefined) {
      end_non_finite(state);
      return kUndefined;
    }
    if (verdict.hits) {
      const int32_t step = point_step(rules, state, slot);
      report_point(state, step, verdict.top_class);
      if (slot == 0) {
        state.status = FlipStatus::kReconstructionFlips;
      } else {
        state.lo = point_step(rules, state, slot - 1);
        state.hi = step;
        if (state.hi - state.lo == 1) {
          state.status = FlipStatus::kFlipped;
        }
      }
      return slot;
    }
    const double record = verdicts[best].log_probability;
    if (verdict.log_probability > record + kRankTolerance * std::fabs(record)) {
      best = slot;
    }
  }
  state.status = FlipStatus::kNotFlipped;
  report_point(state, point_step(rules, state, best), verdicts[best].top_class);
  return best;
}

/// Takes the verdicts of a later round. Returns the slot that is the new hi, kUndefined if none.
CAE_HD inline int32_t advance_bisection(const FlipRules& rules, FlipState& state,
                                        const PointVerdict* verdicts) {
  const FlipState before = state;
  int32_t kept = kUndefined;
  int32_t left = -1;  // slots between which the boundary lies; -1 and num_points are lo and hi
  int32_t right = num_points(rules, before);
  while (right - left > 1) {
    const int32_t slot = left + (right - left) / 2;
    const PointVerdict& verdict = verdicts[slot];
    if (verdict.top_class == kUndefined) {
      end_non_finite(state);
      return kUndefined;
    }
    const int32_t step = point_step(rules, before, slot);
    if (verdict.hits) {
      right = kept = slot;
      state.hi = step;
      report_point(state, step, verdict.top_class);
    } else {
      left = slot;
      state.lo = step;
    }
  }
  if (state.hi - state.lo == 1) {
    state.status = FlipStatus::kFlipped;
  }
  return kept;
}

/// Takes the verdicts of the round's num_points points, in slot order. Returns the slot whose point
/// is now the one reported for this image (its decoded image must be kept), kUndefined if none is.
CAE_HD inline int32_t advance_search(const FlipRules& rules, FlipState& state,
                                     const PointVerdict* verdicts) {
  if (state.status != FlipStatus::kSearching) {
    return kUndefined;
  }
  state.evaluations += num_points(rules, state);
  return has_bracket(state) ? advance_bisection(rules, state, verdicts)
                            : advance_coarse(rules, state, verdicts);
}

}  // namespace cae::search
