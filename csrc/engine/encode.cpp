// SPDX-License-Identifier: Apache-2.0
// The two encoders.
#include <algorithm>

#include "cpu/parallel_cpu.h"
#include "engine/engine.h"

namespace cae {
namespace {

/// Instance norm of the last convolution's output, written as the next one's padded input.
/// `stream`: onto the residual stream, which is added to if `add`; else to `padded` with a ReLU.
void normalise(const ConvPlan& plan, const PaddedShape& next, bool stream, bool relu, bool add,
               std::vector<WorkspaceSlot>& slots, int64_t count) {
  std::vector<PadImage> images;
  for (int64_t i = 0; i < count; ++i) {
    WorkspaceSlot& slot = slots[static_cast<size_t>(i)];
    instance_norm_affine(merge_moments(plan, slot.partials.data()), slot.scale.data(),
                         slot.shift.data());
    float* out = stream ? slot.stream.data() : slot.padded.data();
    images.push_back(
        {slot.raw.data(), slot.scale.data(), slot.shift.data(), add ? out : nullptr, out, relu});
  }
  pad_image(next, images);
}

void load_images(const PaddedShape& shape, const float* images, std::vector<WorkspaceSlot>& slots,
                 int64_t count) {
  std::vector<PadPlanes> pads;
  for (int64_t i = 0; i < count; ++i) {
    pads.push_back({images + i * shape.channels * shape.height * shape.width,
                    slots[static_cast<size_t>(i)].padded.data()});
  }
  pad_planes(shape, pads);
}

}  // namespace

void Engine::encode(const TensorView<const float>& images, const TensorView<float>& individual,
                    const TensorView<float>& class_code) {
  check_images(images.shape);
  const int64_t count = images.dim(0);
  for (int64_t first = 0; first < count; first += workspace_.wave()) {
    const cpu::PoolTurn turn;
    const int64_t wave = std::min(workspace_.wave(), count - first);
    const float* from = images.data + first * config().image_numel();
    encode_individual_wave(from, wave, individual.data + first * config().individual_numel());
    encode_class_wave(from, wave, class_code.data + first * config().code_dim);
  }
}

void Engine::encode_class(const TensorView<const float>& images,
                          const TensorView<float>& class_code) {
  check_images(images.shape);
  const int64_t count = images.dim(0);
  for (int64_t first = 0; first < count; first += workspace_.wave()) {
    const cpu::PoolTurn turn;
    encode_class_wave(images.data + first * config().image_numel(),
                      std::min(workspace_.wave(), count - first),
                      class_code.data + first * config().code_dim);
  }
}

void Engine::encode_individual_wave(const float* images, int64_t count, float* individual) {
  std::vector<WorkspaceSlot>& slots = workspace_.slots;
  const auto& convs = network_.individual_convs;
  const auto& blocks = network_.individual_blocks;
  load_images(convs[0].in, images, slots, count);
  for (size_t i = 0; i < convs.size(); ++i) {
    run_conv(convs[i], ConvInput::kPadded, true, slots, count);
    const bool last = i + 1 == convs.size();
    normalise(convs[i], last ? blocks[0].in : convs[i + 1].in, last, true, false, slots, count);
  }
  for (size_t i = 0; i < blocks.size(); i += 2) {
    run_conv(blocks[i], ConvInput::kStream, true, slots, count);
    normalise(blocks[i], blocks[i + 1].in, false, true, false, slots, count);
    run_conv(blocks[i + 1], ConvInput::kPadded, true, slots, count);
    normalise(blocks[i + 1], blocks[i].in, true, false, true, slots, count);
  }
  std::vector<const float*> streams;
  for (int64_t i = 0; i < count; ++i) {
    streams.push_back(slots[static_cast<size_t>(i)].stream.data());
  }
  unpad_planes(blocks[0].in, streams, individual);
}

void Engine::encode_class_wave(const float* images, int64_t count, float* class_code) {
  std::vector<WorkspaceSlot>& slots = workspace_.slots;
  const auto& convs = network_.class_convs;
  load_images(convs[0].plan.in, images, slots, count);
  for (size_t i = 0; i < convs.size(); ++i) {
    run_conv(convs[i].plan, ConvInput::kPadded, false, slots, count);
    if (i + 1 == convs.size()) {
      break;
    }
    std::vector<PadImage> pads;
    for (int64_t n = 0; n < count; ++n) {
      WorkspaceSlot& slot = slots[static_cast<size_t>(n)];
      pads.push_back({slot.raw.data(), workspace_.ones.data(), convs[i].bias.data(), nullptr,
                      slot.padded.data(), true});
    }
    pad_image(convs[i + 1].plan.in, pads);
  }
  const ConvPlan& last = convs.back().plan;
  std::vector<const float*> raws;
  for (int64_t i = 0; i < count; ++i) {
    raws.push_back(slots[static_cast<size_t>(i)].raw.data());
  }
  // the mean over pixels and the 1x1 head are both linear, so the mean goes first
  relu_mean({last.out_height, last.out_width, last.out_channels, 0, Padding::kReflect}, raws,
            convs.back().bias.data(), workspace_.features.data());
  linear(network_.class_head, workspace_.features.data(), count, false, class_code);
}

}  // namespace cae
