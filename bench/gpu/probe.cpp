// SPDX-License-Identifier: Apache-2.0
// The GPU engine behind a C interface that only queues work on the caller's stream: no allocation,
// no host wait, so that the calls can be timed, and captured into a CUDA graph, beside PyTorch's.
// gpu_check.sh builds it into a library; probe.py calls it. Functions return 0, or -1 with the
// reason in probe_error().
#include <algorithm>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/check.h"
#include "engine/gpu_conv_trial.h"
#include "engine/gpu_engine.h"
#include "engine/gpu_layers.h"

namespace {

using cae::gpu::Bump;
using cae::gpu::DeviceBuffer;
using cae::gpu::GpuConv;
using cae::gpu::GpuEngine;
using cae::gpu::LayerOutput;
using cae::gpu::PathPoints;
using cae::gpu::SharedImages;
using cae::gpu::Stream;

thread_local std::string last_error;

template <class Body>
int guarded(const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}

/// An engine and device memory for codes of up to max_batch images.
struct Probe {
  Probe(const cae::NetworkConfig& config, const cae::WeightMap& weights, int64_t max_batch,
        int device)
      : engine(config, weights, max_batch, device) {
    const auto& first = engine.network().decoder_blocks.front();
    uint16_t* stream = nullptr;
    const auto plan = [&](Bump& bump) {
      stream = bump.take<uint16_t>(max_batch * first.out_numel());
      shared.first = cae::gpu::take_output(bump, first, max_batch);
      own_image = bump.take<int32_t>(max_batch);
      first_image = bump.take<int32_t>(max_batch);
    };
    Bump counter(nullptr);
    plan(counter);
    memory = DeviceBuffer(device, counter.used());
    Bump bump(memory.data());
    plan(bump);
    codes = stream;
    shared.stream = stream;
    std::vector<int32_t> rows(static_cast<size_t>(max_batch));
    std::iota(rows.begin(), rows.end(), 0);
    const cae::gpu::DeviceGuard guard(device);
    cae::gpu::copy_to_device(own_image, rows.data(), rows.size() * sizeof(int32_t), nullptr);
    cae::gpu::fill_zero(first_image, rows.size() * sizeof(int32_t), nullptr);
    cae::gpu::synchronize(nullptr);
  }

  void check_count(int64_t count) const {
    CAE_CHECK(count >= 1 && count <= engine.max_batch(), "count must be in 1..", engine.max_batch(),
              ", got ", count);
  }

  void hold(const float* individual, int64_t count, Stream queue) {
    check_count(count);
    engine.import_individual(individual, count, codes, queue);
    engine.share(codes, count, shared.first, queue);
  }

  void decode(const float* class_code, const int32_t* image_index, int64_t count, float* images,
              Stream queue) {
    check_count(count);
    const cae::gpu::DecodeBuffers& buffers = engine.decode_buffers();
    engine.modulate(class_code, static_cast<int32_t>(count), buffers.modulation, queue);
    PathPoints points;
    points.count = static_cast<int32_t>(count);
    points.image_index = image_index;
    points.table = buffers.modulation.table;
    engine.decode(shared, points, images, queue);
  }

  const GpuConv& layer(int index) const {
    CAE_CHECK(index >= 0 && index < kLayers, "layers are 0..", kLayers - 1, ", got ", index);
    const cae::gpu::GpuNetwork& network = engine.network();
    return index == 0 ? network.decoder_blocks[1]
                      : network.upsamples[static_cast<size_t>(index - 1)];
  }

  /// One layer on what the last decode left, as it stands in the decoder.
  void run_layer(int index, int64_t count, cae::cuda::ConvTile tile, Stream queue) {
    check_count(count);
    const cae::gpu::GpuNetwork& network = engine.network();
    const cae::gpu::DecodeBuffers& buffers = engine.decode_buffers();
    const GpuConv& before = index == 2 ? network.upsamples[0] : network.decoder_blocks[0];
    const LayerOutput& input = index == 0   ? buffers.first
                               : index == 1 ? buffers.second
                                            : buffers.upsamples[0];
    const LayerOutput& output = index == 0 ? buffers.second : buffers.upsamples[index - 1];
    cae::cuda::ConvParams p = layer(index).params;
    p.rows = static_cast<int32_t>(count);
    p.tile = tile;
    p.prologue =
        index == 1 ? cae::cuda::ConvPrologue::kResidual : cae::cuda::ConvPrologue::kAffineRelu;
    p.norm = cae::gpu::reading(before.moments.norm, input);
    p.y = input.values;
    p.stream_in = buffers.streams[0];
    if (index > 0) {
      p.ring_rows = buffers.ring_rows[index - 1];
      p.ring_columns = buffers.ring_columns[index - 1];
    }
    p.out = output.values;
    p.partials = output.parts;
    cae::cuda::conv_tile(p, queue);
  }

  static constexpr int kLayers = 3;  // whose tile is chosen: of a block, both upsampling ones

  GpuEngine engine;
  DeviceBuffer memory;
  SharedImages shared;
  uint16_t* codes = nullptr;
  int32_t* own_image = nullptr;    // 0, 1, 2, ...
  int32_t* first_image = nullptr;  // 0, 0, 0, ...
};

}  // namespace

#define PROBE_API extern "C" __attribute__((visibility("default")))

/// Why the last call of this thread failed.
PROBE_API const char* probe_error() { return last_error.c_str(); }

/// `sizes`: image_size, in_channels, channels, num_blocks, code_dim, modulation_width. Weights in
/// host memory: names, data and shapes of four sizes each, of which `ranks` count. Null: failed.
PROBE_API Probe* probe_open(const int64_t* sizes, int count, const char* const* names,
                            const float* const* data, const int64_t* shapes, const int* ranks,
                            int64_t max_batch, int device) {
  Probe* opened = nullptr;
  guarded([&] {
    const cae::NetworkConfig config{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    cae::WeightMap weights;
    for (int i = 0; i < count; ++i) {
      const int64_t* shape = shapes + 4 * static_cast<int64_t>(i);
      weights[names[i]] =
          cae::TensorView<const float>(data[i], std::vector<int64_t>(shape, shape + ranks[i]));
    }
    cae::check_weights(config, weights);
    opened = std::make_unique<Probe>(config, weights, max_batch, device).release();
  });
  return opened;
}

PROBE_API void probe_close(Probe* probe) { delete probe; }

/// images [count][C][S][S] -> individual [count][4w][S/4][S/4], class_code [count][D], as float32;
/// all arrays here and below in device memory.
PROBE_API int probe_encode(Probe* probe, const float* images, int64_t count, float* individual,
                           float* class_code, Stream stream) {
  return guarded(
      [&] { probe->engine.encode(images, count, nullptr, individual, class_code, stream); });
}

/// Point i of image i, everything included: import, first convolution, modulation, decoder.
PROBE_API int probe_decode(Probe* probe, const float* individual, const float* class_code,
                           int64_t count, float* images, Stream stream) {
  return guarded([&] {
    probe->hold(individual, count, stream);
    probe->decode(class_code, probe->own_image, count, images, stream);
  });
}

/// Prepares images for probe_path.
PROBE_API int probe_hold(Probe* probe, const float* individual, int64_t count, Stream stream) {
  return guarded([&] { probe->hold(individual, count, stream); });
}

/// Points of the first held image's path: modulation and decoder.
PROBE_API int probe_path(Probe* probe, const float* class_code, int64_t count, float* images,
                         Stream stream) {
  return guarded([&] { probe->decode(class_code, probe->first_image, count, images, stream); });
}

/// Fails where convolutions by warpgroups in that tile differ from the portable ones.
PROBE_API int probe_tile_agrees(int device, int cluster, int pixels, int columns) {
  return guarded([&] {
    const cae::gpu::ConvAgreement agreement =
        cae::gpu::conv_paths_agree(device, cluster, {{pixels, columns}});
    CAE_CHECK(agreement.wrong.empty(), "clusters of ", cluster, ": ", agreement.wrong);
  });
}

/// Layer `index` of those whose tile is chosen: kind, inputs, columns, height and width in `shape`.
PROBE_API int probe_layer_shape(Probe* probe, int index, int64_t* shape) {
  return guarded([&] {
    const cae::cuda::ConvParams& p = probe->layer(index).params;
    const int64_t sizes[] = {static_cast<int64_t>(p.kind), p.in_channels,
                             cae::cuda::conv_columns(p.epilogue, p.out_channels), p.out_height,
                             p.out_width};
    std::copy(std::begin(sizes), std::end(sizes), shape);
  });
}

/// That layer of `count` images in blocks of so many pixels and columns. A decode came before.
PROBE_API int probe_layer(Probe* probe, int64_t count, int64_t index, int64_t pixels,
                          int64_t columns, Stream stream) {
  return guarded([&] {
    const cae::cuda::ConvTile tile{static_cast<int32_t>(pixels), static_cast<int32_t>(columns)};
    probe->run_layer(static_cast<int>(index), count, tile, stream);
  });
}
