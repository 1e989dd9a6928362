// SPDX-License-Identifier: Apache-2.0
// Passes a wave of images from layer to layer through the two raw buffers and the two streams of
// its slots.
#pragma once

#include <vector>

#include "engine/workspace.h"

namespace cae {

class LayerChain {
 public:
  /// `count` images in the first slots of the workspace.
  LayerChain(Workspace& workspace, int64_t count) : workspace_(workspace), count_(count) {}

  int64_t count() const { return count_; }
  WorkspaceSlot& slot(int64_t image) { return workspace_.slots[static_cast<size_t>(image)]; }

  /// What the next layer reads of each image: the last output under the slot's scale and shift.
  std::vector<ConvSource> sources(bool relu) {
    std::vector<ConvSource> out;
    for (int64_t i = 0; i < count_; ++i) {
      const WorkspaceSlot& image = slot(i);
      out.push_back(
          {image.raw[last_].data(), image.scale.data(), image.shift.data(), nullptr, relu});
    }
    return out;
  }

  /// The same, added to the stream.
  std::vector<ConvSource> residual_sources() {
    std::vector<ConvSource> out = sources(false);
    for (int64_t i = 0; i < count_; ++i) {
      out[static_cast<size_t>(i)].residual = slot(i).stream[stream_].data();
    }
    return out;
  }

  /// Runs a layer; `keep`: what it reads becomes the stream.
  void run(const ConvLayer& layer, const std::vector<ConvSource>& sources, bool moments,
           bool keep = false) {
    std::vector<LayerImage> images;
    for (int64_t i = 0; i < count_; ++i) {
      WorkspaceSlot& image = slot(i);
      images.push_back({sources[static_cast<size_t>(i)],
                        keep ? image.stream[1 - stream_].data() : nullptr, image.padded.data(),
                        image.raw[1 - last_].data(), moments ? image.partials.data() : nullptr});
    }
    run_layer(layer, images, workspace_.scratch);
    last_ = 1 - last_;
    stream_ = keep ? 1 - stream_ : stream_;
  }

 private:
  Workspace& workspace_;
  int64_t count_;
  int last_ = 1;  // of `raw`; the first layer writes raw[0]
  int stream_ = 0;
};

}  // namespace cae
