// SPDX-License-Identifier: Apache-2.0
#include "tests/emu/conv_case.h"

#include <deque>

#include "emu/external_memory.h"

namespace cae::test {

using cuda::ConvEpilogue;
using cuda::ConvKind;
using cuda::ConvPrologue;

namespace {

constexpr int kParts = 3;

int kernel_of(ConvKind kind) {
  return kind == ConvKind::kConv3x3    ? 3
         : kind == ConvKind::kStride2  ? 4
         : kind == ConvKind::kImage7x7 ? 7
                                       : 5;
}

}  // namespace

ConvProblem::ConvProblem(const ConvCase& conv, unsigned seed) : c(conv), random_(seed) {
  const bool is_image = c.kind == ConvKind::kImage7x7;
  const bool shuffle = c.kind == ConvKind::kUpsample;
  stored_in = is_image ? c.in : cuda::stored_channels(c.in);
  stored_out = cuda::stored_channels(c.out);
  out_height = c.kind == ConvKind::kStride2 ? c.height / 2 : c.height;
  out_width = c.kind == ConvKind::kStride2 ? c.width / 2 : c.width;
  const int kernel = kernel_of(c.kind);
  weight.resize(static_cast<size_t>(c.out) * c.in * kernel * kernel);
  for (float& w : weight) {
    w = 0.05F * normal();
  }
  packed = cuda::pack_conv(c.kind, weight.data(), nullptr, c.out, c.in, nullptr);
  const int columns = cuda::conv_columns(c.epilogue, stored_out);
  const int blocks = cuda::conv_pieces(columns);
  padded_bias.assign(static_cast<size_t>(blocks) * cuda::kConvColumns, 0.0F);
  for (int n = 0; n < columns; ++n) {
    if (n % stored_out < c.out) {
      padded_bias[n] = 0.3F * static_cast<float>(n % stored_out % 5 - 2);
    }
  }
  const size_t inputs = static_cast<size_t>(c.rows) * c.height * c.width * stored_in;
  y.assign(inputs, 0);
  stream_in.assign(inputs, 0);
  stream_out.assign(inputs, kUnwritten);
  image.assign(is_image ? inputs : 0, 0.0F);
  for (size_t i = 0; i < inputs; ++i) {
    if (is_image) {
      image[i] = std::tanh(normal());
    } else if (static_cast<int>(i) % stored_in < c.in) {
      y[i] = half_bits(1.5F * normal() + 0.7F);
      stream_in[i] = half_bits(normal());
    }
  }
  const size_t scale = shuffle ? 4 : 1;
  output.assign(static_cast<size_t>(c.rows) * out_height * out_width * stored_out * scale,
                kUnwritten);
  const int tiles = cuda::conv_tiles(out_height, out_width);
  partials.assign(static_cast<size_t>(c.rows) * tiles * (shuffle ? blocks : stored_out) * 2, NAN);
  ring_rows.assign(shuffle ? static_cast<size_t>(c.rows) * 2 * 2 * c.width * stored_out : 0, 0.0F);
  ring_columns.assign(shuffle ? static_cast<size_t>(c.rows) * 2 * 2 * c.height * stored_out : 0,
                      0.0F);
  for (auto* ring : {&ring_rows, &ring_columns}) {
    for (size_t i = 0; i < ring->size(); ++i) {
      (*ring)[i] = static_cast<int>(i) % stored_out < c.out ? normal() : 0.0F;
    }
  }
  make_norm();
  make_operand();

  params.kind = c.kind;
  params.prologue = c.prologue;
  params.epilogue = c.epilogue;
  params.rows = c.rows;
  params.in_height = c.height;
  params.in_width = c.width;
  params.in_channels = stored_in;
  params.out_height = out_height;
  params.out_width = out_width;
  params.out_channels = stored_out;
  params.real_channels = c.out;
  params.tile = c.tile;
  params.path = c.path;
  params.cluster = c.cluster;
  params.overlap = true;  // the emulator is strictest then
  rebind();
}

void ConvProblem::rebind() {
  params.y = y.data();
  params.image = image.data();
  params.stream_in = stream_in.data();
  params.stream_out = stream_out.data();
  params.weights = packed.weights.data();
  params.bias = padded_bias.data();
  params.ring_rows = ring_rows.data();
  params.ring_columns = ring_columns.data();
  params.out = output.data();
  params.partials = partials.data();
  cuda::NormInput& norm = params.norm;
  norm.partials = partials_in.data();
  norm.counts = counts.data();
  norm.eps = eps.data();
  norm.gamma = gamma.data();
  norm.beta = beta.data();
}

/// Instance norm from kParts made-up parts.
void ConvProblem::make_norm() {
  counts = {100.0F, 60.0F, 40.0F};
  eps.assign(stored_in, 1e-5F);
  gamma.resize(static_cast<size_t>(c.rows) * stored_in);
  beta.resize(gamma.size());
  for (size_t i = 0; i < gamma.size(); ++i) {
    const bool real = static_cast<int>(i) % stored_in < c.in;
    gamma[i] = real ? 1.0F + 0.3F * normal() : 0.0F;
    beta[i] = real ? 0.3F * normal() : 0.0F;
  }
  partials_in.resize(static_cast<size_t>(c.rows) * kParts * stored_in * 2);
  for (size_t i = 0; i < partials_in.size(); i += 2) {
    partials_in[i] = 0.7F + 0.1F * normal();
    partials_in[i + 1] = 200.0F * (1.0F + 0.2F * std::tanh(normal()));
  }
  cuda::NormInput& norm = params.norm;
  norm.kind = cuda::NormKind::kInstance;
  norm.channels = stored_in;
  norm.parts = kParts;
  norm.total = 200.0F;
  norm.mod_stride = stored_in;
}

void ConvProblem::make_operand() {
  const int pixels = c.height * c.width;
  operand.assign(static_cast<size_t>(c.rows) * pixels * stored_in, 0.0);
  for (int row = 0; row < c.rows; ++row) {
    for (int ch = 0; ch < stored_in; ++ch) {
      double mean = 0.0;
      double m2 = 0.0;
      const float* parts = &partials_in[(static_cast<size_t>(row) * kParts * stored_in + ch) * 2];
      for (int t = 0; t < kParts; ++t) {
        mean += static_cast<double>(parts[t * stored_in * 2]) * counts[t] / 200.0;
      }
      for (int t = 0; t < kParts; ++t) {
        const double d = parts[t * stored_in * 2] - mean;
        m2 += parts[t * stored_in * 2 + 1] + d * d * counts[t];
      }
      const double scale = gamma[row * stored_in + ch] / std::sqrt(m2 / 200.0 + 1e-5);
      const double shift = beta[row * stored_in + ch] - mean * scale;
      for (int i = 0; i < pixels; ++i) {
        const size_t at = (static_cast<size_t>(row) * pixels + i) * stored_in + ch;
        double value = 0.0;
        if (c.kind == ConvKind::kImage7x7) {
          value = image[(static_cast<size_t>(row) * c.in + ch) * pixels + i];
        } else if (c.prologue == ConvPrologue::kPlain) {
          value = from_half(y[at]);
        } else if (c.prologue == ConvPrologue::kAffineRelu) {
          value = std::max(0.0, scale * from_half(y[at]) + shift);
        } else {
          value = from_half(stream_in[at]) + scale * from_half(y[at]) + shift;
        }
        operand[at] = from_half(half_bits(static_cast<float>(value)));
      }
    }
  }
}

double ConvProblem::sum_at(int row, int y0, int x0, int o) const {
  const int kernel = kernel_of(c.kind);
  const int pad = c.kind == ConvKind::kImage7x7 ? 3 : c.kind == ConvKind::kUpsample ? 2 : 1;
  const int step = c.kind == ConvKind::kStride2 ? 2 : 1;
  const double scale = packed.scale[o];
  double sum = 0.0;
  for (int ky = 0; ky < kernel; ++ky) {
    for (int kx = 0; kx < kernel; ++kx) {
      int iy = y0 * step + ky - pad;
      int ix = x0 * step + kx - pad;
      if (c.kind == ConvKind::kUpsample) {
        iy = std::min(std::max((iy + 2) / 2 - 1, 0), c.height - 1);
        ix = std::min(std::max((ix + 2) / 2 - 1, 0), c.width - 1);
      } else {
        iy = reflected(iy, c.height);
        ix = reflected(ix, c.width);
      }
      const double* pixel =
          &operand[((static_cast<size_t>(row) * c.height + iy) * c.width + ix) * stored_in];
      for (int ch = 0; ch < c.in; ++ch) {
        const size_t w = ((static_cast<size_t>(o) * c.in + ch) * kernel + ky) * kernel + kx;
        sum += pixel[ch] * weight[w] * scale;
      }
    }
  }
  return sum;
}

void run_conv(ConvProblem& p, const std::vector<Memory>& more,
              void (*launch)(const cuda::ConvParams&, void*)) {
  std::deque<emu::ExternalMemory> visible;
  const auto show = [&visible](const auto& buffer, emu::ExternalUse use) {
    visible.emplace_back(buffer.data(), buffer.size() * sizeof(buffer[0]), use);
  };
  for (const auto* buffer :
       {&p.image, &p.partials_in, &p.gamma, &p.beta, &p.ring_rows, &p.ring_columns}) {
    show(*buffer, emu::ExternalUse::kRead);
  }
  for (const auto* buffer : {&p.counts, &p.eps, &p.padded_bias}) {
    show(*buffer, emu::ExternalUse::kConstant);
  }
  show(p.y, emu::ExternalUse::kRead);
  show(p.stream_in, emu::ExternalUse::kRead);
  show(p.packed.weights, emu::ExternalUse::kConstant);
  show(p.partials, emu::ExternalUse::kWritten);
  show(p.stream_out, emu::ExternalUse::kWritten);
  show(p.output, emu::ExternalUse::kWritten);
  for (const Memory& memory : more) {
    visible.emplace_back(memory.data, memory.bytes, emu::ExternalUse::kRead);
  }
  launch(p.params, nullptr);
}

}  // namespace cae::test
