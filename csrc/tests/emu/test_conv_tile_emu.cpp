// SPDX-License-Identifier: Apache-2.0
// Convolutions of the emulated GPU against plain sums in double: values, moments, the stream kept.
#include <algorithm>
#include <cstdio>
#include <utility>

#include "tests/check_test.h"
#include "tests/emu/conv_case.h"

namespace {

using cae::cuda::ConvEpilogue;
using cae::cuda::ConvKind;
using cae::cuda::ConvPath;
using cae::cuda::ConvPrologue;
using cae::cuda::ConvTile;
using cae::test::ConvCase;
using cae::test::ConvProblem;
using cae::test::from_half;

// Weights and results are rounded to halves: 2^-11 of each weight adds up as noise, 2^-11 of the
// result as it is; relative to the root mean square of the layer.
constexpr double kTolerance = 2e-3;

/// What a value stored at (row, y, x, o) of the output should be.
double expected(const ConvProblem& p, int row, int y, int x, int o) {
  double value = p.sum_at(row, y, x, o);
  if (p.c.epilogue == ConvEpilogue::kMoments) {
    return value;
  }
  value += p.padded_bias[o];
  if (p.c.epilogue == ConvEpilogue::kBiasRelu) {
    return std::max(value, 0.0);
  }
  const int height = 2 * p.out_height;
  const int width = 2 * p.out_width;
  if (y == 0 || y == height - 1) {
    value += p.ring_rows[((row * 2 + (y == 0 ? 0 : 1)) * width + x) * p.stored_out + o];
  }
  if (x == 0 || x == width - 1) {
    value += p.ring_columns[((row * 2 + (x == 0 ? 0 : 1)) * height + y) * p.stored_out + o];
  }
  return value;
}

struct Merged {
  double mean = 0.0;
  double m2 = 0.0;
  double count = 0.0;
};

Merged moments_of(const std::vector<double>& values) {
  Merged merged;
  merged.count = static_cast<double>(values.size());
  for (const double v : values) {
    merged.mean += v / merged.count;
  }
  for (const double v : values) {
    merged.m2 += (v - merged.mean) * (v - merged.mean);
  }
  return merged;
}

void check_moments(const float* stored, const std::vector<double>& values, double rms) {
  const Merged wanted = moments_of(values);
  CAE_TEST_CHECK(std::fabs(stored[0] - wanted.mean) <= 1e-3 * rms);
  CAE_TEST_CHECK(std::fabs(stored[1] - wanted.m2) <=
                 4e-3 * (wanted.m2 + rms * rms * wanted.count * 1e-3));
}

void check_outputs(const ConvProblem& p, std::vector<double>& wanted, double& rms) {
  const int factor = p.c.kind == ConvKind::kUpsample ? 2 : 1;
  const int height = p.out_height * factor;
  const int width = p.out_width * factor;
  wanted.assign(p.output.size(), 0.0);
  rms = 0.0;
  for (int row = 0; row < p.c.rows; ++row) {
    for (int i = 0; i < height * width; ++i) {
      for (int o = 0; o < p.c.out; ++o) {
        const size_t at = (static_cast<size_t>(row) * height * width + i) * p.stored_out + o;
        wanted[at] = expected(p, row, i / width, i % width, o);
        rms += wanted[at] * wanted[at];
      }
    }
  }
  rms = std::sqrt(rms / (static_cast<double>(p.c.rows) * height * width * p.c.out));
  double worst = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error =
        std::fabs(from_half(p.output[i]) - wanted[i]) / (std::fabs(wanted[i]) + rms);
    worst = error <= worst ? worst : error;
    CAE_TEST_CHECK(error <= kTolerance);
  }
  std::printf("  path %d kind %d prologue %d epilogue %d, %d x %d x %d -> %d: worst %.1e\n",
              static_cast<int>(p.c.path), static_cast<int>(p.c.kind),
              static_cast<int>(p.c.prologue), static_cast<int>(p.c.epilogue), p.c.height, p.c.width,
              p.c.in, p.c.out, worst);
}

void check_channel_moments(const ConvProblem& p, const std::vector<double>& wanted, double rms) {
  const int across = cae::cuda::conv_tiles_across(p.out_width);
  const int tiles = cae::cuda::conv_tiles(p.out_height, p.out_width);
  for (int row = 0; row < p.c.rows; ++row) {
    for (int tile = 0; tile < tiles; ++tile) {
      for (int o = 0; o < p.c.out; ++o) {
        std::vector<double> values;
        for (int y = tile / across * 8; y < std::min(tile / across * 8 + 8, p.out_height); ++y) {
          for (int x = tile % across * 16; x < std::min(tile % across * 16 + 16, p.out_width);
               ++x) {
            values.push_back(
                wanted[((static_cast<size_t>(row) * p.out_height + y) * p.out_width + x) *
                           p.stored_out +
                       o]);
          }
        }
        check_moments(&p.partials[((row * tiles + tile) * p.stored_out + o) * 2], values, rms);
      }
    }
  }
}

/// Merges the pairs of all blocks of a row with the counts that the engine gives the next layer.
void check_block_moments(const ConvProblem& p, const std::vector<double>& wanted, double rms) {
  const int columns = 4 * p.stored_out;
  const int blocks = cae::cuda::conv_pieces(columns);
  const int across = cae::cuda::conv_tiles_across(p.out_width);
  const int tiles = cae::cuda::conv_tiles(p.out_height, p.out_width);
  const size_t row_size = wanted.size() / p.c.rows;
  for (int row = 0; row < p.c.rows; ++row) {
    std::vector<double> values;
    for (size_t i = 0; i < row_size; ++i) {
      if (static_cast<int>(i % p.stored_out) < p.c.out) {
        values.push_back(wanted[row * row_size + i]);
      }
    }
    Merged got;
    for (int part = 0; part < tiles * blocks; ++part) {
      const int tile = part / blocks;
      const double pixels = std::min(8, p.out_height - tile / across * 8) *
                            std::min(16, p.out_width - tile % across * 16);
      double real = 0.0;
      for (int n = part % blocks * 64; n < (part % blocks + 1) * 64; ++n) {
        real += n < columns && n % p.stored_out < p.c.out ? 1.0 : 0.0;
      }
      const float* pair = &p.partials[(static_cast<size_t>(row) * tiles * blocks + part) * 2];
      const double count = pixels * real;
      if (count == 0.0) {
        CAE_TEST_CHECK(pair[0] == 0.0F && pair[1] == 0.0F);
        continue;
      }
      const double d = pair[0] - got.mean;
      got.mean += d * count / (got.count + count);
      got.m2 += pair[1] + d * d * count * got.count / (got.count + count);
      got.count += count;
    }
    CAE_TEST_CHECK(got.count == static_cast<double>(values.size()));
    const float pair[2] = {static_cast<float>(got.mean), static_cast<float>(got.m2)};
    check_moments(pair, values, rms);
  }
}

void check_stream(const ConvProblem& p) {
  for (size_t i = 0; i < p.stream_out.size(); ++i) {
    const double error = std::fabs(from_half(p.stream_out[i]) - p.operand[i]);
    CAE_TEST_CHECK(error <= 2e-3 * (1.0 + std::fabs(p.operand[i])));
  }
}

void test_case(const ConvCase& c) {
  ConvProblem p(c, 7);
  cae::test::run_conv(p);
  std::vector<double> wanted;
  double rms = 0.0;
  check_outputs(p, wanted, rms);
  if (c.epilogue == ConvEpilogue::kShuffle) {
    check_block_moments(p, wanted, rms);
  } else {
    check_channel_moments(p, wanted, rms);
  }
  if (c.prologue == ConvPrologue::kResidual) {
    check_stream(p);
  }
}

void test_all_kinds() {
  constexpr auto k3 = ConvKind::kConv3x3;
  constexpr auto kUp = ConvKind::kUpsample;
  constexpr auto kTwo = ConvKind::kStride2;
  constexpr auto kImage = ConvKind::kImage7x7;
  constexpr auto kPlain = ConvPrologue::kPlain;
  constexpr auto kAffine = ConvPrologue::kAffineRelu;
  constexpr auto kResidual = ConvPrologue::kResidual;
  constexpr auto kMoments = ConvEpilogue::kMoments;
  constexpr auto kBiasRelu = ConvEpilogue::kBiasRelu;
  constexpr auto kShuffle = ConvEpilogue::kShuffle;
  const ConvCase cases[] = {
      {k3, kPlain, kMoments, 1, 4, 4, 16, 16, {128, 64}},
      {k3, kAffine, kMoments, 2, 9, 17, 72, 72, {128, 64}},
      {k3, kResidual, kMoments, 1, 16, 16, 136, 136, {128, 64}},
      {k3, kResidual, kMoments, 1, 5, 12, 20, 20, {128, 64}},
      {k3, kAffine, kMoments, 1, 8, 16, 130, 220, {128, 128}},
      {k3, kResidual, kMoments, 1, 10, 16, 64, 90, {128, 128}},
      {kUp, kResidual, kShuffle, 2, 4, 4, 16, 8, {128, 64}},
      {kUp, kAffine, kShuffle, 1, 9, 18, 40, 20, {128, 64}},
      {kUp, kResidual, kShuffle, 1, 8, 16, 64, 32, {128, 128}},
      {kUp, kAffine, kShuffle, 1, 10, 12, 12, 30, {128, 128}},
      {kTwo, kAffine, kMoments, 1, 20, 36, 10, 20, {128, 64}},
      {kTwo, kPlain, kBiasRelu, 2, 16, 16, 72, 33, {128, 64}},
      {kTwo, kPlain, kBiasRelu, 1, 2, 2, 16, 16, {128, 64}},
      {kTwo, kPlain, kBiasRelu, 1, 5, 5, 8, 8, {128, 64}},
      {kImage, kPlain, kMoments, 2, 16, 20, 3, 24, {128, 64}},
      {kImage, kPlain, kBiasRelu, 1, 16, 16, 1, 66, {128, 64}},
      {kImage, kPlain, kMoments, 1, 24, 16, 4, 8, {128, 64}},
  };
  for (const ConvCase& c : cases) {
    test_case(c);
  }
}

void test_wgmma() {
  constexpr auto k3 = ConvKind::kConv3x3;
  constexpr auto kUp = ConvKind::kUpsample;
  constexpr auto kTwo = ConvKind::kStride2;
  constexpr auto kPlain = ConvPrologue::kPlain;
  constexpr auto kAffine = ConvPrologue::kAffineRelu;
  constexpr auto kResidual = ConvPrologue::kResidual;
  constexpr auto kMoments = ConvEpilogue::kMoments;
  constexpr auto kShuffle = ConvEpilogue::kShuffle;
  constexpr auto kBiasRelu = ConvEpilogue::kBiasRelu;
  constexpr auto kWgmma = ConvPath::kWgmma;
  const ConvCase cases[] = {
      {k3, kPlain, kMoments, 1, 4, 4, 16, 16, {128, 64}, kWgmma, 1},
      {k3, kAffine, kMoments, 2, 9, 17, 72, 72, {128, 64}, kWgmma, 4},
      {k3, kResidual, kMoments, 1, 16, 16, 200, 72, {128, 64}, kWgmma, 2},  // buffers come round
                                                                            // twice
      {k3, kResidual, kMoments, 1, 5, 12, 20, 20, {128, 64}, kWgmma, 4},    // one tile: no cluster
      {k3, kAffine, kMoments, 1, 8, 16, 130, 220, {128, 128}, kWgmma, 1},
      {k3, kResidual, kMoments, 1, 10, 16, 64, 90, {128, 128}, kWgmma, 2},
      {k3, kResidual, kMoments, 1, 16, 30, 72, 128, {128, 128}, kWgmma, 4},
      {kUp, kResidual, kShuffle, 2, 4, 4, 16, 8, {128, 64}, kWgmma, 2},
      {kUp, kAffine, kShuffle, 1, 9, 18, 40, 20, {128, 64}, kWgmma, 2},
      {kUp, kResidual, kShuffle, 1, 8, 16, 64, 32, {128, 128}, kWgmma, 1},
      {kUp, kAffine, kShuffle, 1, 10, 12, 12, 30, {128, 128}, kWgmma, 2},
      // Blocks of 8 x 8 pixels, also where one of a pair lies outside.
      {k3, kPlain, kMoments, 1, 4, 4, 16, 128, {64, 128}, kWgmma, 1},
      {k3, kAffine, kMoments, 2, 9, 17, 72, 70, {64, 128}, kWgmma, 4},
      {k3, kResidual, kMoments, 1, 16, 16, 200, 128, {64, 128}, kWgmma, 2},
      {kUp, kResidual, kShuffle, 2, 8, 24, 64, 32, {64, 128}, kWgmma, 4},
      {kUp, kAffine, kShuffle, 1, 10, 12, 12, 30, {64, 128}, kWgmma, 2},
      // Blocks of 256 columns.
      {k3, kPlain, kMoments, 1, 8, 16, 16, 220, {128, 256}, kWgmma, 1},
      {k3, kResidual, kMoments, 1, 10, 20, 200, 256, {128, 256}, kWgmma, 2},
      {kUp, kAffine, kShuffle, 1, 9, 16, 72, 60, {128, 256}, kWgmma, 2},
      {kTwo, kAffine, kMoments, 1, 20, 36, 10, 20, {128, 64}, kWgmma, 2},
      {kTwo, kPlain, kBiasRelu, 2, 16, 16, 72, 33, {128, 64}, kWgmma, 2},
      {kTwo, kPlain, kBiasRelu, 1, 2, 2, 16, 16, {128, 64}, kWgmma, 1},
  };
  for (const ConvCase& c : cases) {
    test_case(c);
  }
}

/// Tiles and size of clusters change nothing, not one bit.
void test_shapes_agree(ConvPath path, ConvKind kind) {
  const bool up = kind == ConvKind::kUpsample;
  ConvCase c = {kind,
                ConvPrologue::kResidual,
                up ? ConvEpilogue::kShuffle : ConvEpilogue::kMoments,
                1,
                16,
                20,
                72,
                up ? 60 : 256,
                {128, 64},
                path,
                1};
  ConvProblem first(c, 5);
  cae::test::run_conv(first);
  std::vector<std::pair<ConvTile, int>> others = {{{128, 64}, 4}, {{128, 128}, 1}, {{128, 128}, 2}};
  if (path == ConvPath::kWgmma) {
    others.insert(others.end(), {{{64, 128}, 1}, {{64, 128}, 4}, {{128, 256}, 1}, {{128, 256}, 2}});
  }
  for (const auto& [tile, cluster] : others) {
    c.tile = tile;
    c.cluster = cluster;
    ConvProblem p(c, 5);
    cae::test::run_conv(p);
    CAE_TEST_CHECK(p.output == first.output);
    CAE_TEST_CHECK(p.partials == first.partials);
    CAE_TEST_CHECK(p.stream_out == first.stream_out);
  }
}

void test_rows_are_looked_up_and_skipped(ConvPath path, const ConvTile& tile) {
  ConvProblem p({ConvKind::kConv3x3, ConvPrologue::kResidual, ConvEpilogue::kMoments, 3, 6, 6, 16,
                 128, tile, path},
                11);
  ConvProblem plain = p;
  plain.rebind();
  cae::test::run_conv(plain);
  const std::vector<int32_t> rows = {2, 0, 1};
  const std::vector<int32_t> active = {1, 0, 1};
  p.rebind();
  p.params.y_row = rows.data();
  p.params.stream_row = rows.data();
  p.params.mod_row = rows.data();
  p.params.active = active.data();
  cae::test::run_conv(p, {{rows.data(), rows.size() * 4}, {active.data(), active.size() * 4}});
  const size_t row = p.output.size() / 3;
  for (size_t i = 0; i < row; ++i) {
    CAE_TEST_CHECK(p.output[i] == plain.output[2 * row + i]);
    CAE_TEST_CHECK(p.output[row + i] == cae::test::kUnwritten);
    CAE_TEST_CHECK(p.output[2 * row + i] == plain.output[row + i]);
  }
}

}  // namespace

int main() {
  test_all_kinds();
  test_rows_are_looked_up_and_skipped(ConvPath::kPortable, {128, 64});
  test_wgmma();
  for (const ConvKind kind : {ConvKind::kConv3x3, ConvKind::kUpsample}) {
    test_shapes_agree(ConvPath::kPortable, kind);
    test_shapes_agree(ConvPath::kWgmma, kind);
  }
  test_rows_are_looked_up_and_skipped(ConvPath::kWgmma, {128, 64});
  test_rows_are_looked_up_and_skipped(ConvPath::kWgmma, {64, 128});
  return cae::testing::finish("test_conv_tile_emu");
}
