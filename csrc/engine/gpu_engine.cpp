// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_engine.h"

#include <algorithm>

#include "cuda/class_head_cuda.h"
#include "cuda/modulation_cuda.h"
#include "cuda/stream_cuda.h"
#include "engine/gpu_layers.h"

namespace cae::gpu {
namespace {

using cuda::ConvPrologue;

/// Calls body(first, count) for batches of at most `most` rows.
template <class Body>
void in_batches(int64_t count, int64_t most, const Body& body) {
  for (int64_t first = 0; first < count; first += most) {
    body(first, static_cast<int32_t>(std::min(most, count - first)));
  }
}

/// relu(norm(previous)).
LayerInput normalised(const GpuConv& previous, const LayerOutput& output) {
  LayerInput input;
  input.prologue = ConvPrologue::kAffineRelu;
  input.norm = reading(previous.moments.norm, output);
  input.y = output.values;
  return input;
}

template <class T>
T* offset(T* pointer, int64_t by) {
  return pointer == nullptr ? nullptr : pointer + by;
}

}  // namespace

GpuEngine::GpuEngine(const NetworkConfig& config, const WeightMap& weights, int64_t max_batch,
                     int device)
    : network_(build_gpu_network(config, weights, device)), workspace_(network_, max_batch) {}

void GpuEngine::encode_individual_batch(const float* images, int32_t count, uint16_t* stream,
                                        float* individual, Stream queue) {
  const EncodeBuffers& buffers = workspace_.encode;
  for (size_t i = 0; i < network_.individual_convs.size(); ++i) {
    LayerInput input;
    if (i == 0) {
      input.image = images;
    } else {
      input = normalised(network_.individual_convs[i - 1], buffers.individual_convs[i - 1]);
    }
    run_conv(network_.individual_convs[i], input, buffers.individual_convs[i], count, queue);
  }
  int current = 0;
  for (size_t i = 0; i < network_.individual_blocks.size(); i += 2) {
    LayerInput input;
    if (i == 0) {
      input = normalised(network_.individual_convs.back(), buffers.individual_convs.back());
    } else {
      input = normalised(network_.individual_blocks[i - 1], buffers.residual);
      input.prologue = ConvPrologue::kResidual;
      input.stream_in = buffers.streams[current];
      current = 1 - current;
    }
    input.stream_out = buffers.streams[current];
    run_conv(network_.individual_blocks[i], input, buffers.hidden, count, queue);
    run_conv(network_.individual_blocks[i + 1],
             normalised(network_.individual_blocks[i], buffers.hidden), buffers.residual, count,
             queue);
  }
  const GpuConv& last = network_.individual_blocks.back();
  cuda::FinishStreamParams finish;
  finish.rows = count;
  finish.height = last.params.out_height;
  finish.width = last.params.out_width;
  finish.channels = last.params.real_channels;
  finish.norm = reading(last.moments.norm, buffers.residual);
  finish.y = buffers.residual.values;
  finish.stream_in = buffers.streams[current];
  finish.stream = stream;
  finish.image = individual;
  finish.overlap = network_.overlap;
  cuda::finish_stream(finish, queue);
}

void GpuEngine::encode_class_batch(const float* images, int32_t count, float* class_code,
                                   Stream queue) {
  const EncodeBuffers& buffers = workspace_.encode;
  LayerInput input;
  input.image = images;
  for (size_t i = 0; i < network_.class_convs.size(); ++i) {
    run_conv(network_.class_convs[i], input, buffers.class_convs[i], count, queue);
    input.image = nullptr;
    input.y = buffers.class_convs[i].values;
  }
  const GpuConv& last = network_.class_convs.back();
  const cuda::NormInput moments = reading(last.moments.norm, buffers.class_convs.back());
  cuda::ClassHeadParams head;
  head.rows = count;
  head.parts = moments.parts;
  head.channels = network_.head.in;
  head.stored_channels = last.params.out_channels;
  head.code_dim = network_.head.out;
  head.partials = moments.partials;
  head.counts = moments.counts;
  head.total = moments.total;
  head.unscale = network_.head_unscale;
  head.weight = network_.head.weight;
  head.bias = network_.head.bias;
  head.class_code = class_code;
  head.overlap = network_.overlap;
  cuda::class_head(head, queue);
}

void GpuEngine::encode(const float* images, int64_t count, uint16_t* stream, float* individual,
                       float* class_code, Stream queue) {
  const DeviceGuard guard(device());
  const int64_t stream_numel = network_.individual_blocks.back().out_numel();
  in_batches(count, max_batch(), [&](int64_t first, int32_t batch) {
    const float* part = images + first * config().image_numel();
    encode_individual_batch(part, batch, offset(stream, first * stream_numel),
                            offset(individual, first * config().individual_numel()), queue);
    encode_class_batch(part, batch, class_code + first * config().code_dim, queue);
  });
}

void GpuEngine::encode_class(const float* images, int64_t count, float* class_code, Stream queue) {
  const DeviceGuard guard(device());
  in_batches(count, max_batch(), [&](int64_t first, int32_t batch) {
    encode_class_batch(images + first * config().image_numel(), batch,
                       class_code + first * config().code_dim, queue);
  });
}

void GpuEngine::import_individual(const float* individual, int64_t count, uint16_t* stream,
                                  Stream queue) {
  const DeviceGuard guard(device());
  cuda::ImportStreamParams params;
  params.height = params.width = static_cast<int32_t>(config().code_size());
  params.channels = static_cast<int32_t>(config().code_channels());
  params.stored_channels = network_.stored_width();
  params.overlap = network_.overlap;
  const int64_t stream_numel = network_.decoder_blocks.front().out_numel();
  in_batches(count, max_batch(), [&](int64_t first, int32_t batch) {
    params.rows = batch;
    params.in = individual + first * config().individual_numel();
    params.out = stream + first * stream_numel;
    cuda::import_stream(params, queue);
  });
}

void GpuEngine::share(const uint16_t* stream, int64_t count, const LayerOutput& first_conv,
                      Stream queue) {
  const DeviceGuard guard(device());
  const GpuConv& conv = network_.decoder_blocks.front();
  const LayerMoments& moments = conv.moments;
  in_batches(count, max_batch(), [&](int64_t first, int32_t batch) {
    LayerInput input;
    input.y = stream + first * conv.out_numel();
    const LayerOutput output{
        first_conv.values + first * conv.out_numel(),
        first_conv.parts + first * moments.parts * moments.floats_per_part,
        offset(first_conv.merged, first * moments.norm.parts * moments.floats_per_part)};
    run_conv(conv, input, output, batch, queue);
  });
}

void GpuEngine::modulate(const float* class_code, int32_t count, const ModulationBuffers& buffers,
                         Stream queue) {
  const DeviceGuard guard(device());
  const float* x = class_code;
  int64_t stride = config().code_dim;
  for (size_t i = 0; i < network_.modulation.size(); ++i) {
    const GpuLinear& layer = network_.modulation[i];
    const bool last = i + 1 == network_.modulation.size();
    cuda::LinearParams params;
    params.rows = count;
    params.in = layer.in;
    params.out = layer.out;
    params.relu = last ? 0 : 1;
    params.x = x;
    params.x_stride = stride;
    params.weight = layer.weight;
    params.bias = layer.bias;
    params.y = last ? buffers.table : buffers.hidden[i];
    params.overlap = network_.overlap;
    cuda::linear(params, queue);
    x = params.y;
    stride = layer.out;
  }
}

}  // namespace cae::gpu
