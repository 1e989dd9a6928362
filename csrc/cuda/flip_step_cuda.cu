// SPDX-License-Identifier: Apache-2.0
// A warp runs the search of an image: every lane holds the state and takes the same decisions, the
// logits are read together.
#include <limits>

#include "core/check.h"
#include "cuda/flip_step_cuda.h"
#include "cuda/warp_row.cuh"
#include "search/flip_plan.h"
#include "simt/launch.h"

namespace cae::cuda {
namespace {

using search::FlipState;
using search::FlipStatus;
using search::kAnyTarget;
using search::kUndefined;
using search::PointVerdict;

constexpr int kPointsThreads = 256;
constexpr int kCommitThreads = 256;
constexpr int kCommitVectors = 4;  // of a thread
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

KFN FlipState load_state(const FlipState* p) {
  FlipState state;
  state.source_class = dev::load(&p->source_class);
  state.target_class = dev::load(&p->target_class);
  state.lo = dev::load(&p->lo);
  state.hi = dev::load(&p->hi);
  state.reported_step = dev::load(&p->reported_step);
  state.reached_class = dev::load(&p->reached_class);
  state.evaluations = dev::load(&p->evaluations);
  state.status = dev::load(&p->status);
  state.allowance = dev::load(&p->allowance);
  state.record = dev::load(&p->record);
  state.margin_lo = dev::load(&p->margin_lo);
  state.margin_hi = dev::load(&p->margin_hi);
  return state;
}

KFN void store_state(FlipState* p, const FlipState& state) {
  dev::store(&p->source_class, state.source_class);
  dev::store(&p->target_class, state.target_class);
  dev::store(&p->lo, state.lo);
  dev::store(&p->hi, state.hi);
  dev::store(&p->reported_step, state.reported_step);
  dev::store(&p->reached_class, state.reached_class);
  dev::store(&p->evaluations, state.evaluations);
  dev::store(&p->status, state.status);
  dev::store(&p->allowance, state.allowance);
  dev::store(&p->record, state.record);
  dev::store(&p->margin_lo, state.margin_lo);
  dev::store(&p->margin_hi, state.margin_hi);
}

/// The reconstruction of an image that is the target class already has not been decoded yet.
KFN bool reconstruction_due(const FlipState& state) {
  return state.status == FlipStatus::kAlreadyTarget && state.evaluations == 0;
}

/// Slots that the image needs in this round.
KFN int32_t active_slots(const search::FlipRules& rules, const FlipState& state) {
  return reconstruction_due(state) ? 1 : search::num_points(rules, state);
}

/// True if all `count` values are finite. All lanes call.
KFN bool all_finite(const float* values, int32_t count, int lane) {
  int32_t bad = 0;
  for (int32_t i = lane; i < count; i += 32) {
    const float value = dev::load(values + i);
    bad |= value - value == 0.0F ? 0 : 1;
  }
  UNROLL for (int m = 16; m > 0; m >>= 1) { bad |= dev::shfl_xor(bad, m); }
  return bad == 0;
}

KFN int32_t choose_target(const FlipBeginParams& p, const WarpRow& row, int32_t wanted,
                          int32_t source) {
  if (wanted != kRunnerUp) {
    return wanted;
  }
  if (source == kUndefined) {
    return kAnyTarget;
  }
  const int32_t* reachable = p.reachable;
  const int32_t best = row.highest([=](int32_t i) {
    return i != source && (reachable == nullptr || dev::load(reachable + i) != 0);
  });
  const int32_t choice = best == kUndefined ? row.best_other(source) : best;
  return choice == kUndefined ? kAnyTarget : choice;
}

KERNEL void __launch_bounds__(32) flip_begin_kernel(const FlipBeginParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int lane = dev::tid();
  const int64_t image = dev::bx();
  const int32_t classes = p.buffers.rules.num_classes;
  const WarpRow row{p.logits_source + image * classes, classes, lane};
  int32_t source = row.top();
  if (p.class_codes != nullptr &&
      !all_finite(p.class_codes + image * p.code_dim, p.code_dim, lane)) {
    source = kUndefined;
  }
  if (p.left_out != nullptr && dev::load(p.left_out + image) != 0) {
    source = kUndefined;
  }
  const int32_t target = choose_target(p, row, dev::load(p.wanted + image), source);
  const FlipState state = search::start_search(source, target);
  const bool already = state.status == FlipStatus::kAlreadyTarget;
  for (int32_t i = lane; i < classes; i += 32) {
    dev::store(p.buffers.logits_counterfactual + image * classes + i,
               already ? dev::load(row.logits + i) : kNaN);
  }
  if (lane == 0) {
    store_state(p.buffers.states + image, state);
    dev::store(p.buffers.path_count + image, 0);
  }
}

/// Sum of `value` over the threads before this one; `total` becomes that of all kPointsThreads.
/// Every thread calls; `scratch` holds a number for each warp.
KFN int32_t sum_before(int32_t value, int tid, uint32_t scratch, int32_t& total) {
  const int lane = tid & 31;
  int32_t sum = value;
  UNROLL for (int d = 1; d < 32; d <<= 1) {
    const int32_t other = dev::shfl(sum, lane - d);
    sum += lane >= d ? other : 0;
  }
  if (lane == 31) {
    dev::sts32(scratch + (tid >> 5) * 4, static_cast<uint32_t>(sum));
  }
  dev::sync();
  int32_t before = 0;
  total = 0;
  UNROLL for (int w = 0; w < kPointsThreads / 32; ++w) {
    const auto of_warp = static_cast<int32_t>(dev::lds32(scratch + w * 4));
    before += w < tid >> 5 ? of_warp : 0;
    total += of_warp;
  }
  dev::sync();  // scratch may be used again
  return before + sum - value;
}

/// Slot `slot`: point `point` of the image, or none of it.
KFN void write_slot(const FlipBuffers& b, int64_t slot, int32_t image, const FlipState& state,
                    int32_t point, bool active) {
  const bool searched = active && state.status == FlipStatus::kSearching;
  const int32_t step = searched ? search::point_step(b.rules, state, point) : 0;
  dev::store(b.image_index + slot, image);
  dev::store(b.step + slot, step);
  if (b.grid_row != nullptr) {
    dev::store(b.grid_row + slot, image * (b.rules.grid + 1) + step);
  }
  dev::store(b.active + slot, active ? 1 : 0);
}

/// One block: it counts the slots without atomics.
KERNEL void __launch_bounds__(kPointsThreads) flip_points_kernel(const FlipBuffers b) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int tid = dev::tid();
  const int64_t slots = static_cast<int64_t>(b.images) * b.slots;
  int32_t active = 0;
  for (int32_t first = 0; first < b.images; first += kPointsThreads) {
    const int32_t image = first + tid;
    const bool inside = image < b.images;
    const FlipState state = load_state(b.states + (inside ? image : 0));
    const int32_t points = inside ? active_slots(b.rules, state) : 0;
    int32_t of_these = 0;
    const int32_t before = sum_before(points, tid, dev::smem_base(), of_these);
    if (inside) {
      const int32_t slot0 = b.packed ? active + before : image * b.slots;
      dev::store(b.first_slot + image, slot0);
      for (int32_t point = 0; b.packed && point < points; ++point) {
        write_slot(b, slot0 + point, image, state, point, true);
      }
    }
    active += of_these;
  }
  if (tid == 0) {
    dev::store(b.remaining, active);
  }
  // Not packed: a thread for each slot. Packed: what is left behind the active ones.
  for (int64_t slot = (b.packed ? active : 0) + tid; slot < slots; slot += kPointsThreads) {
    const auto image = static_cast<int32_t>(slot / b.slots);
    const auto point = static_cast<int32_t>(slot % b.slots);
    const FlipState state = load_state(b.states + image);
    write_slot(b, slot, image, state, point, !b.packed && point < active_slots(b.rules, state));
  }
}

KFN float load_logit(const float* p) { return dev::load(p); }
KFN float load_logit(const uint16_t* p) {
  float value, unused;
  dev::unpack_half2(dev::load(p), value, unused);
  return value;
}

/// Verdicts of a round's points, judged when they are asked for.
struct LazyVerdicts {
  const search::FlipRules& rules;
  const FlipState state;
  const float* logits;  // [points][K]
  int lane;

  KFN_MEMBER PointVerdict operator[](int32_t point) const {
    const int64_t first = static_cast<int64_t>(point) * rules.num_classes;
    return search::judge_row(rules, state, WarpRow{logits + first, rules.num_classes, lane});
  }
};

/// Appends the round's points to the image's history. Returns its logits there.
template <class T>
KFN const float* append_points(const FlipStepParams& p, const FlipState& state, int64_t image,
                               int32_t slot0, int32_t points, int lane) {
  const FlipBuffers& b = p.buffers;
  const int32_t classes = b.rules.num_classes;
  const int32_t before = dev::load(b.path_count + image);
  const int64_t first = image * b.max_points + before;
  for (int32_t point = 0; point < points; ++point) {
    const int64_t slot = int64_t{slot0} + point;
    int32_t bad = 0;
    for (int32_t tile = lane; tile < p.tiles; tile += 32) {
      bad |= dev::load(p.finite + slot * p.tiles + tile) == 0 ? 1 : 0;
    }
    UNROLL for (int m = 16; m > 0; m >>= 1) { bad |= dev::shfl_xor(bad, m); }
    const T* from = static_cast<const T*>(p.logits) + slot * classes;
    for (int32_t i = lane; i < classes; i += 32) {
      dev::store(b.path_logits + (first + point) * classes + i,
                 bad != 0 ? kNaN : load_logit(from + i));
    }
    if (lane == 0) {
      dev::store(b.path_step + first + point, search::point_step(b.rules, state, point));
    }
  }
  dev::syncwarp();  // lanes read each other's logits, and all have read the count
  if (lane == 0) {
    dev::store(b.path_count + image, before + points);
  }
  return b.path_logits + first * classes;
}

/// Slot of step 0 among the round's points: it is the first, if any.
KFN int32_t slot_of_start(const search::FlipRules& rules, const FlipState& state, int32_t slot0) {
  return search::point_step(rules, state, 0) == 0 ? slot0 : kKeepNothing;
}

template <class T>
KERNEL void __launch_bounds__(32) flip_step_kernel(const FlipStepParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const FlipBuffers& b = p.buffers;
  const int lane = dev::tid();
  const int64_t image = dev::bx();
  const int32_t classes = b.rules.num_classes;
  const int32_t slot0 = dev::load(b.first_slot + image);
  FlipState state = load_state(b.states + image);
  int32_t keep = kKeepNothing;
  int32_t start = kKeepNothing;
  const int32_t points = search::num_points(b.rules, state);
  if (reconstruction_due(state)) {
    state.evaluations = 1;
    keep = kKeepInput;
    start = slot0;
  } else if (state.status == FlipStatus::kNonFinite && state.evaluations == 0) {
    keep = start = kKeepUnknown;  // it was never searched
  } else if (points > 0) {
    start = slot_of_start(b.rules, state, slot0);
    const float* logits = append_points<T>(p, state, image, slot0, points, lane);
    const int32_t kept =
        search::advance_search(b.rules, state, LazyVerdicts{b.rules, state, logits, lane});
    const bool lost = state.status == FlipStatus::kNonFinite;
    if (lost || kept != kUndefined) {
      keep = lost ? kKeepUnknown : slot0 + kept;
      for (int32_t i = lane; i < classes; i += 32) {
        dev::store(b.logits_counterfactual + image * classes + i,
                   lost ? kNaN : dev::load(logits + static_cast<int64_t>(kept) * classes + i));
      }
    }
  }
  dev::syncwarp();  // all lanes have read the state
  if (lane == 0) {
    store_state(b.states + image, state);
    dev::store(b.keep_slot + image, keep);
    dev::store(b.start_slot + image, start);
  }
}

KERNEL void __launch_bounds__(kCommitThreads) flip_commit_kernel(const FlipCommitParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  constexpr int64_t kBlockVectors = kCommitThreads * kCommitVectors;
  const int64_t vectors = p.values / 4;
  const int64_t parts = (vectors + kBlockVectors - 1) / kBlockVectors;
  const int64_t part = dev::bx() % parts;
  const int64_t row = dev::bx() / parts;  // counterfactuals, then reconstructions
  const bool start = row >= p.buffers.images;
  const int64_t image = start ? row - p.buffers.images : row;
  const int32_t keep = dev::load((start ? p.buffers.start_slot : p.buffers.keep_slot) + image);
  if (keep == kKeepNothing) {
    return;
  }
  const float* from = keep < 0 ? p.inputs + image * p.values  // kKeepUnknown: not read
                               : p.decoded + static_cast<int64_t>(keep) * p.values;
  float* to = (start ? p.reconstruction : p.counterfactual) + image * p.values;
  const uint32_t nan = dev::ubits(kNaN);
  const uint4 unknown = {nan, nan, nan, nan};
  UNROLL for (int i = 0; i < kCommitVectors; ++i) {
    const int64_t vector = part * kBlockVectors + i * kCommitThreads + dev::tid();
    if (vector < vectors) {
      dev::stg128(to + vector * 4,
                  keep == kKeepUnknown ? unknown : dev::ldg128_stream(from + vector * 4));
    }
  }
}

void check_buffers(const FlipBuffers& b) {
  const search::FlipPlan plan = search::plan_flips(b.rules);
  CAE_CHECK(b.rules.num_classes >= 1, "num_classes must be at least 1, got ", b.rules.num_classes);
  CAE_CHECK(b.images > 0, "images must not be negative, got ", b.images);
  const int32_t slots = b.round < 0 ? plan.slots : search::round_slots(b.rules, b.round);
  CAE_CHECK(b.slots >= slots, "the rules need ", slots, " slots per image, got ", b.slots);
  CAE_CHECK(b.max_points >= plan.points, "the rules need room for ", plan.points,
            " points per image, got ", b.max_points);
  CAE_CHECK(static_cast<int64_t>(b.images) * b.slots <= INT32_MAX, "too many slots: ", b.images,
            " x ", b.slots);
}

}  // namespace

void flip_begin(const FlipBeginParams& p, void* stream) {
  if (p.buffers.images == 0) {
    return;
  }
  check_buffers(p.buffers);
  launch(flip_begin_kernel, Grid{p.buffers.images}, 32, 0, stream, p, {p.buffers.overlap});
}

void flip_points(const FlipBuffers& buffers, void* stream) {
  if (buffers.images == 0) {
    return;
  }
  check_buffers(buffers);
  launch(flip_points_kernel, Grid{1}, kPointsThreads, kPointsThreads / 32 * 4, stream, buffers,
         {buffers.overlap});
}

void flip_step(const FlipStepParams& p, void* stream) {
  if (p.buffers.images == 0) {
    return;
  }
  check_buffers(p.buffers);
  CAE_CHECK(p.tiles >= 1, "tiles must be positive, got ", p.tiles);
  launch(p.half_logits ? flip_step_kernel<uint16_t> : flip_step_kernel<float>,
         Grid{p.buffers.images}, 32, 0, stream, p, {p.buffers.overlap});
}

void flip_commit(const FlipCommitParams& p, void* stream) {
  if (p.buffers.images == 0) {
    return;
  }
  check_buffers(p.buffers);
  CAE_CHECK(p.values > 0 && p.values % 4 == 0, "values must be a positive multiple of 4, got ",
            p.values);
  constexpr int64_t kBlockValues = kCommitThreads * kCommitVectors * 4;
  const int64_t blocks = (p.values + kBlockValues - 1) / kBlockValues * p.buffers.images * 2;
  CAE_CHECK(blocks <= INT32_MAX, "images are too large for one launch: ", p.values);
  launch(flip_commit_kernel, Grid{static_cast<int>(blocks)}, kCommitThreads, 0, stream, p,
         {p.buffers.overlap});
}

}  // namespace cae::cuda
