// SPDX-License-Identifier: Apache-2.0
// The flip search with any rules, classes and logits: it ends, its points lie on the grid, and it
// reports what it says it does.
#include <algorithm>
#include <cmath>

#include "fuzz_input.h"
#include "search/flip_search_host.h"

namespace {

using cae::fuzz::Bytes;
using cae::search::FlipMethod;
using cae::search::FlipRules;
using cae::search::FlipSearch;
using cae::search::FlipState;
using cae::search::FlipStatus;
using cae::search::kUndefined;

/// The coarse points one by one, then one round for each bit of the grid, and one more by margin.
int32_t most_rounds(const FlipRules& rules) { return rules.coarse + 1 + 30 + 1; }

/// Mostly a power of two, else anything.
int32_t power(Bytes& bytes, int64_t most_bits) {
  const uint8_t kind = bytes.byte();
  return kind < 240 ? int32_t{1} << (kind % (most_bits + 1)) : bytes.raw<int32_t>();
}

FlipRules read_rules(Bytes& bytes) {
  FlipRules rules{};
  rules.num_classes = static_cast<int32_t>(bytes.small(0, 5));
  rules.grid = power(bytes, 30);
  rules.coarse = power(bytes, 6);
  rules.depth = static_cast<int32_t>(bytes.small(0, 5));
  const uint8_t kind = bytes.byte();
  rules.min_probability = kind < 128   ? 0.0
                          : kind < 240 ? static_cast<double>(kind - 128) / 100.0
                                       : bytes.raw<double>();
  const uint8_t batch = bytes.byte();
  if (batch < 128) {
    rules.coarse_batch = batch < 120 ? batch % 8 : bytes.raw<int32_t>();
  }
  rules.method = bytes.byte() % 2 == 0 ? FlipMethod::kBisection : FlipMethod::kMargin;
  return rules;
}

std::vector<int32_t> read_classes(Bytes& bytes, int64_t count) {
  std::vector<int32_t> classes;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t kind = bytes.byte();
    classes.push_back(kind < 250 ? kind % 6 - 1 : bytes.raw<int32_t>());
  }
  return classes;
}

void check_outcome(const FlipRules& rules, const FlipState& state) {
  const auto on_grid = [&rules](int32_t step) { return step >= 0 && step <= rules.grid; };
  switch (state.status) {
    case FlipStatus::kFlipped:
      CAE_FUZZ_CHECK(on_grid(state.lo) && on_grid(state.hi) && state.hi - state.lo == 1);
      CAE_FUZZ_CHECK(state.reported_step == state.hi);
      break;
    case FlipStatus::kReconstructionFlips:
      CAE_FUZZ_CHECK(state.reported_step == 0);
      break;
    case FlipStatus::kNotFlipped:
      CAE_FUZZ_CHECK(on_grid(state.reported_step) && state.hi == kUndefined);
      break;
    case FlipStatus::kAlreadyTarget:
      CAE_FUZZ_CHECK(state.source_class == state.target_class && state.evaluations == 0);
      break;
    case FlipStatus::kNonFinite:
      CAE_FUZZ_CHECK(state.hi == kUndefined && state.reported_step == kUndefined);
      break;
    default:
      CAE_FUZZ_CHECK(false);
  }
  CAE_FUZZ_CHECK(state.reached_class >= -1 && state.reached_class < rules.num_classes);
  CAE_FUZZ_CHECK(state.evaluations >= 0 && state.lo <= state.hi);
}

void run(FlipSearch& search, const FlipRules& rules, Bytes& bytes) {
  std::vector<float> logits;
  while (!search.done()) {
    const cae::search::PathPoints points = search.points();
    CAE_FUZZ_CHECK(!points.step.empty() && points.step.size() == points.image_index.size());
    for (size_t i = 0; i < points.step.size(); ++i) {
      CAE_FUZZ_CHECK(points.step[i] >= 0 && points.step[i] <= rules.grid);
      CAE_FUZZ_CHECK(static_cast<size_t>(points.image_index[i]) < search.states().size());
      CAE_FUZZ_CHECK(i == 0 || points.image_index[i] > points.image_index[i - 1] ||
                     (points.image_index[i] == points.image_index[i - 1] &&
                      points.step[i] > points.step[i - 1]));
    }
    logits = bytes.numbers(static_cast<int64_t>(points.step.size()) * rules.num_classes);
    const std::vector<uint8_t> keep =
        search.update(logits.data(), static_cast<int64_t>(points.step.size()), rules.num_classes);
    CAE_FUZZ_CHECK(keep.size() == points.step.size());
    CAE_FUZZ_CHECK(search.rounds() <= most_rounds(rules));
  }
  for (const FlipState& state : search.states()) {
    check_outcome(rules, state);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const FlipRules rules = read_rules(bytes);
  const int64_t images = bytes.small(0, 4);
  const std::vector<int32_t> source = read_classes(bytes, images);
  const std::vector<int32_t> target =
      read_classes(bytes, bytes.byte() % 16 == 15 ? bytes.small(0, 4) : images);
  cae::fuzz::accepts([&] {
    FlipSearch search(source, target, rules);
    CAE_FUZZ_CHECK(source.size() == target.size() && rules.num_classes >= 1);
    run(search, rules, bytes);
  });
  return 0;
}
