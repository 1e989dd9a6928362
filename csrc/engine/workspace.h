// SPDX-License-Identifier: Apache-2.0
// The buffers that a wave of images passes through, allocated once per engine.
#pragma once

#include <vector>

#include "core/aligned_buffer.h"
#include "engine/network.h"
#include "ops/norm_affine.h"

namespace cae {

/// Buffers of one image in flight. A layer reads one of `raw` and writes the other, and reads one
/// of `stream` and writes the other.
struct WorkspaceSlot {
  AlignedBuffer raw[2];     // outputs of convolutions, [H, W, C]
  AlignedBuffer stream[2];  // residual stream, [H, W, C]
  AlignedBuffer padded;     // padded input of a direct convolution
  AlignedBuffer partials;   // partial moments of the last convolution
  std::vector<float> scale;
  std::vector<float> shift;
};

/// What all path points of one image share: its individual code as channels-last stream, the output
/// of the decoder's first residual convolution on it, and the moments of that.
struct SharedImage {
  AlignedBuffer stream;  // [H, W, C]
  AlignedBuffer first;   // [H, W, C], output of decoder.block0.conv0
  ChannelMoments moments;
};

SharedImage make_shared_image(const Network& network);

/// Slots for a wave: as many images as keep the working set near the size of a last-level cache,
/// at most max_batch. Large images go through one by one, each spread over all threads; small ones
/// together.
struct Workspace {
  std::vector<WorkspaceSlot> slots;
  std::vector<SharedImage> shared;  // of a wave, where no session keeps them
  Scratch scratch;
  std::vector<float> ones;   // scale of layers without a norm
  std::vector<float> zeros;  // and their shift without a bias
  AlignedBuffer features;    // [wave, 4w] class encoder before its head
  AlignedBuffer hidden[2];   // [wave, modulation_width]
  AlignedBuffer modulation;  // [wave, modulation_numel]

  int64_t wave() const { return static_cast<int64_t>(slots.size()); }
};

Workspace make_workspace(const Network& network, int64_t max_batch);

}  // namespace cae
