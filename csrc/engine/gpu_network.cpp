// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_network.h"

#include <algorithm>
#include <utility>

#include "cuda/moments_cuda.h"
#include "cuda/output_conv_cuda.h"
#include "cuda/upsample_ring_pack.h"
#include "engine/gpu_conv_choice.h"

namespace cae::gpu {
namespace {

using cuda::ConvEpilogue;
using cuda::ConvKind;
using cuda::NormKind;

constexpr float kNormEpsilon = 1e-5F;
// Every block of the next layer reads all parts; above this many a kernel merges them first.
constexpr int32_t kMostParts = 64;
constexpr int32_t kMergedParts = 16;
// A block keeps scale and shift of all channels beside its patches: no more fit in the 99 KB that
// every GPU since compute capability 8.0 has.
constexpr int64_t kMostWidth = 512;

/// Pixels of each tile that lie inside the image.
std::vector<float> tile_counts(int height, int width) {
  std::vector<float> counts;
  for (int y = 0; y < height; y += cuda::kConvTileHeight) {
    for (int x = 0; x < width; x += cuda::kConvTileWidth) {
      counts.push_back(static_cast<float>(std::min(cuda::kConvTileHeight, height - y) *
                                          std::min(cuda::kConvTileWidth, width - x)));
    }
  }
  return counts;
}

/// Columns of each piece of an upsampling product that are no padding.
std::vector<float> piece_columns(const cuda::ConvParams& p) {
  const int columns = cuda::conv_columns(p.epilogue, p.out_channels);
  std::vector<float> real(static_cast<size_t>(cuda::conv_pieces(columns)), 0.0F);
  for (int n = 0; n < columns; ++n) {
    real[static_cast<size_t>(n / cuda::kConvColumns)] +=
        n % p.out_channels < p.real_channels ? 1.0F : 0.0F;
  }
  return real;
}

float sum_of(const std::vector<float>& values) {
  double sum = 0.0;
  for (const float v : values) {
    sum += v;
  }
  return static_cast<float>(sum);
}

/// [columns of all pieces]: each output's value, scaled, zero for padding; the same in each phase.
std::vector<float> pad_bias(const GpuConv& conv, const float* bias) {
  const cuda::ConvParams& p = conv.params;
  const int columns = cuda::conv_columns(p.epilogue, p.out_channels);
  std::vector<float> padded(static_cast<size_t>(cuda::conv_pieces(columns)) * cuda::kConvColumns,
                            0.0F);
  for (int n = 0; n < columns; ++n) {
    const int o = n % p.out_channels;
    if (o < p.real_channels) {
      padded[static_cast<size_t>(n)] = bias[o] * conv.scale[static_cast<size_t>(o)];
    }
  }
  return padded;
}

std::vector<float> pad_channels(const float* values, int64_t channels) {
  std::vector<float> padded(static_cast<size_t>(cuda::stored_channels(channels)), 0.0F);
  std::copy(values, values + channels, padded.begin());
  return padded;
}

}  // namespace

int64_t GpuConv::out_numel() const {
  const int64_t pixels = static_cast<int64_t>(params.out_height) * params.out_width;
  return pixels * params.out_channels * (params.epilogue == ConvEpilogue::kShuffle ? 4 : 1);
}

cuda::NormInput GpuNetwork::modulated(const GpuConv& conv, int64_t block, int index,
                                      const float* table) const {
  cuda::NormInput norm = conv.moments.norm;
  const float* shift = table + (block * 2 + index) * 2 * stored_width();
  norm.beta = shift;
  norm.gamma = shift + stored_width();
  norm.mod_stride = modulation_row();
  return norm;
}

void GpuNetwork::set_moments(GpuConv& conv) {
  const cuda::ConvParams& p = conv.params;
  const bool shuffle = p.epilogue == ConvEpilogue::kShuffle;
  std::vector<float> counts = tile_counts(p.out_height, p.out_width);
  LayerMoments& moments = conv.moments;
  cuda::NormInput& norm = moments.norm;
  norm.kind = shuffle ? NormKind::kLayer : NormKind::kInstance;
  norm.channels = p.out_channels;
  moments.floats_per_part = shuffle ? 2 : 2 * p.out_channels;
  std::vector<float> eps(shuffle ? 1 : static_cast<size_t>(p.out_channels), kNormEpsilon);
  if (shuffle) {
    std::vector<float> pieces;
    for (const float pixels : counts) {
      for (const float columns : piece_columns(p)) {
        pieces.push_back(pixels * columns);
      }
    }
    counts = std::move(pieces);
    eps[0] *= conv.scale[0];
  } else {
    for (size_t c = 0; c < eps.size(); ++c) {
      eps[c] *= conv.scale[c] * conv.scale[c];
    }
  }
  norm.total = sum_of(counts);
  norm.eps = keep(eps);
  moments.parts = norm.parts = static_cast<int32_t>(counts.size());
  moments.counts = norm.counts = keep(counts);
  if (!shuffle && moments.parts > kMostParts) {
    norm.parts = kMergedParts;
    norm.counts = keep(cuda::merged_counts(counts, kMergedParts));
  }
}

GpuConv GpuNetwork::make_conv(ConvKind kind, ConvEpilogue epilogue, const WeightMap& weights,
                              const ConvSpec& spec, const std::vector<float>* in_scale) {
  const float* weight = weights.at(spec.name + ".weight").data;
  const float* bias =
      epilogue == ConvEpilogue::kMoments ? nullptr : weights.at(spec.name + ".bias").data;
  const cuda::PackedConv packed =
      cuda::pack_conv(kind, weight, bias, spec.out_channels, spec.in_channels,
                      in_scale == nullptr ? nullptr : in_scale->data());
  GpuConv conv;
  conv.scale = packed.scale;
  conv.multiprocessors = multiprocessors(device);
  const ConvChoice choice = choose_conv(device);
  cuda::ConvParams& p = conv.params;
  p.kind = kind;
  p.epilogue = epilogue;
  p.in_height = p.in_width = static_cast<int32_t>(spec.size);
  p.out_height = p.out_width =
      static_cast<int32_t>(kind == ConvKind::kStride2 ? spec.size / 2 : spec.size);
  p.in_channels = packed.in_channels;
  p.out_channels = packed.out_channels;
  p.real_channels = packed.real_channels;
  p.cluster = choice.cluster;
  p.overlap = overlap;
  if (kind != ConvKind::kImage7x7) {
    p.path = choice.path;
  }
  conv.tiles = tiles_of(tile_table(), p, conv.multiprocessors);
  conv.one_tile = choice.one_tile && p.path == cuda::ConvPath::kWgmma;
  p.weights = keep(packed.weights);
  if (bias != nullptr) {
    p.bias = keep(pad_bias(conv, bias));
  }
  set_moments(conv);
  return conv;
}

/// `places`: where each output of the model goes among the outputs as stored; -1 elsewhere.
GpuLinear GpuNetwork::make_linear(const WeightMap& weights, const std::string& name,
                                  const std::vector<int64_t>& places) {
  const TensorView<const float>& weight = weights.at(name + ".weight");
  const float* bias = weights.at(name + ".bias").data;
  const int64_t in = weight.dim(1);
  const auto out = static_cast<int64_t>(places.size());
  std::vector<float> transposed(static_cast<size_t>(in * out), 0.0F);
  std::vector<float> padded(static_cast<size_t>(out), 0.0F);
  for (int64_t n = 0; n < out; ++n) {
    const int64_t source = places[static_cast<size_t>(n)];
    if (source >= 0) {
      padded[static_cast<size_t>(n)] = bias[source];
      for (int64_t k = 0; k < in; ++k) {
        transposed[static_cast<size_t>(k * out + n)] = weight.data[source * in + k];
      }
    }
  }
  return {static_cast<int32_t>(in), static_cast<int32_t>(out), keep(transposed), keep(padded)};
}

void GpuNetwork::make_class_encoder(const WeightMap& weights) {
  const std::vector<ConvSpec> specs = class_specs(config);
  class_convs.reserve(specs.size());  // in_scale stays where it is
  const std::vector<float>* in_scale = nullptr;
  for (const ConvSpec& spec : specs) {
    const ConvKind kind = in_scale == nullptr ? ConvKind::kImage7x7 : ConvKind::kStride2;
    class_convs.push_back(make_conv(kind, ConvEpilogue::kBiasRelu, weights, spec, in_scale));
    in_scale = &class_convs.back().scale;
  }
  std::vector<float> unscale;
  for (const float s : class_convs.back().scale) {
    unscale.push_back(1.0F / s);
  }
  head_unscale = keep(unscale);
  const TensorView<const float>& weight = weights.at("class_encoder.head.weight");
  const TensorView<const float>& bias = weights.at("class_encoder.head.bias");
  head = {static_cast<int32_t>(config.code_channels()), static_cast<int32_t>(config.code_dim),
          keep(std::vector<float>(weight.data, weight.data + weight.numel())),
          keep(std::vector<float>(bias.data, bias.data + bias.numel()))};
}

void GpuNetwork::make_upsample(const WeightMap& weights, const ConvSpec& spec, int index) {
  GpuConv conv = make_conv(ConvKind::kUpsample, ConvEpilogue::kShuffle, weights, spec, nullptr);
  const std::string norm = concat("decoder.norm", index);
  conv.moments.norm.gamma = keep(pad_channels(weights.at(norm + ".gamma").data, spec.out_channels));
  conv.moments.norm.beta = keep(pad_channels(weights.at(norm + ".beta").data, spec.out_channels));
  rings.push_back(keep(cuda::pack_upsample_ring(
      weights.at(spec.name + ".weight").data, spec.out_channels, spec.in_channels, conv.scale[0])));
  upsamples.push_back(std::move(conv));
}

namespace {

/// Outputs of a linear layer as they are, padded to a multiple of four.
std::vector<int64_t> plain_places(int64_t out) {
  std::vector<int64_t> places(static_cast<size_t>((out + 3) / 4 * 4), -1);
  for (int64_t n = 0; n < out; ++n) {
    places[static_cast<size_t>(n)] = n;
  }
  return places;
}

/// Groups of `channels` outputs, each padded to `stored`.
std::vector<int64_t> grouped_places(int64_t groups, int64_t channels, int64_t stored) {
  std::vector<int64_t> places(static_cast<size_t>(groups * stored), -1);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < channels; ++c) {
      places[static_cast<size_t>(g * stored + c)] = g * channels + c;
    }
  }
  return places;
}

}  // namespace

GpuNetwork build_gpu_network(const NetworkConfig& config, const WeightMap& weights, int device) {
  check_weights(config, weights);
  CAE_CHECK(config.channels <= kMostWidth, "the GPU engine serves channels of at most ", kMostWidth,
            ", got ", config.channels);
  const DeviceGuard guard(device);
  GpuNetwork network;
  network.config = config;
  network.device = device;
  network.overlap = choose_overlap(device);
  network.make_class_encoder(weights);
  for (const ConvSpec& spec : individual_specs(config)) {
    const ConvKind kind =
        network.individual_convs.empty() ? ConvKind::kImage7x7 : ConvKind::kStride2;
    network.individual_convs.push_back(
        network.make_conv(kind, ConvEpilogue::kMoments, weights, spec, nullptr));
  }
  for (const ConvSpec& spec : block_specs(config, "individual_encoder")) {
    network.individual_blocks.push_back(
        network.make_conv(ConvKind::kConv3x3, ConvEpilogue::kMoments, weights, spec, nullptr));
  }
  for (const ConvSpec& spec : block_specs(config, "decoder")) {
    network.decoder_blocks.push_back(
        network.make_conv(ConvKind::kConv3x3, ConvEpilogue::kMoments, weights, spec, nullptr));
  }
  int index = 0;
  for (const ConvSpec& spec : upsample_specs(config)) {
    network.make_upsample(weights, spec, index++);
  }
  const int64_t hidden = config.modulation_width;
  network.modulation.push_back(
      network.make_linear(weights, "modulation.linear0", plain_places(hidden)));
  network.modulation.push_back(
      network.make_linear(weights, "modulation.linear1", plain_places(hidden)));
  network.modulation.push_back(network.make_linear(
      weights, "modulation.linear2",
      grouped_places(config.num_blocks * 4, config.code_channels(), network.stored_width())));
  const cuda::PackedOutputConv out = cuda::pack_output_conv(weights.at("decoder.out.weight").data,
                                                            weights.at("decoder.out.bias").data,
                                                            config.in_channels, config.channels);
  network.output_weights = network.keep(out.weights);
  network.output_scale = network.keep(out.scale);
  network.output_bias = network.keep(out.bias);
  return network;
}

}  // namespace cae::gpu
