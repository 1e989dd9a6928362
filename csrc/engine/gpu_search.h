// SPDX-License-Identifier: Apache-2.0
// The whole explanation of a fixed number of images on a GPU: encode, choose exemplars, decode path
// points, step the search, take the saliency. Every call only queues work, the number of rounds is
// known beforehand, and all memory is planned at once: the calls of a search may be captured in a
// graph and replayed. Only the classifier is the caller's.
#pragma once

#include <memory>

#include "cuda/flip_step_cuda.h"
#include "engine/gpu_engine.h"

namespace cae::gpu {

/// Bank rows on the device, shared by searches.
struct DeviceBank {
  DeviceBank(int device, const float* codes, const int32_t* classes, int64_t rows,
             int64_t code_dim);

  int64_t rows;
  int64_t code_dim;
  DeviceBuffer codes;    // [rows][code_dim]
  DeviceBuffer classes;  // [rows] int32, negative: not to be used
};

struct SearchPlan {
  search::FlipRules rules;
  int32_t images = 0;                // N, at least 1
  int32_t vertices = 2;              // V of each path; 2: from the image's code to its exemplars'
  int32_t exemplars = 1;             // k bank rows averaged
  double reach = 1.0;                // how far beyond them a path leads, NearestParams
  bool against_image = false;        // differences are to the image, not to its reconstruction
  cuda::ClassifierInput classifier;  // how it wants points, all but `values`; 0 channels: as images
  bool packed = false;     // points that a round needs are the first: others need not be decoded
  bool elsewhere = false;  // encoders and decoder are the caller's: see place(); no `classifier`
};

struct MemoryRange {
  char* data;  // device memory
  size_t bytes;
};

class GpuSearch {
 public:
  /// `bank` may be null: then ends of the paths are given. Throws std::invalid_argument for rules
  /// out of range, OutOfDeviceMemory.
  GpuSearch(std::shared_ptr<GpuEngine> engine, const SearchPlan& plan,
            std::shared_ptr<const DeviceBank> bank);

  GpuEngine& engine() const { return *engine_; }
  const SearchPlan& plan() const { return plan_; }
  int32_t slots() const { return flips_.slots; }
  int32_t rounds() const { return rounds_; }
  /// The stream that images() or points() were last queued on.
  Stream queue() const { return queue_; }
  void set_queue(Stream queue) { queue_ = queue; }
  int32_t max_points() const { return flips_.max_points; }

  // What the caller fills before begin(), device memory; all but the images lie one behind the
  // other:
  float* images() const { return images_; }          // [N][C][S][S]
  int32_t* wanted() const { return wanted_; }        // [N] class, -1 any, -2 runner-up
  int32_t* left_out() const { return left_out_; }    // [N] not 0: not searched
  int32_t* reachable() const { return reachable_; }  // [K]
  float* paths() const { return vertices_; }         // [N][V][D]: given() only
  MemoryRange settings(bool with_paths) const {
    const size_t end = with_paths ? settings_end_ : paths_at_;
    return {memory_.as<char>() + settings_at_, end - settings_at_};
  }
  // What it reads:
  float* points() const { return points_; }  // [round_points][C][S][S] of the last round
  void* classifier_input() const { return classifier_input_; }  // of them; null: as they are
  const cuda::FlipBuffers& flips() const { return flips_; }
  float* counterfactual() const { return counterfactual_; }  // [N][C][S][S]
  float* reconstruction() const { return reconstruction_; }
  float* difference() const { return difference_; }
  float* saliency() const { return saliency_; }      // [N][S][S]
  int32_t* exemplars() const { return exemplars_; }  // [N][k] bank rows, -1 where none was needed
  int32_t* missing() const { return missing_; }      // [N] rows that the bank has too few, or null
  float* class_codes() const { return codes_; }      // [N][D]
  /// Where all results but images lie, one behind the other: one copy reads them.
  MemoryRange report() const { return {memory_.as<char>() + report_at_, report_end_ - report_at_}; }
  // What the caller fills where the networks are elsewhere, besides class_codes() before begin():
  int32_t* finite() const { return finite_; }                // [N k] 1 where all pixels are finite
  const float* point_codes() const { return point_codes_; }  // [N k][D] that it is to decode

  /// Encodes the images and starts the search from their logits [N][K]. With `given`, paths()
  /// holds the polylines, of which the first vertex is replaced by the image's own code.
  void begin(const float* logits, bool given, Stream queue);
  /// Points that round `round` decodes: of each image as many as that round can need, slots() at
  /// most, one image behind the other. Throws std::invalid_argument for a round outside
  /// [0, rounds()), as do decode(), place() and, in the bindings, step().
  int32_t round_points(int32_t round) const;
  /// Decodes the first `count` points of round `round`, in [0, rounds()): round_points(), or, where
  /// slots are packed, at least flips().remaining. Throws std::invalid_argument for a count outside
  /// [1, round_points], or of packed slots alone below it.
  void decode(int32_t round, int32_t count, Stream queue);
  /// Instead of decode() where the networks are elsewhere: writes the class codes of these points
  /// to point_codes(); of which images they are is in flips().image_index. The caller decodes them
  /// into points() and finite().
  void place(int32_t round, int32_t count, Stream queue);
  /// Points of the last decode() or place(), 0 before the first.
  int32_t decoded() const { return decoded_; }
  /// Takes their logits [decoded][K], float or half.
  void step(int32_t round, const void* logits, bool half, Stream queue);
  /// Differences and saliency maps.
  void finish(Stream queue);

 private:
  void plan_memory(Bump& bump);
  void plan_networks(Bump& bump);
  void plan_settings(Bump& bump);
  void plan_report(Bump& bump);
  int64_t classifier_bytes() const;  // of one point
  cuda::FlipBuffers in_round(int32_t round) const;
  void choose_count(int32_t round, int32_t count);
  void join_paths(bool given, Stream queue);
  /// Class codes of `rows` points, of whichever (`image_index` null) the whole grid has.
  void write_codes(int64_t rows, const int32_t* image_index, const int32_t* step, float* codes,
                   Stream queue);
  /// Modulation of `rows` points: of a round, or (`image_index` null) of the whole grid.
  void make_table(int64_t rows, const int32_t* image_index, const int32_t* step, Stream queue);

  std::shared_ptr<GpuEngine> engine_;
  SearchPlan plan_;
  std::shared_ptr<const DeviceBank> bank_;
  size_t settings_at_ = 0;  // offsets into memory_
  size_t paths_at_ = 0;
  size_t settings_end_ = 0;
  size_t report_at_ = 0;
  size_t report_end_ = 0;
  int32_t rounds_ = 0;
  int32_t decoded_ = 0;
  bool whole_grid_ = false;  // its modulation is made once, in begin()
  Stream queue_ = nullptr;
  DeviceBuffer memory_;
  cuda::FlipBuffers flips_;
  SharedImages shared_;
  ModulationBuffers modulation_;
  uint16_t* stream_ = nullptr;
  float* images_ = nullptr;
  float* points_ = nullptr;
  char* classifier_input_ = nullptr;
  float* codes_ = nullptr;
  float* ends_ = nullptr;
  float* vertices_ = nullptr;
  float* counterfactual_ = nullptr;
  float* reconstruction_ = nullptr;
  float* difference_ = nullptr;
  float* saliency_ = nullptr;
  int32_t* wanted_ = nullptr;
  int32_t* left_out_ = nullptr;
  int32_t* reachable_ = nullptr;
  int32_t* exemplars_ = nullptr;
  int32_t* missing_ = nullptr;  // [N] bank rows that a class has too few
  char* nearest_workspace_ = nullptr;
  float* saliency_workspace_ = nullptr;
  float* point_codes_ = nullptr;
  int32_t* finite_ = nullptr;  // [N k][tiles]
  int32_t tiles_ = 1;          // of a picture, of each of which it is kept whether it is finite
};

}  // namespace cae::gpu
