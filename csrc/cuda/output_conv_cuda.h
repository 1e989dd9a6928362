// SPDX-License-Identifier: Apache-2.0
// The decoder's last layer on tensor cores: normalise, ReLU, reflect by 3, convolve 7x7 to the few
// channels of an image, add the bias, tanh; in the same pass what a classifier gets of the image,
// and its difference to another one.
#pragma once

#include <cstdint>
#include <vector>

#include "core/host_device.h"
#include "cuda/norm_input.h"

namespace cae::cuda {

constexpr int kOutputTaps = 7;  // of the filter, along an axis
constexpr int kOutputTileHeight = 8;
constexpr int kMaxImageChannels = 4;

/// Weights as output_conv reads them: halves in the order in which lanes hold them as operands.
struct PackedOutputConv {
  int32_t channels = 0;        // as stored: those of the layer, rounded up to a multiple of 8
  int32_t image_channels = 0;  // 1 .. kMaxImageChannels
  std::vector<uint16_t> weights;
  std::vector<float> scale;  // [image_channels] powers of two that undo the scaling of the halves
  std::vector<float> bias;   // [image_channels]
};

/// weight [image_channels][channels][7][7], bias [image_channels]. The weights of each output are
/// scaled by a power of two so that the largest is in [1, 2): none overflows, and none that matters
/// is subnormal. Throws std::invalid_argument for sizes out of range or weights that are not
/// finite.
PackedOutputConv pack_output_conv(const float* weight, const float* bias, int64_t image_channels,
                                  int64_t channels);

/// What a classifier gets of the images. `normalise`: ((pixel + 1) / 2 - mean) / std_dev, every
/// step rounded to float32, as cae_fast.Classifier computes it; then rounded to halves where it
/// takes those.
struct ClassifierInput {
  void* values = nullptr;  // [slots][channels][S][S], or [slots][S][S][channels]; null: not wanted
  int32_t channels = 0;    // image_channels; 3 where that is 1: grey, three times
  bool half = false;       // else float
  bool channels_last = false;
  bool normalise = false;
  float mean[kMaxImageChannels] = {};  // by channel
  float std_dev[kMaxImageChannels] = {};
};

/// Device pointers. Each slot is computed alone: its result depends on no other slot.
struct OutputConvParams {
  int32_t slots = 0;
  int32_t size = 0;                   // S: height and width, a multiple of 4, at least 16
  int32_t channels = 0;               // as stored, a multiple of 8; norm.channels is the same
  int32_t image_channels = 0;         // 1 .. kMaxImageChannels
  NormInput norm;                     // its rows, and those of gamma and beta, are slots
  const uint16_t* raw = nullptr;      // [slots][S][S][channels] half
  const uint16_t* weights = nullptr;  // of PackedOutputConv
  const float* scale = nullptr;       // of PackedOutputConv
  const float* bias = nullptr;        // of PackedOutputConv
  float* images = nullptr;            // [slots][image_channels][S][S], in [-1, 1] or NaN
  int32_t* finite = nullptr;          // [slots][output_tiles(S)]: 1 where all pixels are finite
  ClassifierInput classifier;
  const float* reference = nullptr;        // [..][image_channels][S][S]; null: no differences
  const int32_t* reference_row = nullptr;  // [slots] row of `reference`; null: the slot itself
  float* difference = nullptr;             // [slots][image_channels][S][S]: image - reference
  const int32_t* active = nullptr;         // [slots], 0: nothing is written; null: all
  bool overlap = false;                    // LaunchOptions
};

/// Width of a block's tile. Only its time depends on it, not what it computes.
CAE_HD constexpr int output_tile_width(int size) { return size >= 192 ? 64 : 16; }
CAE_HD constexpr int output_tiles(int size) {
  return (size + kOutputTileHeight - 1) / kOutputTileHeight *
         ((size + output_tile_width(size) - 1) / output_tile_width(size));
}

/// Launches on `stream`, a cudaStream_t; returns at once for no slots. Throws std::invalid_argument
/// if sizes are out of range or do not fit each other, std::runtime_error if the launch is refused.
void output_conv(const OutputConvParams& params, void* stream);

}  // namespace cae::cuda
