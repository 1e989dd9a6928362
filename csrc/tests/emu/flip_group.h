// SPDX-License-Identifier: Apache-2.0
// A group of images searched together over random paths: on the host, as the Python code feeds
// search::FlipSearch, and on the device. Pictures are small and tell their image and step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/half_bits.h"
#include "cuda/flip_step_cuda.h"
#include "device_values.h"
#include "search/flip_plan.h"
#include "search/flip_search_host.h"
#include "tests/check_test.h"
#include "tests/random_path.h"

namespace cae::testing {

constexpr int64_t kPictureValues = 24;
constexpr int32_t kPictureTiles = 3;

/// What a search gives, as arrays over the images.
struct GroupResult {
  std::vector<search::FlipState> states;
  std::vector<float> counterfactual, reconstruction;  // [N][kPictureValues]
  std::vector<float> logits_counterfactual;           // [N][K]
  std::vector<std::vector<int32_t>> steps;
  std::vector<std::vector<float>> path_logits;
};

struct FlipGroup {
  search::FlipRules rules;
  std::vector<RandomPath> paths;
  std::vector<int32_t> source, target;
  bool half_logits = false;
  int32_t extra_slots = 0;  // beyond what the plan asks for
  bool packed = false;

  int32_t images() const { return static_cast<int32_t>(paths.size()); }

  /// Picture `image` at `step`; one of 16 has a value that is not finite.
  bool finite(int32_t image, int32_t step) const {
    return mix(paths[image].seed + 77U * static_cast<uint64_t>(step)) % 16 != 0;
  }
  std::vector<float> picture(int32_t image, int32_t step) const {
    return std::vector<float>(kPictureValues, static_cast<float>(image * 10000 + step));
  }
  std::vector<float> input(int32_t image) const {
    return std::vector<float>(kPictureValues, static_cast<float>(-1 - image));
  }
  std::vector<float> logits(int32_t image, int32_t step) const {
    std::vector<float> row(static_cast<size_t>(rules.num_classes));
    paths[image].logits(step, row.data());
    for (float& value : row) {
      value = half_logits ? half_value(half_bits(value)) : value;
    }
    return row;
  }
  /// Logits of the image itself: its source class on top; NaN where it has none.
  std::vector<float> logits_source(int32_t image) const {
    std::vector<float> row(static_cast<size_t>(rules.num_classes));
    for (int32_t i = 0; i < rules.num_classes; ++i) {
      row[i] = static_cast<float>(paths[image].draw(-7, i) % 5);
    }
    if (source[image] >= 0) {
      row[source[image]] = 5.0F;
    } else {
      row[paths[image].draw(-8, 0) % row.size()] = image % 2 == 0 ? NAN : INFINITY;
    }
    return row;
  }

  GroupResult on_host() const {
    const auto n = static_cast<size_t>(images());
    GroupResult out;
    out.counterfactual.assign(n * kPictureValues, NAN);
    out.reconstruction.assign(n * kPictureValues, NAN);
    out.logits_counterfactual.assign(n * rules.num_classes, NAN);
    out.steps.resize(n);
    out.path_logits.resize(n);
    const auto put = [](std::vector<float>& all, int32_t row, const std::vector<float>& values) {
      std::copy(values.begin(), values.end(),
                all.begin() + static_cast<int64_t>(row * values.size()));
    };
    search::FlipSearch running(source, target, rules);
    while (!running.done()) {
      const search::PathPoints points = running.points();
      std::vector<float> rows;
      for (size_t i = 0; i < points.step.size(); ++i) {
        const int32_t image = points.image_index[i];
        std::vector<float> row = logits(image, points.step[i]);
        if (!finite(image, points.step[i])) {
          row.assign(row.size(), NAN);
        }
        rows.insert(rows.end(), row.begin(), row.end());
        out.steps[image].push_back(points.step[i]);
        out.path_logits[image].insert(out.path_logits[image].end(), row.begin(), row.end());
        if (points.step[i] == 0) {
          put(out.reconstruction, image, picture(image, 0));
        }
      }
      const std::vector<uint8_t> keep =
          running.update(rows.data(), static_cast<int64_t>(points.step.size()), rules.num_classes);
      for (size_t i = 0; i < keep.size(); ++i) {
        if (keep[i] != 0) {
          const int32_t image = points.image_index[i];
          put(out.counterfactual, image, picture(image, points.step[i]));
          put(out.logits_counterfactual, image,
              {rows.begin() + static_cast<int64_t>(i * rules.num_classes),
               rows.begin() + static_cast<int64_t>((i + 1) * rules.num_classes)});
        }
      }
    }
    out.states = running.states();
    for (int32_t i = 0; i < images(); ++i) {
      if (out.states[i].status == search::FlipStatus::kAlreadyTarget) {
        put(out.counterfactual, i, input(i));
        put(out.reconstruction, i, picture(i, 0));
        put(out.logits_counterfactual, i, logits_source(i));
        out.states[i].evaluations = 1;
      } else if (out.states[i].status == search::FlipStatus::kNonFinite) {
        put(out.counterfactual, i, std::vector<float>(kPictureValues, NAN));
        put(out.logits_counterfactual, i,
            std::vector<float>(static_cast<size_t>(rules.num_classes), NAN));
      }
    }
    return out;
  }

  /// Runs the planned rounds and one more. `rounds_used` becomes how many had something to do.
  GroupResult on_device(int32_t& rounds_used) const;
};

inline GroupResult FlipGroup::on_device(int32_t& rounds_used) const {
  const auto n = static_cast<size_t>(images());
  const auto classes = static_cast<size_t>(rules.num_classes);
  const search::FlipPlan plan = search::plan_flips(rules);
  auto slots = static_cast<size_t>(plan.slots) + static_cast<size_t>(extra_slots);  // the most
  const auto points = static_cast<size_t>(plan.points);
  const DeviceArray<search::FlipState> states(n, search::FlipState{});
  const DeviceArray<int32_t> first_slot(n, -9), image_index(n * slots, -9), step(n * slots, -9),
      active(n * slots, -9), grid_row(n * slots, -9), remaining(1, -9), keep_slot(n, -9),
      start_slot(n, -9), path_count(n, -9), path_step(n * points, -9), wanted(target);
  const DeviceArray<float> path_logits(n * points * classes, -9.0F),
      logits_counterfactual(n * classes, -9.0F), counterfactual(n * kPictureValues, -9.0F),
      reconstruction(n * kPictureValues, -9.0F);
  std::vector<float> from_images, inputs;
  for (int32_t i = 0; i < images(); ++i) {
    for (float value : logits_source(i)) {
      from_images.push_back(value);
    }
    for (float value : input(i)) {
      inputs.push_back(value);
    }
  }
  const DeviceArray<float> source_logits(from_images), input_images(inputs);
  cuda::FlipBuffers b;
  b.rules = rules;
  b.images = images();
  b.slots = static_cast<int32_t>(slots);
  b.packed = packed;
  b.max_points = plan.points;
  b.first_slot = first_slot.data();
  b.states = states.data();
  b.image_index = image_index.data();
  b.step = step.data();
  b.active = active.data();
  b.grid_row = grid_row.data();
  b.remaining = remaining.data();
  b.keep_slot = keep_slot.data();
  b.start_slot = start_slot.data();
  b.path_count = path_count.data();
  b.path_step = path_step.data();
  b.path_logits = path_logits.data();
  b.logits_counterfactual = logits_counterfactual.data();
  b.overlap = true;  // the emulator is strictest then
  cuda::FlipBeginParams begin;
  begin.buffers = b;
  begin.logits_source = source_logits.data();
  begin.wanted = wanted.data();
  cuda::flip_begin(begin, nullptr);
  rounds_used = 0;
  for (int32_t round = 0; round <= plan.rounds; ++round) {
    if (extra_slots == 0) {  // as few as the round can need
      b.round = round;
      b.slots = search::round_slots(rules, round);
      slots = static_cast<size_t>(b.slots);
    }
    cuda::flip_points(b, nullptr);
    const std::vector<int32_t> steps = step.values();
    const std::vector<int32_t> needed = active.values();
    const std::vector<int32_t> rows_of_grid = grid_row.values();
    const std::vector<int32_t> owners = image_index.values();
    const auto count = static_cast<size_t>(remaining.values()[0]);
    rounds_used += count > 0 ? 1 : 0;
    CAE_TEST_CHECK(std::count(needed.begin(), needed.begin() + static_cast<int64_t>(n * slots),
                              1) == static_cast<int64_t>(count));
    // What is not asked for is poison, or, behind packed slots, not there.
    const size_t there = packed ? count : n * slots;
    std::vector<float> rows(there * classes, NAN), decoded(there * kPictureValues, -99.0F);
    std::vector<int32_t> flags(there * kPictureTiles, 0);
    for (size_t slot = 0; slot < n * slots; ++slot) {
      const int32_t image = owners[slot];
      CAE_TEST_CHECK(image >= 0 && image < images());
      CAE_TEST_CHECK(packed || image == static_cast<int32_t>(slot / slots));
      CAE_TEST_CHECK(!packed || (needed[slot] != 0) == (slot < count));
      if (needed[slot] == 0) {
        continue;
      }
      CAE_TEST_CHECK(rows_of_grid[slot] == image * (rules.grid + 1) + steps[slot]);
      const std::vector<float> row = logits(image, steps[slot]);
      std::copy(row.begin(), row.end(), rows.begin() + static_cast<int64_t>(slot * classes));
      const std::vector<float> drawn = picture(image, steps[slot]);
      std::copy(drawn.begin(), drawn.end(),
                decoded.begin() + static_cast<int64_t>(slot * kPictureValues));
      for (int32_t tile = 0; tile < kPictureTiles; ++tile) {
        const bool bad = !finite(image, steps[slot]) && tile == steps[slot] % kPictureTiles;
        flags[slot * kPictureTiles + static_cast<size_t>(tile)] = bad ? 0 : 1;
      }
    }
    std::vector<uint16_t> halves;
    for (float value : rows) {
      halves.push_back(half_bits(value));
    }
    const DeviceArray<float> row_array(rows), pictures(decoded);
    const DeviceArray<uint16_t> half_array(halves);
    const DeviceArray<int32_t> flag_array(flags);
    cuda::FlipStepParams judge;
    judge.buffers = b;
    judge.logits = half_logits ? static_cast<const void*>(half_array.data()) : row_array.data();
    judge.half_logits = half_logits;
    judge.finite = flag_array.data();
    judge.tiles = kPictureTiles;
    cuda::flip_step(judge, nullptr);
    cuda::FlipCommitParams commit;
    commit.buffers = b;
    commit.values = kPictureValues;
    commit.decoded = pictures.data();
    commit.inputs = input_images.data();
    commit.counterfactual = counterfactual.data();
    commit.reconstruction = reconstruction.data();
    cuda::flip_commit(commit, nullptr);
  }
  GroupResult out;
  out.states = states.values();
  out.counterfactual = counterfactual.values();
  out.reconstruction = reconstruction.values();
  out.logits_counterfactual = logits_counterfactual.values();
  const std::vector<int32_t> counts = path_count.values();
  const std::vector<int32_t> all_steps = path_step.values();
  const std::vector<float> all_logits = path_logits.values();
  for (size_t i = 0; i < n; ++i) {
    const auto first = static_cast<int64_t>(i * points);
    const int64_t last = first + counts[i];
    const auto row = static_cast<int64_t>(classes);
    out.steps.emplace_back(all_steps.begin() + first, all_steps.begin() + last);
    out.path_logits.emplace_back(all_logits.begin() + first * row, all_logits.begin() + last * row);
  }
  return out;
}

}  // namespace cae::testing
