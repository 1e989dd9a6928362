// SPDX-License-Identifier: Apache-2.0
// Property tests of the flip search against a one-point-at-a-time search, on random paths.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check_test.h"
#include "flip_brute_force.h"
#include "random_path.h"
#include "search/flip_search_host.h"

namespace {

using cae::search::FlipRules;
using cae::search::FlipSearch;
using cae::search::FlipState;
using cae::search::FlipStatus;
using cae::search::kAnyTarget;
using cae::search::kMaxDepth;
using cae::search::kUndefined;
using cae::search::kWholeScan;
using cae::testing::BruteForce;
using cae::testing::PathKind;
using cae::testing::random_case;
using cae::testing::RandomCase;
using cae::testing::run;
using cae::testing::same_outcome;

/// Sizes of a round of the coarse scan that are worth trying.
std::vector<int32_t> coarse_batches(int32_t coarse) {
  std::vector<int32_t> sizes{1, 2, 3, coarse, coarse + 1, coarse + 2, kWholeScan};
  if (coarse <= 8) {
    for (int32_t size = 4; size < coarse; ++size) {
      sizes.push_back(size);
    }
  }
  return sizes;
}

/// Points that a coarse scan in rounds of `batch` asks for where `needed` of them are needed.
int32_t scanned(int32_t needed, int32_t batch, int32_t coarse) {
  const int64_t rounded = (static_cast<int64_t>(needed) + batch - 1) / batch * batch;
  return static_cast<int32_t>(std::min<int64_t>(rounded, coarse + 1));
}

/// Each random case alone, at every depth and in every way to scan.
void test_against_brute_force() {
  constexpr uint64_t kCases = 12000;
  int64_t seen[5] = {};
  for (uint64_t index = 0; index < kCases; ++index) {
    RandomCase test = random_case(index, 1);
    const BruteForce brute{test};
    const FlipState expected = brute.search();
    ++seen[static_cast<int>(expected.status)];
    const int32_t needed = brute.coarse_points();
    for (const int32_t batch : coarse_batches(test.rules.coarse)) {
      test.rules.coarse_batch = batch;
      const int32_t plain =
          scanned(needed, batch, test.rules.coarse) + expected.evaluations - needed;
      for (int32_t depth = 1; depth <= kMaxDepth; ++depth) {
        test.rules.depth = depth;
        const FlipState state = run({test}).front();
        CAE_TEST_CHECK(same_outcome(state, expected));
        CAE_TEST_CHECK(depth == 1 ? state.evaluations == plain : state.evaluations >= plain);
      }
    }
    if (test.path.kind == PathKind::kMonotone && test.rules.min_probability == 0.0 &&
        expected.status == FlipStatus::kFlipped) {
      CAE_TEST_CHECK(expected.hi == test.path.change(0));
      CAE_TEST_CHECK(expected.lo == expected.hi - 1);
    }
  }
  // The generator must reach every outcome that has points, or the test shows nothing.
  for (const FlipStatus status : {FlipStatus::kFlipped, FlipStatus::kNotFlipped,
                                  FlipStatus::kReconstructionFlips, FlipStatus::kNonFinite}) {
    CAE_TEST_CHECK(seen[static_cast<int>(status)] > 200);
  }
}

/// Images together, among them ones that have nothing to search, as alone.
void test_batches() {
  for (uint64_t batch = 0; batch < 400; ++batch) {
    const FlipRules rules = random_case(batch, 1 + static_cast<int32_t>(batch % kMaxDepth)).rules;
    std::vector<RandomCase> cases;
    for (uint64_t i = 0; cases.size() < batch % 12 + 1; ++i) {
      RandomCase test = random_case(1000000 + batch * 1000 + i, rules.depth);
      test.path.num_classes = rules.num_classes;
      test.path.grid = rules.grid;
      test.path.source = test.source_class = test.source_class % rules.num_classes;
      test.path.target = (test.source_class + 1) % rules.num_classes;
      if (test.target_class != kAnyTarget) {
        test.target_class = test.path.target;
      }
      if (i % 7 == 5) {
        test.target_class = test.source_class;
      }
      if (i % 11 == 4) {
        test.source_class = kUndefined;
      }
      test.rules = rules;
      test.rules.coarse_batch = 1 + static_cast<int32_t>(batch % 5);
      cases.push_back(test);
    }
    const std::vector<FlipState> together = run(cases);
    for (size_t i = 0; i < cases.size(); ++i) {
      const FlipState alone = run({cases[i]}).front();
      CAE_TEST_CHECK(same_outcome(together[i], alone));
      CAE_TEST_CHECK(together[i].evaluations == alone.evaluations);
      if (cases[i].source_class == kUndefined) {
        CAE_TEST_CHECK(alone.status == FlipStatus::kNonFinite && alone.evaluations == 0);
        CAE_TEST_CHECK(alone.reached_class == kUndefined);
      } else if (cases[i].source_class == cases[i].target_class) {
        CAE_TEST_CHECK(alone.status == FlipStatus::kAlreadyTarget && alone.evaluations == 0);
        CAE_TEST_CHECK(alone.reached_class == cases[i].source_class);
        CAE_TEST_CHECK(alone.reported_step == kUndefined && alone.hi == kUndefined);
      } else {
        CAE_TEST_CHECK(same_outcome(alone, BruteForce{cases[i]}.search()));
      }
    }
  }
}

/// Worked by hand: grid 8, coarse 2, the flip at 3; a NaN where plain bisection does not look.
void test_by_hand() {
  FlipSearch search({0}, {1}, {2, 8, 2, 2, 0.0});
  CAE_TEST_CHECK(search.points().step == (std::vector<int32_t>{0, 4, 8}));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> coarse{1, 0, 0, 1, nan, nan};  // 8 lies behind the first hit
  CAE_TEST_CHECK(search.update(coarse.data(), 3, 2) == (std::vector<uint8_t>{0, 1, 0}));
  CAE_TEST_CHECK(search.points().step == (std::vector<int32_t>{1, 2, 3}));
  const std::vector<float> fine{nan, 0, 2, 2, 0, 1};  // 1 is not needed; the tie at 2 is no hit
  CAE_TEST_CHECK(search.update(fine.data(), 3, 2) == (std::vector<uint8_t>{0, 0, 1}));
  const FlipState& state = search.states().front();
  CAE_TEST_CHECK(search.done() && search.rounds() == 2);
  CAE_TEST_CHECK(state.status == FlipStatus::kFlipped && state.lo == 2 && state.hi == 3);
  CAE_TEST_CHECK(state.reported_step == 3 && state.reached_class == 1 && state.evaluations == 6);
}

/// One coarse point at a time: the best so far is kept, and nothing behind the first hit is asked.
void test_scan_by_hand() {
  FlipSearch search({0}, {1}, {2, 8, 4, 1, 0.0, 1});
  const auto answer = [&](int32_t step, float lead) {
    CAE_TEST_CHECK(search.points().step == std::vector<int32_t>{step});
    const float logits[2] = {0, lead};
    return search.update(logits, 1, 2).front() != 0;
  };
  CAE_TEST_CHECK(answer(0, -3));
  CAE_TEST_CHECK(!answer(2, -4));
  CAE_TEST_CHECK(answer(4, -1));
  CAE_TEST_CHECK(search.states().front().reported_step == 4);
  CAE_TEST_CHECK(answer(6, 1));
  CAE_TEST_CHECK(!answer(5, -1));
  const FlipState& state = search.states().front();
  CAE_TEST_CHECK(search.done() && state.status == FlipStatus::kFlipped);
  CAE_TEST_CHECK(state.lo == 5 && state.hi == 6 && state.evaluations == 5);
}

/// Logits so far apart that every probability rounds to 0 or 1 still rank points.
void test_extreme_logits() {
  FlipSearch search({0}, {1}, {3, 2, 2, 1, 0.0});
  search.points();
  const std::vector<float> logits{3e38F, -3e38F, 0, 3e38F, -1e38F, 0, 3e38F, -2e38F, 0};
  CAE_TEST_CHECK(search.update(logits.data(), 3, 3) == (std::vector<uint8_t>{0, 1, 0}));
  CAE_TEST_CHECK(search.states().front().status == FlipStatus::kNotFlipped);

  FlipSearch away({0}, {kAnyTarget}, {2, 2, 2, 1, 0.0});
  away.points();
  const std::vector<float> saturated{500, 0, 499, 0, 600, 0};
  CAE_TEST_CHECK(away.update(saturated.data(), 3, 2) == (std::vector<uint8_t>{0, 1, 0}));

  // Equal logits of two classes: a probability of exactly one half.
  for (const double threshold : {0.5, 0.5000001}) {
    FlipSearch half({1}, {0}, {2, 1, 1, 1, threshold});
    half.points();
    const std::vector<float> equal{0, 1, 7, 7};
    half.update(equal.data(), 2, 2);
    CAE_TEST_CHECK((half.states().front().status == FlipStatus::kFlipped) == (threshold == 0.5));
  }
}

void test_sizes() {
  // One class: nothing to flip to.
  FlipSearch one({0, 0}, {0, kAnyTarget}, {1, 4, 4, 1, 0.0});
  CAE_TEST_CHECK(one.points().image_index == std::vector<int32_t>(5, 1));
  const std::vector<float> zeros(5, 0.0F);
  one.update(zeros.data(), 5, 1);
  CAE_TEST_CHECK(one.done() && one.states()[0].status == FlipStatus::kAlreadyTarget);
  CAE_TEST_CHECK(one.states()[1].status == FlipStatus::kNotFlipped);
  CAE_TEST_CHECK(one.states()[1].reported_step == 0);

  FlipSearch none({}, {}, {2, 256, 4, 1, 0.0});
  CAE_TEST_CHECK(none.done() && none.points().step.empty() && none.rounds() == 0);

  // The largest grid, many classes: 30 rounds of one point.
  constexpr int32_t kGrid = 1 << 30;
  constexpr int32_t kClasses = 2000;
  constexpr int32_t kFlip = 123456789;
  FlipSearch large({0}, {kClasses - 1}, {kClasses, kGrid, 1, 1, 0.9});
  while (!large.done()) {
    const cae::search::PathPoints points = large.points();
    std::vector<float> logits(points.step.size() * kClasses, 0.0F);
    for (size_t i = 0; i < points.step.size(); ++i) {
      const bool flipped = points.step[i] >= kFlip;
      logits[i * kClasses + (flipped ? kClasses - 1 : 0)] = 20.0F;
    }
    large.update(logits.data(), static_cast<int64_t>(points.step.size()), kClasses);
  }
  CAE_TEST_CHECK(large.states().front().hi == kFlip && large.rounds() == 31);
}

template <class Body>
bool refused(Body&& body) {
  return cae::testing::throws<std::invalid_argument>(body);
}

void test_errors() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const FlipRules bad[] = {
      {0, 8, 4, 1, 0.0},
      {2, 0, 1, 1, 0.0},
      {2, 6, 2, 1, 0.0},
      {2, -8, 1, 1, 0.0},
      {2, 8, 3, 1, 0.0},
      {2, 8, 16, 1, 0.0},
      {2, 8, 0, 1, 0.0},
      {2, 8, 4, 0, 0.0},
      {2, 8, 4, 1, 0.0, 0},
      {2, 8, 4, 1, 0.0, -1},
      {2, 8, 4, 2, 0.0, 1, cae::search::FlipMethod::kMargin},
      {2, 8, 4, 5, 0.0},
      {2, 8, 4, 1, -0.1},
      {2, 8, 4, 1, 1.01},
      {2, 8, 4, 1, nan},
  };
  for (const FlipRules& rules : bad) {
    CAE_TEST_CHECK(refused([&] { FlipSearch({0}, {1}, rules); }));
  }
  const FlipRules rules{2, 8, 4, 1, 0.0};
  CAE_TEST_CHECK(refused([&] { FlipSearch({0}, {2}, rules); }));
  CAE_TEST_CHECK(refused([&] { FlipSearch({2}, {1}, rules); }));
  CAE_TEST_CHECK(refused([&] { FlipSearch({0}, {-2}, rules); }));
  CAE_TEST_CHECK(refused([&] { FlipSearch({0, 0}, {1}, rules); }));

  FlipSearch search({0}, {1}, rules);
  const std::vector<float> logits(10, 0.0F);
  const auto update = [&](int64_t points, int64_t classes) {
    return cae::testing::throws<std::runtime_error>(
        [&] { search.update(logits.data(), points, classes); });
  };
  CAE_TEST_CHECK(update(5, 2));  // points() was not called
  search.points();
  CAE_TEST_CHECK(refused([&] { search.update(logits.data(), 4, 2); }));
  CAE_TEST_CHECK(refused([&] { search.update(logits.data(), 5, 3); }));
  search.update(logits.data(), 5, 2);
  CAE_TEST_CHECK(search.done());
  CAE_TEST_CHECK(update(5, 2));  // done
  CAE_TEST_CHECK(update(0, 2));
}

}  // namespace

int main() {
  test_by_hand();
  test_scan_by_hand();
  test_extreme_logits();
  test_sizes();
  test_errors();
  test_batches();
  test_against_brute_force();
  return cae::testing::finish("test_flip_search");
}
