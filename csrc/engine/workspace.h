// SPDX-License-Identifier: Apache-2.0
// The buffers that a wave of images passes through, allocated once per engine.
#pragma once

#include <vector>

#include "core/aligned_buffer.h"
#include "engine/network.h"
#include "ops/norm_affine.h"
#include "ops/pad_image.h"

namespace cae {

/// Buffers of one image in flight.
struct WorkspaceSlot {
  AlignedBuffer stream;    // padded residual stream
  AlignedBuffer padded;    // padded input of the next convolution
  AlignedBuffer raw;       // output of the last convolution, [H, W, C]
  AlignedBuffer partials;  // its partial moments
  std::vector<float> scale;
  std::vector<float> shift;
};

/// What all path points of one image share: its individual code as the decoder's first residual
/// convolution wants it, that convolution's output, and the moments of the output.
struct SharedImage {
  AlignedBuffer stream;  // padded channels-last individual code
  AlignedBuffer first;   // [H, W, C] output of decoder.block0.conv0
  ChannelMoments moments;
};

SharedImage make_shared_image(const Network& network);

/// Slots for a wave: as many images as keep the working set near the size of a last-level cache,
/// at most max_batch. Large images go through one by one, each spread over all threads; small ones
/// together.
struct Workspace {
  std::vector<WorkspaceSlot> slots;
  std::vector<SharedImage> shared;  // of a wave, where no session keeps them
  std::vector<float> ones;          // scale of layers without a norm
  AlignedBuffer features;           // [wave, 4w] class encoder before its head
  AlignedBuffer hidden[2];          // [wave, modulation_width]
  AlignedBuffer modulation;         // [wave, modulation_numel]

  int64_t wave() const { return static_cast<int64_t>(slots.size()); }
};

Workspace make_workspace(const Network& network, int64_t max_batch);

/// Runs `plan` from each slot's `padded` (or `stream`) to `raw`, with moments if wanted.
enum class ConvInput { kPadded, kStream };
void run_conv(const ConvPlan& plan, ConvInput input, bool moments,
              std::vector<WorkspaceSlot>& slots, int64_t count);

}  // namespace cae
