// SPDX-License-Identifier: Apache-2.0
// Random guided paths for the tests of the flip search: logits as a function of the step, drawn
// anew from (seed, step) each time, so host and device see the same path without storing it.
#pragma once

#include <cmath>
#include <cstdint>

#include "search/flip_search.h"

namespace cae::testing {

enum class PathKind : int32_t {
  kMonotone,  // source up to a random step, the target from there on
  kThreeWay,  // source, then a third class, then the target
  kRandom,    // any class anywhere, ties included
  kRare,      // the target in one step of eight
  kNeverFlips,
  kPoisoned,   // kRandom with NaN and Inf at one step of sixteen
  kLevel,      // as kRandom, every lead the same
  kSaturated,  // as kRandom, leads near the ends of float
  kSmooth,     // the lead of the target climbs as a sigmoid does, perhaps with noise
  kCount,
};

/// A well-mixed 64-bit hash (the finalizer of SplitMix64, Steele et al. 2014).
CAE_HD inline uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15ULL;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

struct RandomPath {
  uint64_t seed;
  PathKind kind;
  int32_t num_classes;
  int32_t grid;
  int32_t source;
  int32_t target;  // the class that flips; a real one also where kAnyTarget is searched

  CAE_HD uint64_t draw(int32_t step, int32_t salt) const {
    return mix(mix(seed + static_cast<uint64_t>(salt)) + static_cast<uint64_t>(step));
  }

  /// Step at which the monotone kinds change, in [0, grid + 1].
  CAE_HD int32_t change(int32_t which) const {
    const int32_t first = static_cast<int32_t>(draw(-1, 1) % static_cast<uint64_t>(grid + 2));
    const int32_t second = static_cast<int32_t>(draw(-1, 2) % static_cast<uint64_t>(grid + 2));
    return (which == 0) == (first < second) ? first : second;
  }

  CAE_HD int32_t favoured(int32_t step) const {
    const auto classes = static_cast<uint64_t>(num_classes);
    switch (kind) {
      case PathKind::kMonotone:
        return step >= change(0) ? target : source;
      case PathKind::kThreeWay:
        if (step >= change(1)) {
          return target;
        }
        return step >= change(0) ? static_cast<int32_t>(draw(-1, 3) % classes) : source;
      case PathKind::kRare:
        return draw(step, 4) % 8 == 0 ? target : source;
      case PathKind::kNeverFlips:
        return source;
      default:
        return static_cast<int32_t>(draw(step, 5) % classes);
    }
  }

  /// Lead of the target over the source: a sigmoid of steepness 5 .. 160 over the path between two
  /// plateaus, one path of four with noise. All operations are exact or correctly rounded, and no
  /// product that is added to something is inexact, so host and device agree.
  CAE_HD double smooth_lead(int32_t step) const {
    const double centre = static_cast<double>(draw(-1, 10) % 1024) / 1024;
    const double steepness = static_cast<double>(5 << (draw(-1, 11) % 6));
    const double x = steepness * (static_cast<double>(step) / grid - centre);
    const double shift = static_cast<double>(draw(-1, 12) % 9) - 4.0;
    const double noise = static_cast<double>(draw(step, 13) % 16) / 64 - 0.125;
    return 8.0 * (x / std::sqrt(1.0 + x * x)) + shift + (draw(-1, 14) % 4 == 0 ? noise : 0.0);
  }

  /// Fills logits [num_classes] of a step: multiples of 1/4, so that ties happen; the favoured
  /// class is on top, or in the random kinds perhaps tied with another.
  CAE_HD void logits(int32_t step, float* out) const {
    const int32_t top = favoured(step);
    if (kind == PathKind::kSmooth || kind == PathKind::kLevel || kind == PathKind::kSaturated) {
      const float low = kind == PathKind::kSaturated ? -1e30F : 0.0F;
      for (int32_t i = 0; i < num_classes; ++i) {
        out[i] = low;
      }
      if (kind == PathKind::kSmooth) {
        out[source] = 0.5F;
        out[target] = 0.5F + static_cast<float>(smooth_lead(step));
      } else {
        out[top] = kind == PathKind::kLevel ? 1.0F : draw(step, 10) % 2 == 0 ? 1e30F : 3e38F;
      }
      return;
    }
    const bool random = kind == PathKind::kRandom || kind == PathKind::kPoisoned;
    for (int32_t i = 0; i < num_classes; ++i) {
      out[i] = static_cast<float>(draw(step, 16 + i) % 9) * 0.25F;
    }
    out[top] = random ? 2.0F : 2.25F + static_cast<float>(draw(step, 6) % 9) * 0.25F;
    if (kind == PathKind::kPoisoned && draw(step, 7) % 16 == 0) {
      const uint64_t which = draw(step, 8) % 3;
      const float value = which == 0 ? NAN : which == 1 ? INFINITY : -INFINITY;
      out[draw(step, 9) % static_cast<uint64_t>(num_classes)] = value;
    }
  }
};

/// A random search over a random path.
struct RandomCase {
  RandomPath path;
  int32_t source_class;
  int32_t target_class;
  search::FlipRules rules;
};

/// Case `index`: classes 2 .. 5, grid 1 .. 2^8, coarse 1 .. grid, depth as given.
CAE_HD inline RandomCase random_case(uint64_t index, int32_t depth) {
  const uint64_t seed = mix(index);
  const int32_t classes = 2 + static_cast<int32_t>(mix(seed + 1) % 4);
  const int32_t grid_bits = static_cast<int32_t>(mix(seed + 2) % 9);
  const int32_t coarse_bits =
      static_cast<int32_t>(mix(seed + 3) % static_cast<uint64_t>(grid_bits + 1));
  const int32_t source = static_cast<int32_t>(mix(seed + 4) % static_cast<uint64_t>(classes));
  const int32_t away = 1 + static_cast<int32_t>(mix(seed + 5) % static_cast<uint64_t>(classes - 1));
  const int32_t target = (source + away) % classes;
  const auto kind = static_cast<PathKind>(mix(seed + 6) % static_cast<uint64_t>(PathKind::kCount));
  const uint64_t threshold = mix(seed + 7) % 4;
  const double min_probability = threshold == 0 ? 0.35 : threshold == 1 ? 0.6 : 0.0;
  const bool any = mix(seed + 8) % 4 == 0;
  return {{seed, kind, classes, 1 << grid_bits, source, target},
          source,
          any ? search::kAnyTarget : target,
          {classes, 1 << grid_bits, 1 << coarse_bits, depth, min_probability}};
}

}  // namespace cae::testing
