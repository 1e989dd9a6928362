// SPDX-License-Identifier: Apache-2.0
// Every launch that the engine can make, at the sizes that take most shared memory, asks for no
// more than each kind of GPU has. Without memory to work on: a launch that is not refused ends at
// its first access.
#include <cstdlib>
#include <functional>
#include <string>

#include "cuda/class_head_cuda.h"
#include "cuda/conv_tile_cuda.h"
#include "cuda/modulation_cuda.h"
#include "cuda/output_conv_cuda.h"
#include "cuda/upsample_ring_cuda.h"
#include "emu/fault.h"
#include "tests/check_test.h"

namespace {

using cae::cuda::ConvEpilogue;
using cae::cuda::ConvKind;
using cae::cuda::ConvParams;
using cae::cuda::ConvPath;
using cae::cuda::ConvPrologue;
using cae::cuda::ConvTile;

constexpr int kMostChannels = 512;  // what the engine serves, see engine/gpu_network.cpp
constexpr int kMostInputs = 4 * kMostChannels;  // of the individual code
constexpr int kMostWideInputs = 704;            // for blocks of 128 columns, see gpu_tiles.cpp

constexpr ConvTile kNarrow = {128, 64};
constexpr ConvTile kWide = {128, 128};

enum class Outcome { kRefused, kStarted };

Outcome outcome_of(const std::function<void()>& launch) {
  try {
    launch();
  } catch (const cae::emu::Fault& fault) {
    const std::string said = fault.what();
    if (said.find("shared memory must be at most") != std::string::npos) {
      return Outcome::kRefused;
    }
    CAE_TEST_CHECK(said.find("no device address") != std::string::npos);
    return Outcome::kStarted;
  }
  CAE_TEST_CHECK(false);  // it did nothing
  return Outcome::kStarted;
}

Outcome conv(ConvKind kind, ConvPrologue prologue, ConvEpilogue epilogue, int inputs, ConvTile tile,
             ConvPath path = ConvPath::kPortable) {
  ConvParams p;
  p.kind = kind;
  p.prologue = prologue;
  p.epilogue = epilogue;
  p.rows = 1;
  p.in_height = p.in_width = 16;
  p.out_height = p.out_width = kind == ConvKind::kStride2 ? 8 : 16;
  p.in_channels = inputs;
  p.out_channels = p.real_channels = 256;
  p.tile = tile;
  p.path = path;
  p.norm.channels = inputs;
  return outcome_of([&] { cae::cuda::conv_tile(p, nullptr); });
}

Outcome largest_3x3(ConvPrologue prologue, int inputs, ConvTile tile) {
  return conv(ConvKind::kConv3x3, prologue, ConvEpilogue::kMoments, inputs, tile);
}

void test_convolutions() {
  for (const ConvPrologue prologue :
       {ConvPrologue::kPlain, ConvPrologue::kAffineRelu, ConvPrologue::kResidual}) {
    CAE_TEST_CHECK(largest_3x3(prologue, kMostInputs, kNarrow) == Outcome::kStarted);
    CAE_TEST_CHECK(largest_3x3(prologue, kMostWideInputs, kWide) == Outcome::kStarted);
  }
  for (const ConvPrologue prologue : {ConvPrologue::kAffineRelu, ConvPrologue::kResidual}) {
    for (const ConvTile tile : {kNarrow, kWide}) {
      const int inputs = tile == kNarrow ? kMostInputs : kMostWideInputs;
      CAE_TEST_CHECK(conv(ConvKind::kUpsample, prologue, ConvEpilogue::kShuffle, inputs, tile) ==
                     Outcome::kStarted);
    }
  }
  CAE_TEST_CHECK(conv(ConvKind::kStride2, ConvPrologue::kPlain, ConvEpilogue::kBiasRelu,
                      kMostInputs, kNarrow) == Outcome::kStarted);
  CAE_TEST_CHECK(conv(ConvKind::kStride2, ConvPrologue::kAffineRelu, ConvEpilogue::kMoments,
                      kMostInputs, kNarrow) == Outcome::kStarted);
  CAE_TEST_CHECK(conv(ConvKind::kImage7x7, ConvPrologue::kPlain, ConvEpilogue::kBiasRelu, 4,
                      kNarrow) == Outcome::kStarted);
  CAE_TEST_CHECK(conv(ConvKind::kImage7x7, ConvPrologue::kPlain, ConvEpilogue::kMoments, 4,
                      kNarrow) == Outcome::kStarted);
}

void test_wgmma() {
  for (const ConvTile tile : {kNarrow, ConvTile{64, 128}, kWide, ConvTile{128, 256}}) {
    CAE_TEST_CHECK(conv(ConvKind::kConv3x3, ConvPrologue::kResidual, ConvEpilogue::kMoments,
                        kMostInputs, tile, ConvPath::kWgmma) == Outcome::kStarted);
    CAE_TEST_CHECK(conv(ConvKind::kUpsample, ConvPrologue::kResidual, ConvEpilogue::kShuffle,
                        kMostInputs, tile, ConvPath::kWgmma) == Outcome::kStarted);
  }
  CAE_TEST_CHECK(conv(ConvKind::kStride2, ConvPrologue::kAffineRelu, ConvEpilogue::kMoments,
                      kMostInputs, kNarrow, ConvPath::kWgmma) == Outcome::kStarted);
}

void test_others() {
  cae::cuda::UpsampleRingParams ring;
  ring.rows = 1;
  ring.height = ring.width = 16;
  ring.in_channels = ring.norm.channels = kMostInputs;
  ring.out_channels = ring.real_channels = kMostInputs / 2;
  for (const ConvPrologue prologue : {ConvPrologue::kAffineRelu, ConvPrologue::kResidual}) {
    ring.prologue = prologue;
    CAE_TEST_CHECK(outcome_of([&] { cae::cuda::upsample_ring(ring, nullptr); }) ==
                   Outcome::kStarted);
  }
  for (int image_channels = 1; image_channels <= 4; ++image_channels) {
    for (const int size : {16, 256}) {
      cae::cuda::OutputConvParams output;
      output.slots = 1;
      output.size = size;
      output.channels = output.norm.channels = kMostChannels;
      output.image_channels = image_channels;
      CAE_TEST_CHECK(outcome_of([&] { cae::cuda::output_conv(output, nullptr); }) ==
                     Outcome::kStarted);
    }
  }
  for (const int rows : {1, 4, 8, 16}) {
    cae::cuda::LinearParams linear;
    linear.rows = rows;
    linear.in = linear.out = 4096;
    CAE_TEST_CHECK(outcome_of([&] { cae::cuda::linear(linear, nullptr); }) == Outcome::kStarted);
  }
  cae::cuda::PathCodesParams codes;
  codes.rows = 1;
  codes.vertex_count = cae::cuda::kMaxPathVertices;
  codes.code_dim = codes.grid = 8;
  CAE_TEST_CHECK(outcome_of([&] { cae::cuda::path_codes(codes, nullptr); }) == Outcome::kStarted);
  cae::cuda::ClassHeadParams head;
  head.rows = head.parts = 1;
  head.channels = head.stored_channels = 8192;  // the most that it takes
  head.code_dim = 8;
  CAE_TEST_CHECK(outcome_of([&] { cae::cuda::class_head(head, nullptr); }) == Outcome::kStarted);
}

}  // namespace

int main() {
  for (const char* arch : {"80", "86", "89", "90", "120"}) {
    setenv("CAE_EMU_ARCH", arch, 1);
    test_convolutions();
    test_others();
  }
  // What the engine does not launch there would be refused: the limits are felt.
  setenv("CAE_EMU_ARCH", "86", 1);
  CAE_TEST_CHECK(largest_3x3(ConvPrologue::kAffineRelu, kMostWideInputs + 64, kWide) ==
                 Outcome::kRefused);
  CAE_TEST_CHECK(largest_3x3(ConvPrologue::kAffineRelu, 2 * kMostInputs, kNarrow) ==
                 Outcome::kRefused);
  setenv("CAE_EMU_ARCH", "90", 1);
  CAE_TEST_CHECK(largest_3x3(ConvPrologue::kAffineRelu, kMostWideInputs + 64, kWide) ==
                 Outcome::kStarted);
  test_wgmma();
  return cae::testing::finish("test_shared_limits_emu");
}
