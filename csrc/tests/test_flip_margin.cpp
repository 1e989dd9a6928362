// SPDX-License-Identifier: Apache-2.0
// The flip search of method kMargin: its guarantees on random paths, against every answer that an
// adversary can give, and what it saves on smooth ones.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check_test.h"
#include "flip_brute_force.h"
#include "random_path.h"
#include "search/flip_search_host.h"

namespace {

using cae::search::FlipMethod;
using cae::search::FlipRules;
using cae::search::FlipSearch;
using cae::search::FlipState;
using cae::search::FlipStatus;
using cae::search::kAnyTarget;
using cae::search::kMarginSlack;
using cae::search::kWholeScan;
using cae::search::PointVerdict;
using cae::testing::BruteForce;
using cae::testing::PathKind;
using cae::testing::random_case;
using cae::testing::RandomCase;
using cae::testing::run;
using cae::testing::same_outcome;

constexpr double kHuge = 1e39;

int32_t log2_of(int32_t power) {
  int32_t bits = 0;
  while ((1 << bits) < power) {
    ++bits;
  }
  return bits;
}

/// True if all points of a bracket are finite and hit from some step on.
bool hits_from_some_step(const BruteForce& brute, int32_t lo, int32_t hi) {
  bool hit = false;
  for (int32_t step = lo; step <= hi; ++step) {
    if (!brute.finite(step) || (hit && !brute.hits(step))) {
      return false;
    }
    hit = hit || brute.hits(step);
  }
  return true;
}

bool any_not_finite(const BruteForce& brute, int32_t lo, int32_t hi) {
  for (int32_t step = lo; step <= hi; ++step) {
    if (!brute.finite(step)) {
      return true;
    }
  }
  return false;
}

/// What must hold of a search that had a bracket (lo, hi] after the coarse scan.
void check_bracketed(const BruteForce& brute, const FlipState& state, int32_t lo, int32_t hi) {
  if (state.status == FlipStatus::kNonFinite) {
    CAE_TEST_CHECK(any_not_finite(brute, lo, hi));
    return;
  }
  CAE_TEST_CHECK(state.status == FlipStatus::kFlipped);
  CAE_TEST_CHECK(lo <= state.lo && state.hi <= hi && state.lo == state.hi - 1);
  CAE_TEST_CHECK(state.reported_step == state.hi);
  CAE_TEST_CHECK(brute.finite(state.hi) && brute.hits(state.hi));
  CAE_TEST_CHECK(brute.finite(state.lo) && !brute.hits(state.lo));
  CAE_TEST_CHECK(state.reached_class == brute.top(state.hi));
}

/// Random paths of all kinds: the coarse part is bisection's; the rest is a boundary, found within
/// the allowance, the same in every way to scan, and bisection's where there is only one.
void test_random_paths() {
  constexpr uint64_t kCases = 40000;
  int64_t bracketed = 0;
  int64_t monotone = 0;
  for (uint64_t index = 0; index < kCases; ++index) {
    RandomCase test = random_case(index, 1);
    const BruteForce brute{test};
    const FlipState expected = brute.search();
    const int32_t needed = brute.coarse_points();
    const int32_t hi = (needed - 1) * brute.stride();
    const int32_t lo = hi - brute.stride();
    const bool has_bracket = hi > 0 && brute.finite(hi) && brute.hits(hi);
    test.rules.method = FlipMethod::kMargin;
    test.rules.coarse_batch = 1;
    const FlipState state = run({test}).front();
    const int32_t inside = state.evaluations - needed;
    CAE_TEST_CHECK(inside >= 0 && inside <= log2_of(brute.stride()) + kMarginSlack);
    if (!has_bracket) {
      CAE_TEST_CHECK(same_outcome(state, expected) && inside == 0);
    } else {
      ++bracketed;
      check_bracketed(brute, state, lo, hi);
      if (hits_from_some_step(brute, lo, hi)) {
        ++monotone;
        CAE_TEST_CHECK(same_outcome(state, expected));
      }
    }
    for (const int32_t batch : {2, 3, test.rules.coarse, test.rules.coarse + 1, kWholeScan}) {
      test.rules.coarse_batch = batch;
      const FlipState other = run({test}).front();
      const int32_t rounds = (needed + batch - 1) / batch;
      const int32_t scanned = std::min(rounds * batch, test.rules.coarse + 1);
      CAE_TEST_CHECK(same_outcome(other, state));
      CAE_TEST_CHECK(other.evaluations == scanned + inside);
    }
  }
  CAE_TEST_CHECK(bracketed > 10000 && monotone > 3000);
}

/// Plays every game against the search: at each point it asks for, either answer with each margin.
struct Adversary {
  FlipRules rules;
  std::vector<double> sizes;
  int32_t most = 0;
  int64_t games = 0;

  void play(const FlipState& state, int32_t spent) {
    if (state.status != FlipStatus::kSearching) {
      ++games;
      most = std::max(most, spent);
      CAE_TEST_CHECK(state.status == FlipStatus::kFlipped && state.hi == state.lo + 1);
      return;
    }
    if (spent > log2_of(rules.grid) + kMarginSlack) {
      CAE_TEST_CHECK(!"more evaluations than allowed");
      return;
    }
    if (cae::search::has_bracket(state)) {
      CAE_TEST_CHECK(cae::search::num_points(rules, state) == 1);
      const int32_t step = cae::search::point_step(rules, state, 0);
      if (!(state.lo < step && step < state.hi)) {
        CAE_TEST_CHECK(!"a point that is not inside");
        return;
      }
    }
    for (const double size : sizes) {
      for (const bool hits : {false, true}) {
        FlipState next = state;
        const PointVerdict verdict{hits ? 1 : 0, hits, 0.0, hits ? size : -size};
        cae::search::advance_search(rules, next, &verdict);
        play(next, spent + 1);
      }
    }
  }

  /// All games inside the one bracket (0, grid].
  void play_all() {
    for (const double at_lo : sizes) {
      for (const double at_hi : sizes) {
        FlipState state = cae::search::start_search(0, 1);
        const PointVerdict ends[2] = {{0, false, 0.0, -at_lo}, {1, true, 0.0, at_hi}};
        cae::search::advance_search(rules, state, ends);
        play(state, 0);
      }
    }
  }
};

void test_adversary() {
  const double tiny = std::numeric_limits<double>::denorm_min();
  const std::vector<double> many{0.0, tiny, 1e-30, 0.25, 1.0, 1e30, kHuge};
  const std::vector<double> few{0.0, 1e-3, 1.0, kHuge};
  const std::vector<double> two{1e-6, 1.0};
  for (int32_t bits = 0; bits <= 6; ++bits) {
    const std::vector<double>& sizes = bits <= 3 ? many : bits == 4 ? few : two;
    Adversary adversary{{2, 1 << bits, 1, 1, 0.0, kWholeScan, FlipMethod::kMargin}, sizes};
    adversary.play_all();
    CAE_TEST_CHECK(adversary.games > 0);
    CAE_TEST_CHECK(adversary.most <= bits + kMarginSlack);
    // The slack is used: otherwise the bound would be stated too high.
    CAE_TEST_CHECK(bits < 2 || adversary.most == bits + kMarginSlack);
  }
}

/// Every width, allowance that covers it, and pair of margins: inside, and no part too wide.
void test_every_offset() {
  const double sizes[] = {0.0, 5e-324, 1e-30, 1e-3, 0.5, 1.0, 3.0, 1e30, kHuge};
  for (int32_t width = 2; width <= 300; ++width) {
    int32_t least = 1;
    while ((1 << least) < width) {
      ++least;
    }
    for (int32_t allowance = least; allowance <= least + 2; ++allowance) {
      for (const double at_lo : sizes) {
        for (const double at_hi : sizes) {
          FlipState state = cae::search::start_search(0, 1);
          state.lo = 7;
          state.hi = 7 + width;
          state.allowance = allowance;
          state.margin_lo = -at_lo;
          state.margin_hi = at_hi;
          const int32_t offset = cae::search::margin_offset(state);
          CAE_TEST_CHECK(0 < offset && offset < width);
          CAE_TEST_CHECK(std::max(offset, width - offset) <= 1 << (allowance - 1));
        }
      }
    }
  }
  // The widest bracket there is.
  FlipState state = cae::search::start_search(0, 1);
  state.lo = 0;
  state.hi = 1 << 30;
  state.allowance = 30 + kMarginSlack;
  state.margin_hi = kHuge;
  CAE_TEST_CHECK(cae::search::margin_offset(state) == 1);
  state.margin_lo = -kHuge;
  CAE_TEST_CHECK(cae::search::margin_offset(state) == 1 << 29);
}

/// The margin agrees with the predicate, and is finite, whatever finite logits come.
void test_margin_of_logits() {
  const float values[] = {-3e38F, -1e30F, -1.0F, 0.0F, 0.5F, 36.9F, 40.0F, 1e30F, 3e38F};
  for (const double threshold : {0.0, 1e-320, 0.35, 0.5, 0.6, 1.0 - 1e-16, 1.0}) {
    for (const int32_t target : {kAnyTarget, 0, 2}) {
      FlipRules rules{3, 4, 4, 1, threshold, kWholeScan, FlipMethod::kMargin};
      const FlipState state = cae::search::start_search(1, target);
      for (const float a : values) {
        for (const float b : values) {
          for (const float c : values) {
            const float logits[3] = {a, b, c};
            const PointVerdict verdict = cae::search::judge_point(rules, state, logits);
            CAE_TEST_CHECK(std::isfinite(verdict.margin));
            CAE_TEST_CHECK(verdict.hits ? verdict.margin >= 0.0 : verdict.margin <= 0.0);
          }
        }
      }
    }
  }
}

/// Margins worked by hand, without and with a threshold.
void test_margins_by_hand() {
  const float logits[3] = {1.0F, 3.0F, 2.0F};
  const auto margin = [&](int32_t source, int32_t target, double threshold) {
    const FlipRules rules{3, 4, 4, 1, threshold, kWholeScan, FlipMethod::kMargin};
    return cae::search::judge_point(rules, cae::search::start_search(source, target), logits)
        .margin;
  };
  const auto odds = [](double other, double another) {
    return -std::log(std::exp(other) + std::exp(another));
  };
  const auto near = [](double a, double b) { return std::fabs(a - b) < 1e-12; };
  CAE_TEST_CHECK(margin(0, 1, 0.0) == 1.0);
  CAE_TEST_CHECK(margin(1, 0, 0.0) == -2.0);
  CAE_TEST_CHECK(margin(0, kAnyTarget, 0.0) == 2.0);
  CAE_TEST_CHECK(margin(1, kAnyTarget, 0.0) == -1.0);
  CAE_TEST_CHECK(near(margin(0, 1, 0.5), odds(-2, -1)));
  CAE_TEST_CHECK(near(margin(0, 1, 0.9), odds(-2, -1) - std::log(9.0)));
  CAE_TEST_CHECK(near(margin(0, kAnyTarget, 0.9), odds(-2, -1) - std::log(9.0)));
  CAE_TEST_CHECK(near(margin(1, kAnyTarget, 0.9), odds(-1, 1) - std::log(9.0)));
  CAE_TEST_CHECK(margin(0, 1, 0.1) == 1.0);  // the lead is what is short
}

/// Grid 64, one bracket, the lead a straight line: two evaluations find and confirm the flip.
void test_straight_line_takes_two() {
  for (int32_t flip = 2; flip < 64; ++flip) {
    FlipSearch search({0}, {1}, {2, 64, 1, 1, 0.0, kWholeScan, FlipMethod::kMargin});
    while (!search.done()) {
      const std::vector<int32_t> steps = search.points().step;
      std::vector<float> logits;
      for (const int32_t step : steps) {
        logits.push_back(0.0F);
        logits.push_back(static_cast<float>(step - flip) + 0.5F);
      }
      search.update(logits.data(), static_cast<int64_t>(steps.size()), 2);
    }
    CAE_TEST_CHECK(search.states().front().hi == flip);
    CAE_TEST_CHECK(search.states().front().evaluations <= 2 + 2);
  }
}

/// On sigmoids, steep and noisy ones among them, a fifth of the bracket's evaluations at least.
void test_saves_on_smooth_paths() {
  int64_t plain = 0;
  int64_t guided = 0;
  for (uint64_t index = 0; index < 60000; ++index) {
    RandomCase test = random_case(index, 1);
    if (test.path.kind != PathKind::kSmooth || test.path.grid != 256) {
      continue;
    }
    test.rules.coarse = 4;
    test.rules.min_probability = 0.0;
    test.target_class = test.path.target;
    test.rules.coarse_batch = 1;
    const FlipState bisected = run({test}).front();
    if (bisected.status != FlipStatus::kFlipped) {
      continue;
    }
    test.rules.method = FlipMethod::kMargin;
    plain += 6;
    guided += run({test}).front().evaluations - (bisected.evaluations - 6);
  }
  CAE_TEST_CHECK(plain > 6 * 300);
  CAE_TEST_CHECK(5 * guided < 4 * plain);
}

}  // namespace

int main() {
  test_every_offset();
  test_margin_of_logits();
  test_margins_by_hand();
  test_straight_line_takes_two();
  test_saves_on_smooth_paths();
  test_adversary();
  test_random_paths();
  return cae::testing::finish("test_flip_margin");
}
