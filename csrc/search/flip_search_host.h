// SPDX-License-Identifier: Apache-2.0
// The flip searches of a batch of images, stepped together by the host: collect the points of all
// unfinished images, have them decoded and classified in one go, advance, repeat.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "core/check.h"
#include "search/flip_search.h"

namespace cae::search {

inline bool is_power_of_two(int32_t value) { return value > 0 && (value & (value - 1)) == 0; }

/// Throws std::invalid_argument naming the first rule that is out of range.
inline void check_rules(const FlipRules& rules) {
  CAE_CHECK(rules.num_classes >= 1, "num_classes must be at least 1, got ", rules.num_classes);
  CAE_CHECK(is_power_of_two(rules.grid), "grid must be a power of two, got ", rules.grid);
  CAE_CHECK(is_power_of_two(rules.coarse) && rules.coarse <= rules.grid,
            "coarse must be a power of two of at most grid = ", rules.grid, ", got ", rules.coarse);
  CAE_CHECK(rules.coarse <= kMaxCoarse, "coarse must be at most ", kMaxCoarse, ", got ",
            rules.coarse);
  CAE_CHECK(rules.depth >= 1 && rules.depth <= kMaxDepth, "depth must be in [1, ", kMaxDepth,
            "], got ", rules.depth);
  CAE_CHECK(rules.coarse_batch >= 1, "coarse_batch must be at least 1, got ", rules.coarse_batch);
  CAE_CHECK(rules.method == FlipMethod::kBisection || rules.depth == 1,
            "depth must be 1 for the method 'margin', got ", rules.depth);
  CAE_CHECK(rules.min_probability >= 0.0 && rules.min_probability <= 1.0,
            "min_probability must be in [0, 1], got ", rules.min_probability);
}

/// Points to decode and classify: image by image, ascending steps.
struct PathPoints {
  std::vector<int32_t> image_index;  // [M]
  std::vector<int32_t> step;         // [M]
};

class FlipSearch {
 public:
  /// source_class [N] in [-1, K), target_class [N] in [-1, K).
  /// Throws std::invalid_argument if lengths, classes or rules are out of range.
  FlipSearch(const std::vector<int32_t>& source_class, const std::vector<int32_t>& target_class,
             const FlipRules& rules)
      : rules_(rules) {
    check_rules(rules);
    CAE_CHECK(source_class.size() == target_class.size(), "target_class must be [",
              source_class.size(), "] like source_class, got [", target_class.size(), "]");
    states_.reserve(source_class.size());
    for (size_t i = 0; i < source_class.size(); ++i) {
      check_class("source_class", i, source_class[i], rules.num_classes);
      check_class("target_class", i, target_class[i], rules.num_classes);
      states_.push_back(start_search(source_class[i], target_class[i]));
    }
    collect_points();
  }

  bool done() const { return points_.step.empty(); }
  const FlipRules& rules() const { return rules_; }
  const std::vector<FlipState>& states() const { return states_; }
  int32_t rounds() const { return rounds_; }

  /// Points of the next round; only unfinished images have any. The same until update().
  const PathPoints& points() {
    points_taken_ = true;
    return points_;
  }

  /// logits [num_points, K] of points(), C-contiguous. Returns keep [num_points]: 1 where a point
  /// becomes the reported one of its image, at most one per image.
  /// Throws std::invalid_argument on a wrong shape, std::runtime_error when the search is done or
  /// points() was not called since the last update.
  std::vector<uint8_t> update(const float* logits, int64_t num_points, int64_t num_logits) {
    if (done()) {
      throw std::runtime_error("update() of a search that is done");
    }
    if (!points_taken_) {
      throw std::runtime_error("update() again without points() in between");
    }
    const auto wanted = static_cast<int64_t>(points_.step.size());
    CAE_CHECK(num_points == wanted && num_logits == rules_.num_classes, "logits must be [", wanted,
              ", ", rules_.num_classes, "], got [", num_points, ", ", num_logits, "]");
    std::vector<uint8_t> keep(points_.step.size(), 0);
    std::vector<PointVerdict> verdicts;
    size_t first = 0;
    for (FlipState& state : states_) {
      const auto count = static_cast<size_t>(search::num_points(rules_, state));
      if (count == 0) {
        continue;
      }
      verdicts.clear();
      for (size_t slot = 0; slot < count; ++slot) {
        const size_t row = (first + slot) * static_cast<size_t>(rules_.num_classes);
        verdicts.push_back(judge_point(rules_, state, logits + row));
      }
      const int32_t kept = advance_search(rules_, state, verdicts.data());
      if (kept != kUndefined) {
        keep[first + static_cast<size_t>(kept)] = 1;
      }
      first += count;
    }
    ++rounds_;
    points_taken_ = false;
    collect_points();
    return keep;
  }

 private:
  static void check_class(const char* name, size_t index, int32_t value, int32_t num_classes) {
    CAE_CHECK(value >= -1 && value < num_classes, name, "[", index, "] must be in [-1, ",
              num_classes - 1, "], got ", value);
  }

  void collect_points() {
    points_.image_index.clear();
    points_.step.clear();
    for (size_t i = 0; i < states_.size(); ++i) {
      const int32_t count = search::num_points(rules_, states_[i]);
      for (int32_t slot = 0; slot < count; ++slot) {
        points_.image_index.push_back(static_cast<int32_t>(i));
        points_.step.push_back(point_step(rules_, states_[i], slot));
      }
    }
  }

  FlipRules rules_;
  std::vector<FlipState> states_;
  PathPoints points_;
  int32_t rounds_ = 0;
  bool points_taken_ = false;
};

}  // namespace cae::search
