// SPDX-License-Identifier: Apache-2.0
// The flip search of a batch of images on the device, by the rules of search/flip_search.h. What a
// round does, `k` slots per image:
//   flip_points   which points are decoded: active, step, image_index
//   ...           decoding and classifying of the active slots
//   flip_step     judges them and goes on
//   flip_commit   copies the images that are reported so far
// after flip_begin, as long as `remaining` is not 0; plan_flips(rules).rounds rounds always do. A
// round after the last changes nothing. At least one is needed, also where nothing is searched: the
// reconstruction of an image that is the target class already is decoded with the first.
#pragma once

#include <cstdint>

#include "search/flip_search.h"

namespace cae::cuda {

/// `wanted` besides a class and search::kAnyTarget: the class other than the source class with the
/// highest logit among the reachable ones; among all, where the source class alone is reachable;
/// kAnyTarget where the source class is unknown or there is no other.
constexpr int32_t kRunnerUp = -2;

/// What flip_commit does for an image instead of copying a slot.
constexpr int32_t kKeepNothing = -1;  // leaves what is there
constexpr int32_t kKeepUnknown = -2;  // fills with NaN
constexpr int32_t kKeepInput = -3;    // copies the input image

/// Device memory of a search of N images with k slots each; slot = first_slot[image] + point.
/// Rounds may have another k each: flip_points, flip_step and flip_commit of a round are given the
/// same.
struct FlipBuffers {
  search::FlipRules rules{};            // valid, see search/flip_search_host.h
  int32_t images = 0;                   // N
  int32_t slots = 0;                    // k, at least round_slots(rules, round), or for any round
                                        // plan_flips(rules).slots
  int32_t round = -1;                   // that `slots` are of; -1: any
  bool packed = false;                  // the active slots are the first of all; else those of an
                                        // image begin at image * k
  int32_t max_points = 0;               // at least plan_flips(rules).points
  search::FlipState* states = nullptr;  // [N]. `evaluations` counts the reconstruction of an image
                                        // that is the target class already
  int32_t* first_slot = nullptr;        // [N]
  int32_t* image_index = nullptr;       // [N k] image of a slot; of one not active: some image
  int32_t* step = nullptr;              // [N k] step, 0 where not active
  int32_t* active = nullptr;            // [N k] 1 where the point is needed, else 0
  int32_t* grid_row = nullptr;          // [N k] image * (grid + 1) + step; null: not wanted
  int32_t* remaining = nullptr;         // [1] active slots
  int32_t* keep_slot = nullptr;   // [N] slot that is now the reported one, or kKeepNothing, ...
  int32_t* start_slot = nullptr;  // [N] slot of step 0, or kKeepNothing or kKeepUnknown
  int32_t* path_count = nullptr;  // [N] points classified
  int32_t* path_step = nullptr;   // [N][max_points], in the order asked for
  float* path_logits = nullptr;   // [N][max_points][K]; NaN where the picture is not finite
  float* logits_counterfactual = nullptr;  // [N][K] of the reported point; NaN without one
  bool overlap = false;                    // LaunchOptions, of all four kernels
};

struct FlipBeginParams {
  FlipBuffers buffers;
  const float* logits_source = nullptr;  // [N][K] of the images themselves
  const float* class_codes = nullptr;    // [N][code_dim]; null: not looked at
  int32_t code_dim = 0;
  const int32_t* wanted = nullptr;     // [N] class, search::kAnyTarget or kRunnerUp
  const int32_t* reachable = nullptr;  // [K] 0: no runner-up; null: all are reachable
  const int32_t* left_out = nullptr;   // [N] not 0: not searched; null: all are
};

struct FlipStepParams {
  FlipBuffers buffers;
  const void* logits = nullptr;     // [N k][K] of the round's slots
  bool half_logits = false;         // half, else float
  const int32_t* finite = nullptr;  // [N k][tiles]: a slot with a 0 counts as NaN logits
  int32_t tiles = 0;
};

struct FlipCommitParams {
  FlipBuffers buffers;
  int64_t values = 0;               // of an image, a multiple of 4
  const float* decoded = nullptr;   // [N k][values] of the round's slots
  const float* inputs = nullptr;    // [N][values]
  float* counterfactual = nullptr;  // [N][values] at the reported point; the input where it is the
                                    // target class already; NaN where the search is non_finite
  float* reconstruction = nullptr;  // [N][values] at step 0; NaN where that was not decoded
};

/// Starts the searches. An image is not searched (status kNonFinite) if it is left out, or its
/// logits or class code are not finite. logits_counterfactual is that of the image where it is the
/// target class already, else NaN; histories are empty.
void flip_begin(const FlipBeginParams& params, void* stream);

/// Writes first_slot, image_index, step, active, grid_row and remaining.
void flip_points(const FlipBuffers& buffers, void* stream);

/// Takes the logits of the points that flip_points named. Writes states, keep_slot, start_slot,
/// histories and logits_counterfactual. Logits of slots that are not active are not read: where
/// slots are packed, rows behind the last active one need not be there.
void flip_step(const FlipStepParams& params, void* stream);

/// Writes what keep_slot and start_slot say.
void flip_commit(const FlipCommitParams& params, void* stream);

// All launch on `stream`, a cudaStream_t, and return at once for no images. They throw
// std::invalid_argument if sizes do not fit each other, std::runtime_error if a launch is refused.

}  // namespace cae::cuda
