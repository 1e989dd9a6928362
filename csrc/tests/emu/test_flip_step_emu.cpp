// SPDX-License-Identifier: Apache-2.0
// The flip search of the emulated GPU against the host's on random paths: bit by bit the same.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cuda/graph_sequence.h"
#include "flip_group.h"
#include "tests/check_test.h"

namespace {

using cae::search::FlipMethod;
using cae::search::FlipRules;
using cae::search::FlipState;
using cae::search::FlipStatus;
using cae::search::kAnyTarget;
using cae::search::plan_flips;
using cae::search::round_slots;
using cae::testing::DeviceArray;
using cae::testing::FlipGroup;
using cae::testing::GroupResult;
using cae::testing::mix;
using cae::testing::PathKind;

/// Values in which nothing is rounded: equal, or both NaN.
template <class T>
bool same_value(T x, T y) {
  return x == y || (x != x && y != y);
}

bool same_floats(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_value<float>);
}

bool same_state(const FlipState& a, const FlipState& b) {
  return a.source_class == b.source_class && a.target_class == b.target_class && a.lo == b.lo &&
         a.hi == b.hi && a.reported_step == b.reported_step && a.reached_class == b.reached_class &&
         a.evaluations == b.evaluations && a.status == b.status && a.allowance == b.allowance &&
         same_value(a.record, b.record) && same_value(a.margin_lo, b.margin_lo) &&
         same_value(a.margin_hi, b.margin_hi);
}

/// A group of random images that share random rules.
FlipGroup random_group(uint64_t index, int32_t classes, int32_t images) {
  const uint64_t seed = mix(index + 1000000);
  const auto draw = [&](uint64_t salt, uint64_t count) {
    return static_cast<int32_t>(mix(seed + salt) % count);
  };
  FlipGroup group;
  FlipRules& rules = group.rules;
  const int32_t grid_bits = draw(1, 8);
  const bool margin = draw(2, 3) == 0;
  const int32_t threshold = draw(4, 5);
  rules.num_classes = classes;
  rules.grid = 1 << grid_bits;
  rules.coarse = 1 << draw(3, static_cast<uint64_t>(grid_bits) + 1);
  rules.min_probability = threshold == 0 ? 0.35 : threshold == 1 ? 0.6 : threshold == 2 ? 1.0 : 0.0;
  rules.method = margin ? FlipMethod::kMargin : FlipMethod::kBisection;
  rules.depth = margin ? 1 : 1 + draw(5, 4);
  rules.coarse_batch = draw(6, 3) == 0 ? cae::search::kWholeScan : 1 + draw(7, 5);
  group.half_logits = draw(8, 3) == 0;
  group.extra_slots = draw(9, 3);
  group.packed = draw(10, 2) == 0;
  for (int32_t i = 0; i < images; ++i) {
    const uint64_t own = mix(seed + 100 + static_cast<uint64_t>(i));
    const auto source = static_cast<int32_t>(mix(own + 1) % static_cast<uint64_t>(classes));
    const auto other = static_cast<int32_t>(mix(own + 2) % static_cast<uint64_t>(classes));
    const auto kind = static_cast<PathKind>(mix(own + 3) % static_cast<uint64_t>(PathKind::kCount));
    group.paths.push_back({own, kind, classes, rules.grid, source, other});
    group.source.push_back(mix(own + 4) % 12 == 0 ? -1 : source);
    group.target.push_back(mix(own + 5) % 4 == 0 ? kAnyTarget : other);
  }
  return group;
}

struct Tally {
  int32_t statuses[5] = {};
  bool all_rounds = false;  // some group needed every planned round
  bool all_points = false;
};

void compare(const FlipGroup& group, Tally& tally) {
  int32_t rounds = 0;
  const GroupResult host = group.on_host();
  const GroupResult device = group.on_device(rounds);
  for (int32_t i = 0; i < group.images(); ++i) {
    CAE_TEST_CHECK(same_state(host.states[i], device.states[i]));
    CAE_TEST_CHECK(host.steps[i] == device.steps[i]);
    CAE_TEST_CHECK(same_floats(host.path_logits[i], device.path_logits[i]));
    ++tally.statuses[static_cast<int32_t>(device.states[i].status)];
    tally.all_points |=
        static_cast<int32_t>(host.steps[i].size()) == plan_flips(group.rules).points &&
        group.rules.grid > group.rules.coarse;
  }
  CAE_TEST_CHECK(same_floats(host.counterfactual, device.counterfactual));
  CAE_TEST_CHECK(same_floats(host.reconstruction, device.reconstruction));
  CAE_TEST_CHECK(same_floats(host.logits_counterfactual, device.logits_counterfactual));
  CAE_TEST_CHECK(rounds <= plan_flips(group.rules).rounds);
  tally.all_rounds |= rounds == plan_flips(group.rules).rounds && rounds > 3;
}

void test_same_as_host() {
  Tally tally;
  for (uint64_t i = 0; i < 400; ++i) {
    compare(random_group(i, 2 + static_cast<int32_t>(i % 4), 5), tally);
  }
  for (uint64_t i = 400; i < 430; ++i) {
    compare(random_group(i, 1, 3), tally);
  }
  for (uint64_t i = 430; i < 442; ++i) {
    compare(random_group(i, i % 2 == 0 ? 1000 : 33, 2), tally);
  }
  for (uint64_t i = 442; i < 446; ++i) {  // more images than flip_points has threads
    compare(random_group(i, 3, 300), tally);
  }
  for (int32_t count : tally.statuses) {
    CAE_TEST_CHECK(count > 0);
  }
  CAE_TEST_CHECK(tally.all_rounds && tally.all_points);
}

void test_plan() {
  FlipRules rules{2, 256, 4, 2, 0.0};
  CAE_TEST_CHECK(plan_flips(rules).slots == 5 && plan_flips(rules).rounds == 1 + 3);
  CAE_TEST_CHECK(plan_flips(rules).points == 5 + 3 * 3);
  const auto slots = [&rules](const std::vector<int32_t>& wanted) {
    for (size_t round = 0; round < wanted.size(); ++round) {
      CAE_TEST_CHECK(round_slots(rules, static_cast<int32_t>(round)) == wanted[round]);
    }
  };
  slots({5, 3, 3, 3, 1, 1});  // from the fifth on nothing is left
  rules.depth = 4;
  slots({5, 15, 3, 1});
  rules.coarse = 1;
  slots({2, 15, 15, 1});
  rules.coarse = 4;
  rules.coarse_batch = 2;  // images are in different rounds
  slots({15, 15, 15, 15, 15});
  CAE_TEST_CHECK(plan_flips(rules).slots == 15 && plan_flips(rules).rounds == 3 + 2);
  CAE_TEST_CHECK(plan_flips(rules).points == 5 + 15 + 3);
  rules.depth = 1;
  rules.method = FlipMethod::kMargin;
  CAE_TEST_CHECK(plan_flips(rules).slots == 2);
  rules.coarse_batch = cae::search::kWholeScan;
  slots({5, 1, 1, 1});
  rules.coarse_batch = 2;
  CAE_TEST_CHECK(plan_flips(rules).points == 5 + 6 + cae::search::kMarginSlack);
  rules.coarse = 256;
  CAE_TEST_CHECK(plan_flips(rules).rounds == 129 && plan_flips(rules).points == 257);
}

/// Which of the sizes that rounds are captured in is run.
void test_sizes() {
  const int32_t sizes[cae::gpu::kMostSizes] = {40, 20, 10};
  const auto place = [&sizes](int32_t number) { return cae::gpu::fitting_size(sizes, 3, number); };
  CAE_TEST_CHECK(place(40) == 0 && place(21) == 0);
  CAE_TEST_CHECK(place(20) == 1 && place(11) == 1);
  CAE_TEST_CHECK(place(10) == 2 && place(1) == 2);
  CAE_TEST_CHECK(place(0) == 3);  // none
  CAE_TEST_CHECK(cae::gpu::fitting_size(sizes, 1, 1) == 0);
  CAE_TEST_CHECK(cae::gpu::fitting_size(sizes, 1, 0) == 1);
}

struct Wish {
  std::vector<float> logits;
  int32_t wanted;
  std::vector<int32_t> reachable;  // empty: all
  int32_t source, target;
  FlipStatus status;
  bool left_out = false;
  float code = 0.0F;
};

/// Source class, target class and status of one image, as cae_fast/targets.py has them.
void test_targets() {
  const float nan = NAN;
  const auto searching = FlipStatus::kSearching;
  const auto non_finite = FlipStatus::kNonFinite;
  const std::vector<Wish> wishes = {
      {{1, 3, 2}, 0, {}, 1, 0, searching},
      {{1, 3, 2}, 1, {}, 1, 1, FlipStatus::kAlreadyTarget},
      {{1, 3, 2}, kAnyTarget, {}, 1, kAnyTarget, searching},
      {{1, 3, 2}, cae::cuda::kRunnerUp, {}, 1, 2, searching},
      {{2, 3, 2}, cae::cuda::kRunnerUp, {}, 1, 0, searching},         // a tie: the lower
      {{1, 3, 2}, cae::cuda::kRunnerUp, {1, 1, 0}, 1, 0, searching},  // 2 is out of reach
      {{1, 3, 2}, cae::cuda::kRunnerUp, {0, 1, 0}, 1, 2, searching},  // nothing else is in reach
      {{1, 3, 2}, cae::cuda::kRunnerUp, {0, 0, 0}, 1, 2, searching},
      {{3, 3, 3}, cae::cuda::kRunnerUp, {}, 0, 1, searching},
      {{1, nan, 2}, cae::cuda::kRunnerUp, {}, -1, kAnyTarget, non_finite},
      {{1, nan, 2}, 2, {}, -1, 2, non_finite},
      {{1, 3, -INFINITY}, 2, {}, -1, 2, non_finite},
      {{1, 3, 2}, 0, {}, -1, 0, non_finite, true},
      {{1, 3, 2}, 0, {}, -1, 0, non_finite, false, nan},
      {{1}, cae::cuda::kRunnerUp, {}, 0, kAnyTarget, searching},
      {{1, 3, 2}, kAnyTarget, {0, 0, 0}, 1, kAnyTarget, searching},
  };
  for (const Wish& wish : wishes) {
    const DeviceArray<FlipState> states(1, FlipState{});
    const DeviceArray<int32_t> count(1, -9), wanted(1, wish.wanted), reachable(wish.reachable),
        left_out(1, wish.left_out ? 1 : 0);
    const DeviceArray<float> logits(wish.logits), reported(wish.logits.size(), -9.0F),
        code(std::vector<float>{0.5F, wish.code});
    cae::cuda::FlipBeginParams params;
    params.buffers.rules = {static_cast<int32_t>(wish.logits.size()), 8, 2, 1, 0.0};
    params.buffers.images = 1;
    params.buffers.slots = params.buffers.max_points = 8;
    params.buffers.states = states.data();
    params.buffers.path_count = count.data();
    params.buffers.logits_counterfactual = reported.data();
    params.logits_source = logits.data();
    params.class_codes = code.data();
    params.code_dim = 2;
    params.wanted = wanted.data();
    params.reachable = wish.reachable.empty() ? nullptr : reachable.data();
    params.left_out = left_out.data();
    cae::cuda::flip_begin(params, nullptr);
    const FlipState state = states.values()[0];
    CAE_TEST_CHECK(state.source_class == wish.source);
    CAE_TEST_CHECK(state.target_class == wish.target);
    CAE_TEST_CHECK(state.status == wish.status);
    CAE_TEST_CHECK(count.values()[0] == 0);
    const std::vector<float> none(wish.logits.size(), nan);
    CAE_TEST_CHECK(same_floats(reported.values(),
                               wish.status == FlipStatus::kAlreadyTarget ? wish.logits : none));
  }
}

void test_errors() {
  cae::cuda::FlipBuffers buffers;
  cae::cuda::flip_points(buffers, nullptr);  // no images: nothing happens
  buffers.rules = {2, 8, 2, 2, 0.0};
  buffers.images = 1;
  buffers.slots = 2;
  buffers.max_points = 6;
  const auto launch = [&] { cae::cuda::flip_points(buffers, nullptr); };
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  buffers.round = 1;  // needs three
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  buffers.slots = 3;
  buffers.max_points = 5;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  cae::cuda::FlipCommitParams commit;
  commit.buffers = buffers;
  commit.buffers.max_points = 6;
  commit.values = 6;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(
      [&] { cae::cuda::flip_commit(commit, nullptr); }));
}

}  // namespace

int main() {
  test_same_as_host();
  test_plan();
  test_sizes();
  test_targets();
  test_errors();
  return cae::testing::finish("test_flip_step_emu");
}
