// SPDX-License-Identifier: Apache-2.0
// GpuEngine: encodes images and decodes codes with one model on a GPU, or in the emulator. Every
// pointer is device memory and every call only queues work on a stream.
#pragma once

#include <memory>
#include <mutex>

#include "cuda/output_conv_cuda.h"
#include "engine/gpu_workspace.h"

namespace cae::gpu {

/// Points that are decoded together, device memory.
struct PathPoints {
  int32_t count = 0;
  const int32_t* image_index = nullptr;  // [count] row of `SharedImages`
  const int32_t* active = nullptr;       // [count], 0: left out; null: all
  const float* table = nullptr;          // modulation rows
  const int32_t* mod_row = nullptr;      // [count] row of the table; null: the point itself
  int32_t* finite = nullptr;  // [count][tiles of the output] 1 where all pixels are; null: not kept
  cuda::ClassifierInput classifier;  // what a classifier gets of them, where it has `values`
};

/// Individual codes and what all points of an image share, device memory.
struct SharedImages {
  const uint16_t* stream = nullptr;  // [N] individual codes, half NHWC
  LayerOutput first;                 // [N] first convolution of the decoder
};

/// Calls must not overlap: hold `turn()` while queueing, and use one stream at a time or order
/// streams by events.
class GpuEngine {
 public:
  /// `max_batch` >= 1 bounds the rows in flight and with them the workspace.
  GpuEngine(const NetworkConfig& config, const WeightMap& weights, int64_t max_batch, int device);

  const GpuNetwork& network() const { return network_; }
  const NetworkConfig& config() const { return network_.config; }
  int64_t max_batch() const { return workspace_.rows; }
  int device() const { return network_.device; }
  std::mutex& turn() { return turn_; }
  const DecodeBuffers& decode_buffers() const { return workspace_.decode; }

  /// images [count][C][S][S] -> class_code [count][D], and the individual codes as halves for the
  /// decoder (`stream`) and as float32 [count][4w][S/4][S/4] (`individual`), either may be null.
  /// Any count.
  void encode(const float* images, int64_t count, uint16_t* stream, float* individual,
              float* class_code, Stream queue);

  /// The class codes of encode() alone.
  void encode_class(const float* images, int64_t count, float* class_code, Stream queue);

  /// individual [count][4w][S/4][S/4] float32 -> halves.
  void import_individual(const float* individual, int64_t count, uint16_t* stream, Stream queue);

  /// stream [count] -> what decode() needs of it. Any count.
  void share(const uint16_t* stream, int64_t count, const LayerOutput& first, Stream queue);

  /// class_code [count][D] -> the table of `buffers`, all rows at once; as many as those have.
  void modulate(const float* class_code, int32_t count, const ModulationBuffers& buffers,
                Stream queue);

  /// Decodes at most max_batch points -> images [count][C][S][S].
  void decode(const SharedImages& shared, const PathPoints& points, float* images, Stream queue);

  /// individual [N] float32 recombined with class_code [count][D] by image_index [count], which is
  /// host memory -> images [count][C][S][S]. Any count.
  void decode_codes(const float* individual, int64_t images_count, const float* class_code,
                    const int32_t* image_index, int64_t count, float* images, Stream queue);

 private:
  void encode_individual_batch(const float* images, int32_t count, uint16_t* stream,
                               float* individual, Stream queue);
  void encode_class_batch(const float* images, int32_t count, float* class_code, Stream queue);

  GpuNetwork network_;
  GpuWorkspace workspace_;
  std::mutex turn_;
};

/// Path points of a fixed set of images.
class GpuSession {
 public:
  /// individual [N][4w][S/4][S/4] and vertices [N][V][D], float32 in device memory.
  GpuSession(std::shared_ptr<GpuEngine> engine, const float* individual, int64_t count,
             const float* vertices, int32_t vertex_count, int32_t grid, Stream queue);

  GpuEngine& engine() const { return *engine_; }
  int64_t count() const { return count_; }
  int32_t grid() const { return grid_; }

  /// image_index and step [points] in host memory -> images [points][C][S][S].
  void decode(const int32_t* image_index, const int32_t* step, int64_t points, float* images,
              Stream queue);

 private:
  std::shared_ptr<GpuEngine> engine_;
  int64_t count_;
  int32_t vertex_count_;
  int32_t grid_;
  DeviceBuffer memory_;
  SharedImages shared_;
  float* vertices_ = nullptr;
};

}  // namespace cae::gpu
