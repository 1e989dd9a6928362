// SPDX-License-Identifier: Apache-2.0
// The networks on a GPU: weights packed for its kernels, in its memory.
#pragma once

#include <cstring>
#include <vector>

#include "cuda/conv_pack.h"
#include "cuda/conv_tile_cuda.h"
#include "cuda/gpu_runtime.h"
#include "engine/gpu_tiles.h"
#include "engine/network_spec.h"

namespace cae::gpu {

/// What the layer after a convolution needs to normalise its output. Many parts are merged to few.
struct LayerMoments {
  cuda::NormInput norm;           // all but the pointers of a call
  int32_t parts = 0;              // that the convolution leaves
  const float* counts = nullptr;  // of those
  int64_t floats_per_part = 0;    // of one row
  bool merged() const { return parts != norm.parts; }
};

struct GpuConv {
  cuda::ConvParams params;  // all but the pointers and rows of a call
  LayerMoments moments;
  std::vector<float> scale;  // of each stored output, see conv_pack.h
  int multiprocessors = 1;   // of the GPU
  std::vector<TileStep> tiles;
  bool one_tile = false;  // whatever the rows: see ConvChoice

  /// Halves that one row of the output takes.
  int64_t out_numel() const;
};

struct GpuLinear {
  int32_t in = 0;
  int32_t out = 0;
  const float* weight = nullptr;  // [in][out]
  const float* bias = nullptr;
};

/// Immutable once built.
struct GpuNetwork {
  NetworkConfig config;
  int device = 0;
  bool overlap = false;                    // launches, see choose_overlap()
  std::vector<GpuConv> class_convs;        // conv0 .. conv4
  std::vector<GpuConv> individual_convs;   // conv0 .. conv2
  std::vector<GpuConv> individual_blocks;  // two per block
  std::vector<GpuConv> decoder_blocks;     // two per block
  std::vector<GpuConv> upsamples;          // up0, up1
  std::vector<const uint16_t*> rings;      // of up0, up1
  std::vector<GpuLinear> modulation;       // linear0 .. linear2; rows of the last as modulation_at
  GpuLinear head;                          // weight [out][in]
  const float* head_unscale = nullptr;
  const uint16_t* output_weights = nullptr;
  const float* output_scale = nullptr;
  const float* output_bias = nullptr;

  /// Channels of a residual stream, as stored.
  int32_t stored_width() const { return cuda::stored_channels(config.code_channels()); }
  /// Floats of a modulation row: [block][convolution][shift, scale][stored_width].
  int64_t modulation_row() const { return config.num_blocks * 4 * stored_width(); }
  /// The table with shift and scale behind convolution `conv` of block `block`.
  cuda::NormInput modulated(const GpuConv& conv, int64_t block, int index,
                            const float* table) const;

 private:
  friend GpuNetwork build_gpu_network(const NetworkConfig& config, const WeightMap& weights,
                                      int device);
  template <class T>
  const T* keep(const std::vector<T>& values) {
    buffers_.emplace_back(device, values.size() * sizeof(T));
    copy_to_device(buffers_.back().data(), values.data(), values.size() * sizeof(T), nullptr);
    synchronize(nullptr);  // `values` may go
    buffers_.back().seal();
    return buffers_.back().template as<const T>();
  }
  GpuConv make_conv(cuda::ConvKind kind, cuda::ConvEpilogue epilogue, const WeightMap& weights,
                    const ConvSpec& spec, const std::vector<float>* in_scale);
  void set_moments(GpuConv& conv);
  GpuLinear make_linear(const WeightMap& weights, const std::string& name,
                        const std::vector<int64_t>& places);
  void make_class_encoder(const WeightMap& weights);
  void make_upsample(const WeightMap& weights, const ConvSpec& spec, int index);

  std::vector<DeviceBuffer> buffers_;
};

/// Packs the weights and copies them to the device. Throws std::invalid_argument as check_weights()
/// does or for weights that are not finite, OutOfDeviceMemory where they do not fit.
GpuNetwork build_gpu_network(const NetworkConfig& config, const WeightMap& weights, int device);

}  // namespace cae::gpu
