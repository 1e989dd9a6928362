// SPDX-License-Identifier: Apache-2.0
// Engine: encodes images and decodes codes with one model on the CPU.
#pragma once

#include <memory>
#include <vector>

#include "engine/network.h"
#include "engine/workspace.h"

namespace cae {

/// Immutable after construction but for its workspace, which calls take in turns: calls from
/// several threads are served fairly, a wave of images at a time. A result does not depend on the
/// other images of a call, on the number of threads, or on max_batch.
class Engine {
 public:
  /// `max_batch` >= 1 bounds the images in flight and with them the workspace.
  Engine(const NetworkConfig& config, const WeightMap& weights, int64_t max_batch,
         Arithmetic arithmetic = Arithmetic::kFast);

  const NetworkConfig& config() const { return network_.config; }

  /// images [N, C, S, S] -> individual [N, 4w, S/4, S/4], class_code [N, D].
  void encode(const TensorView<const float>& images, const TensorView<float>& individual,
              const TensorView<float>& class_code);

  /// images [N, C, S, S] -> class_code [N, D], equal to what encode() gives.
  void encode_class(const TensorView<const float>& images, const TensorView<float>& class_code);

  /// individual [N, 4w, S/4, S/4] recombined with class_code [M, D]: point m decodes image
  /// image_index[m] -> images [M, C, S, S].
  void decode(const TensorView<const float>& individual, const TensorView<const float>& class_code,
              const TensorView<const int32_t>& image_index, const TensorView<float>& images);

  /// Computes what the path points of each image share; individual [N, 4w, S/4, S/4].
  std::vector<SharedImage> share(const TensorView<const float>& individual);

  /// Decodes points[m] with class_code[m], [M, D] -> images [M, C, S, S].
  void decode_points(const std::vector<const SharedImage*>& points, const float* class_code,
                     float* images);

  void check_individual(const std::vector<int64_t>& shape) const;
  void check_images(const std::vector<int64_t>& shape) const;

 private:
  void encode_individual_wave(const float* images, int64_t count, float* individual);
  void encode_class_wave(const float* images, int64_t count, float* class_code);
  void share_wave(const std::vector<const float*>& individual,
                  const std::vector<SharedImage*>& images);
  void decode_wave(const SharedImage* const* points, int64_t count, const float* class_code,
                   float* images);

  Network network_;
  Workspace workspace_;
};

/// Path points of a fixed set of images: keeps what they share. Memory: two individual codes per
/// image. Safe to use from several threads.
class DecodeSession {
 public:
  /// individual [N, 4w, S/4, S/4]; vertices [N, V, D] of each image's path; grid >= 1 steps.
  DecodeSession(std::shared_ptr<Engine> engine, const TensorView<const float>& individual,
                const TensorView<const float>& vertices, int64_t grid);

  const Engine& engine() const { return *engine_; }

  /// image_index [M], step [M] in [0, grid] -> images [M, C, S, S].
  void decode(const TensorView<const int32_t>& image_index, const TensorView<const int32_t>& step,
              const TensorView<float>& images);

 private:
  std::shared_ptr<Engine> engine_;
  std::vector<float> vertices_;
  std::vector<int64_t> vertices_shape_;
  int64_t grid_;
  std::vector<SharedImage> images_;
};

}  // namespace cae
