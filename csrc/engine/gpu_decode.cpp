// SPDX-License-Identifier: Apache-2.0
// The decoder on a GPU, and sessions of path points.
#include <algorithm>
#include <map>

#include "cuda/modulation_cuda.h"
#include "cuda/output_conv_cuda.h"
#include "cuda/upsample_ring_cuda.h"
#include "engine/gpu_engine.h"
#include "engine/gpu_layers.h"

namespace cae::gpu {
namespace {

using cuda::ConvPrologue;

/// One decode: the layers in order, each reading what the one before left.
class Decoding {
 public:
  Decoding(const GpuNetwork& network, const DecodeBuffers& buffers, const SharedImages& shared,
           const PathPoints& points, Stream queue)
      : network_(network), buffers_(buffers), shared_(shared), points_(points), queue_(queue) {}

  void run_blocks() {
    const auto blocks = static_cast<int64_t>(network_.decoder_blocks.size()) / 2;
    for (int64_t block = 0; block < blocks; ++block) {
      const LayerOutput* hidden = &shared_.first;  // of the first block: once per image
      if (block > 0) {
        run_conv(conv(block, 0), after_block(block - 1, true), buffers_.first, points_.count,
                 queue_);
        hidden = &buffers_.first;
      }
      LayerInput input = modulated(block, 0, *hidden);
      input.y_row = block == 0 ? points_.image_index : nullptr;
      run_conv(conv(block, 1), input, buffers_.second, points_.count, queue_);
    }
    next_ = after_block(blocks - 1, false);
  }

  void run_upsample(int index) {
    const auto i = static_cast<size_t>(index);
    const GpuConv& up = network_.upsamples[i];
    cuda::UpsampleRingParams ring;
    ring.prologue = next_.prologue;
    ring.rows = points_.count;
    ring.height = up.params.in_height;
    ring.width = up.params.in_width;
    ring.in_channels = up.params.in_channels;
    ring.out_channels = up.params.out_channels;
    ring.real_channels = up.params.real_channels;
    ring.norm = next_.norm;
    ring.y = next_.y;
    ring.stream_in = next_.stream_in;
    ring.weights = network_.rings[i];
    ring.ring_rows = buffers_.ring_rows[i];
    ring.ring_columns = buffers_.ring_columns[i];
    ring.y_row = next_.y_row;
    ring.stream_row = next_.stream_row;
    ring.mod_row = next_.mod_row;
    ring.active = next_.active;
    ring.overlap = network_.overlap;
    cuda::upsample_ring(ring, queue_);
    next_.ring_rows = ring.ring_rows;
    next_.ring_columns = ring.ring_columns;
    run_conv(up, next_, buffers_.upsamples[i], points_.count, queue_);
    next_ = LayerInput();
    next_.prologue = ConvPrologue::kAffineRelu;
    next_.norm = reading(up.moments.norm, buffers_.upsamples[i]);
    next_.y = buffers_.upsamples[i].values;
    next_.active = points_.active;
  }

  void run_output(float* images) {
    cuda::OutputConvParams p;
    p.slots = points_.count;
    p.size = static_cast<int32_t>(network_.config.image_size);
    p.channels = next_.norm.channels;
    p.image_channels = static_cast<int32_t>(network_.config.in_channels);
    p.norm = next_.norm;
    p.raw = next_.y;
    p.weights = network_.output_weights;
    p.scale = network_.output_scale;
    p.bias = network_.output_bias;
    p.images = images;
    p.finite = points_.finite == nullptr ? buffers_.finite : points_.finite;
    p.active = points_.active;
    p.classifier = points_.classifier;
    p.overlap = network_.overlap;
    cuda::output_conv(p, queue_);
  }

 private:
  const GpuConv& conv(int64_t block, int index) const {
    return network_.decoder_blocks[static_cast<size_t>(2 * block + index)];
  }

  /// What convolution `index` of a block left, modulated and through ReLU.
  LayerInput modulated(int64_t block, int index, const LayerOutput& output) const {
    LayerInput input;
    input.prologue = ConvPrologue::kAffineRelu;
    input.norm =
        reading(network_.modulated(conv(block, index), block, index, points_.table), output);
    input.y = output.values;
    input.mod_row = points_.mod_row;
    input.active = points_.active;
    return input;
  }

  /// The residual stream behind a block; kept for the block after it where there is one.
  LayerInput after_block(int64_t block, bool keep) {
    LayerInput input = modulated(block, 1, buffers_.second);
    input.prologue = ConvPrologue::kResidual;
    input.stream_in = block == 0 ? shared_.stream : buffers_.streams[current_];
    input.stream_row = block == 0 ? points_.image_index : nullptr;
    if (keep) {
      current_ = 1 - current_;
      input.stream_out = buffers_.streams[current_];
    }
    return input;
  }

  const GpuNetwork& network_;
  const DecodeBuffers& buffers_;
  const SharedImages& shared_;
  const PathPoints& points_;
  Stream queue_;
  LayerInput next_;
  int current_ = 0;
};

}  // namespace

void GpuEngine::decode(const SharedImages& shared, const PathPoints& points, float* images,
                       Stream queue) {
  const DeviceGuard guard(device());
  Decoding decoding(network_, workspace_.decode, shared, points, queue);
  decoding.run_blocks();
  decoding.run_upsample(0);
  decoding.run_upsample(1);
  decoding.run_output(images);
}

void GpuEngine::decode_codes(const float* individual, int64_t images_count, const float* class_code,
                             const int32_t* image_index, int64_t count, float* images,
                             Stream queue) {
  const DeviceGuard guard(device());
  const DecodeBuffers& buffers = workspace_.decode;
  const int64_t stream_numel = network_.decoder_blocks.front().out_numel();
  for (int64_t m = 0; m < count; ++m) {
    CAE_CHECK(image_index[m] >= 0 && image_index[m] < images_count, "image_index must be in 0..",
              images_count - 1, ", got ", image_index[m]);
  }
  for (int64_t first = 0; first < count; first += max_batch()) {
    const auto batch = static_cast<int32_t>(std::min(max_batch(), count - first));
    std::map<int32_t, int32_t> places;  // of the images of this batch
    std::vector<int32_t> local;
    for (int64_t m = first; m < first + batch; ++m) {
      const auto place = places.emplace(image_index[m], static_cast<int32_t>(places.size()));
      if (place.second) {
        import_individual(individual + image_index[m] * config().individual_numel(), 1,
                          workspace_.stream + place.first->second * stream_numel, queue);
      }
      local.push_back(place.first->second);
    }
    share(workspace_.stream, static_cast<int64_t>(places.size()), workspace_.shared, queue);
    copy_to_device(buffers.image_index, local.data(), local.size() * sizeof(int32_t), queue);
    modulate(class_code + first * config().code_dim, batch, buffers.modulation, queue);
    PathPoints points;
    points.count = batch;
    points.image_index = buffers.image_index;
    points.table = buffers.modulation.table;
    decode({workspace_.stream, workspace_.shared}, points, images + first * config().image_numel(),
           queue);
    synchronize(queue);  // `local` goes
  }
}

GpuSession::GpuSession(std::shared_ptr<GpuEngine> engine, const float* individual, int64_t count,
                       const float* vertices, int32_t vertex_count, int32_t grid, Stream queue)
    : engine_(std::move(engine)), count_(count), vertex_count_(vertex_count), grid_(grid) {
  CAE_CHECK(grid >= 1, "grid must be at least 1, got ", grid);
  CAE_CHECK(vertex_count >= 1 && vertex_count <= cuda::kMaxPathVertices,
            "vertices must be [N, V, D] with V in 1..", cuda::kMaxPathVertices,
            ", got V = ", vertex_count);
  const DeviceGuard guard(engine_->device());
  const GpuConv& first = engine_->network().decoder_blocks.front();
  const int64_t vertex_numel = count * vertex_count * engine_->config().code_dim;
  uint16_t* stream = nullptr;
  const auto plan = [&](Bump& bump) {
    stream = bump.take<uint16_t>(count * first.out_numel());
    shared_.first = take_output(bump, first, count);
    vertices_ = bump.take<float>(vertex_numel);
  };
  Bump counter(nullptr);
  plan(counter);
  memory_ = DeviceBuffer(engine_->device(), counter.used());
  Bump bump(memory_.data());
  plan(bump);
  shared_.stream = stream;
  engine_->import_individual(individual, count, stream, queue);
  engine_->share(stream, count, shared_.first, queue);
  copy_on_device(vertices_, vertices, static_cast<size_t>(vertex_numel) * sizeof(float), queue);
}

void GpuSession::decode(const int32_t* image_index, const int32_t* step, int64_t points,
                        float* images, Stream queue) {
  const DeviceGuard guard(engine_->device());
  const DecodeBuffers& buffers = engine_->decode_buffers();
  for (int64_t m = 0; m < points; ++m) {
    CAE_CHECK(image_index[m] >= 0 && image_index[m] < count_, "image_index must be in 0..",
              count_ - 1, ", got ", image_index[m]);
    CAE_CHECK(step[m] >= 0 && step[m] <= grid_, "step must be in 0..", grid_, ", got ", step[m]);
  }
  for (int64_t first = 0; first < points; first += engine_->max_batch()) {
    const auto batch = static_cast<int32_t>(std::min(engine_->max_batch(), points - first));
    const auto bytes = static_cast<size_t>(batch) * sizeof(int32_t);
    copy_to_device(buffers.image_index, image_index + first, bytes, queue);
    copy_to_device(buffers.step, step + first, bytes, queue);
    cuda::PathCodesParams codes;
    codes.rows = batch;
    codes.vertex_count = vertex_count_;
    codes.code_dim = static_cast<int32_t>(engine_->config().code_dim);
    codes.grid = grid_;
    codes.vertices = vertices_;
    codes.image_index = buffers.image_index;
    codes.step = buffers.step;
    codes.codes = buffers.modulation.codes;
    codes.overlap = engine_->network().overlap;
    cuda::path_codes(codes, queue);
    engine_->modulate(codes.codes, batch, buffers.modulation, queue);
    PathPoints where;
    where.count = batch;
    where.image_index = buffers.image_index;
    where.table = buffers.modulation.table;
    engine_->decode(shared_, where, images + first * engine_->config().image_numel(), queue);
  }
}

}  // namespace cae::gpu
