// SPDX-License-Identifier: Apache-2.0
// Property tests of the flip search against a one-point-at-a-time search, on random paths.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check_test.h"
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
using cae::testing::PathKind;
using cae::testing::random_case;
using cae::testing::RandomCase;

/// Written from the definitions, without the code under test.
struct BruteForce {
  const RandomCase& test;

  std::vector<float> logits(int32_t step) const {
    std::vector<float> out(static_cast<size_t>(test.rules.num_classes));
    test.path.logits(step, out.data());
    return out;
  }

  /// Softmax in long double; empty if a logit is not finite.
  std::vector<long double> probabilities(int32_t step) const {
    const std::vector<float> values = logits(step);
    long double sum = 0;
    for (const float value : values) {
      if (!std::isfinite(value)) {
        return {};
      }
      sum += std::exp(static_cast<long double>(value));
    }
    std::vector<long double> out;
    for (const float value : values) {
      out.push_back(std::exp(static_cast<long double>(value)) / sum);
    }
    return out;
  }

  int32_t top(int32_t step) const {
    const std::vector<float> values = logits(step);
    return static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
  }

  bool finite(int32_t step) const { return !probabilities(step).empty(); }

  bool hits(int32_t step) const {
    const int32_t winner = top(step);
    const bool wanted =
        test.target_class == kAnyTarget ? winner != test.source_class : winner == test.target_class;
    return wanted && probabilities(step)[static_cast<size_t>(winner)] >= test.rules.min_probability;
  }

  /// What makes the better point where none hits.
  long double rank(int32_t step) const {
    const std::vector<long double> all = probabilities(step);
    return test.target_class == kAnyTarget ? -all[static_cast<size_t>(test.source_class)]
                                           : all[static_cast<size_t>(test.target_class)];
  }

  FlipState search() const {
    FlipState out{test.source_class, test.target_class, kUndefined, kUndefined,
                  kUndefined,        kUndefined,        0,          FlipStatus::kNotFlipped};
    const int32_t stride = test.rules.grid / test.rules.coarse;
    int32_t lo = -1;
    int32_t hi = -1;
    for (int32_t step = 0; step <= test.rules.grid && hi < 0; step += stride) {
      if (!finite(step)) {
        return with_status(out, FlipStatus::kNonFinite);
      }
      if (hits(step)) {
        hi = step;
        lo = step - stride;
      }
    }
    if (hi < 0) {
      int32_t best = 0;
      for (int32_t step = stride; step <= test.rules.grid; step += stride) {
        if (rank(step) > rank(best) * (1 + (rank(best) > 0 ? 1e-12L : -1e-12L))) {
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

bool same_outcome(const FlipState& a, const FlipState& b) {
  return a.status == b.status && a.lo == b.lo && a.hi == b.hi &&
         a.reported_step == b.reported_step && a.reached_class == b.reached_class;
}

/// Runs searches that share their rules; checks the bookkeeping on the way.
std::vector<FlipState> run(const std::vector<RandomCase>& cases) {
  std::vector<int32_t> source;
  std::vector<int32_t> target;
  for (const RandomCase& test : cases) {
    source.push_back(test.source_class);
    target.push_back(test.target_class);
  }
  const FlipRules rules = cases.front().rules;
  FlipSearch search(source, target, rules);
  const auto classes = static_cast<size_t>(rules.num_classes);
  std::vector<int32_t> kept_step(cases.size(), kUndefined);
  std::vector<int32_t> asked(cases.size(), 0);
  std::vector<float> logits;
  while (!search.done()) {
    const cae::search::PathPoints points = search.points();
    logits.resize(points.step.size() * classes);
    for (size_t i = 0; i < points.step.size(); ++i) {
      const auto image = static_cast<size_t>(points.image_index[i]);
      CAE_TEST_CHECK(search.states()[image].status == FlipStatus::kSearching);
      CAE_TEST_CHECK(points.step[i] >= 0 && points.step[i] <= rules.grid);
      cases[image].path.logits(points.step[i], logits.data() + i * classes);
      ++asked[image];
    }
    const std::vector<uint8_t> keep =
        search.update(logits.data(), static_cast<int64_t>(points.step.size()), rules.num_classes);
    std::vector<int32_t> kept_now(cases.size(), 0);
    for (size_t i = 0; i < keep.size(); ++i) {
      if (keep[i] == 0) {
        continue;
      }
      const auto image = static_cast<size_t>(points.image_index[i]);
      kept_step[image] = points.step[i];
      CAE_TEST_CHECK(++kept_now[image] == 1);
    }
    CAE_TEST_CHECK(search.rounds() <= 1 + 30);
  }
  for (size_t i = 0; i < cases.size(); ++i) {
    const FlipState& state = search.states()[i];
    CAE_TEST_CHECK(state.evaluations == asked[i]);
    if (state.status != FlipStatus::kNonFinite) {
      CAE_TEST_CHECK(state.reported_step == kept_step[i]);
    }
  }
  return search.states();
}

/// Each random case alone, at every depth.
void test_against_brute_force() {
  constexpr uint64_t kCases = 60000;
  int64_t seen[5] = {};
  for (uint64_t index = 0; index < kCases; ++index) {
    const RandomCase plain = random_case(index, 1);
    const BruteForce brute{plain};
    const FlipState expected = brute.search();
    ++seen[static_cast<int>(expected.status)];
    int32_t plain_evaluations = 0;
    for (int32_t depth = 1; depth <= kMaxDepth; ++depth) {
      const FlipState state = run({random_case(index, depth)}).front();
      CAE_TEST_CHECK(same_outcome(state, expected));
      if (depth == 1) {
        plain_evaluations = state.evaluations;
      }
      CAE_TEST_CHECK(state.evaluations >= plain_evaluations ||
                     state.status == FlipStatus::kNonFinite);
    }
    if (plain.path.kind == PathKind::kMonotone && plain.rules.min_probability == 0.0 &&
        expected.status == FlipStatus::kFlipped) {
      CAE_TEST_CHECK(expected.hi == plain.path.change(0));
      CAE_TEST_CHECK(expected.lo == expected.hi - 1);
    }
  }
  // The generator must reach every outcome that has points, or the test shows nothing.
  for (const FlipStatus status : {FlipStatus::kFlipped, FlipStatus::kNotFlipped,
                                  FlipStatus::kReconstructionFlips, FlipStatus::kNonFinite}) {
    CAE_TEST_CHECK(seen[static_cast<int>(status)] > 1000);
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
      {0, 8, 4, 1, 0.0}, {2, 0, 1, 1, 0.0},  {2, 6, 2, 1, 0.0},  {2, -8, 1, 1, 0.0},
      {2, 8, 3, 1, 0.0}, {2, 8, 16, 1, 0.0}, {2, 8, 0, 1, 0.0},  {2, 8, 4, 0, 0.0},
      {2, 8, 4, 5, 0.0}, {2, 8, 4, 1, -0.1}, {2, 8, 4, 1, 1.01}, {2, 8, 4, 1, nan},
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
  test_extreme_logits();
  test_sizes();
  test_errors();
  test_batches();
  test_against_brute_force();
  return cae::testing::finish("test_flip_search");
}
