// SPDX-License-Identifier: Apache-2.0
// path_codes: a block per point, a thread per segment while lengths are taken, then per element.
//
// linear: bound by reading the weights, of which the last layer has megabytes, for few rows. So a
// block makes 32 columns and its threads share the inputs: 8 inputs times 4 columns each, loaded
// before anything else, which puts a slice of 256 inputs in flight at once. Up to 16 rows use what
// was loaded; more rows are other blocks. Partial sums meet in a fixed order: lanes, then warps.
#include <cstring>

#include "core/check.h"
#include "cuda/modulation_cuda.h"
#include "ops/path_point.h"
#include "simt/launch.h"
#include "simt/simt.h"

namespace cae::cuda {
namespace {

constexpr int kPathThreads = 128;

KFN void store_double(uint32_t address, double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  dev::sts32(address, static_cast<uint32_t>(bits));
  dev::sts32(address + 4, static_cast<uint32_t>(bits >> 32));
}

KFN double load_double(uint32_t address) {
  const uint64_t bits = dev::lds32(address) | static_cast<uint64_t>(dev::lds32(address + 4)) << 32;
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

struct SharedArcLength {
  uint32_t lengths;
  KFN_MEMBER double operator()(int64_t i) const {
    return load_double(lengths + static_cast<uint32_t>(i) * 8);
  }
};

KERNEL void __launch_bounds__(kPathThreads) path_codes_kernel(const PathCodesParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int64_t row = dev::bx();
  if (p.active != nullptr && dev::load(p.active + row) == 0) {
    return;
  }
  const int tid = dev::tid();
  const uint32_t point_at = dev::smem_base();
  const uint32_t lengths = point_at + 16;
  const int64_t image =
      p.image_index == nullptr ? row / (p.grid + 1) : dev::load(p.image_index + row);
  const float* path = p.vertices + image * p.vertex_count * p.code_dim;
  for (int i = 1 + tid; i < p.vertex_count; i += kPathThreads) {
    const float* b = path + static_cast<int64_t>(i) * p.code_dim;
    double squares = 0.0;
    UNROLL_BY(8) for (int d = 0; d < p.code_dim; ++d) {
      squares = add_squared_difference(squares, dev::load(b + d), dev::load(b - p.code_dim + d));
    }
    store_double(lengths + i * 8, std::sqrt(squares));
  }
  dev::sync();
  if (tid == 0) {
    double length = 0.0;
    store_double(lengths, length);
    for (int i = 1; i < p.vertex_count; ++i) {
      length += load_double(lengths + i * 8);
      store_double(lengths + i * 8, length);
    }
    const int64_t step = p.step == nullptr ? row % (p.grid + 1) : dev::load(p.step + row);
    const PathPoint point =
        locate_on_path(SharedArcLength{lengths}, p.vertex_count - 1, step, p.grid);
    dev::sts32(point_at, static_cast<uint32_t>(point.segment));
    dev::stsf(point_at + 4, point.u);
  }
  dev::sync();
  const float u = dev::ldsf(point_at + 4);
  const float* a = path + static_cast<int64_t>(dev::lds32(point_at)) * p.code_dim;
  for (int d = tid; d < p.code_dim; d += kPathThreads) {
    const float from = dev::load(a + d);
    dev::store(p.codes + row * p.code_dim + d,
               u == 0.0F ? from : interpolate_on_path(u, from, dev::load(a + p.code_dim + d)));
  }
}

constexpr int kLinearThreads = 256;
constexpr int kLinearWarps = kLinearThreads / 32;
constexpr int kLinearColumns = 32;  // of a block, 4 of a thread
constexpr int kLinearDepth = 8;     // inputs of a thread in a slice
constexpr int kLinearSlice = kLinearThreads * 4 / kLinearColumns * kLinearDepth;

/// The inputs [k0, k0 + kLinearSlice) of kRows rows to shared memory, zeros beyond the last.
template <int kRows>
KFN void fill_inputs(const LinearParams& p, int64_t row0, int k0, int tid, uint32_t inputs) {
  UNROLL_BY(4) for (int i = 0; i < kRows * kLinearSlice / kLinearThreads; ++i) {
    const int at = tid + i * kLinearThreads;
    const int64_t row = row0 + at / kLinearSlice;
    const int k = k0 + at % kLinearSlice;
    dev::stsf(inputs + at * 4,
              row < p.rows && k < p.in ? dev::load(p.x + row * p.x_stride + k) : 0.0F);
  }
}

/// sums += inputs of this thread's depth times its four columns.
template <int kRows>
KFN void multiply_inputs(float (&sums)[kRows][4], const uint4 (&weight)[kLinearDepth],
                         uint32_t inputs) {
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int half = 0; half < kLinearDepth / 4; ++half) {
      const uint4 packed = dev::lds128(inputs + (r * kLinearSlice + half * 4) * 4);
      const uint32_t x[4] = {packed.x, packed.y, packed.z, packed.w};
      UNROLL for (int k = 0; k < 4; ++k) {
        const uint4 w = weight[half * 4 + k];
        sums[r][0] = dev::fma(dev::fbits(x[k]), dev::fbits(w.x), sums[r][0]);
        sums[r][1] = dev::fma(dev::fbits(x[k]), dev::fbits(w.y), sums[r][1]);
        sums[r][2] = dev::fma(dev::fbits(x[k]), dev::fbits(w.z), sums[r][2]);
        sums[r][3] = dev::fma(dev::fbits(x[k]), dev::fbits(w.w), sums[r][3]);
      }
    }
  }
}

template <int kRows>
KERNEL void __launch_bounds__(kLinearThreads, 2) linear_kernel(const LinearParams p) {
  dev::pdl_launch();
  const int blocks = (p.out + kLinearColumns - 1) / kLinearColumns;
  const int column0 = dev::bx() % blocks * kLinearColumns;
  const int64_t row0 = static_cast<int64_t>(dev::bx() / blocks) * kRows;
  const int tid = dev::tid();
  const int lane = tid & 31;
  const int warp = tid >> 5;
  const int column = column0 + (lane & 7) * 4;
  const int depth0 = (warp * 4 + (lane >> 3)) * kLinearDepth;
  const uint32_t inputs = dev::smem_base();
  const uint32_t partial = inputs + kRows * kLinearSlice * 4;
  float sums[kRows][4] = {};
  for (int k0 = 0; k0 < p.in; k0 += kLinearSlice) {
    uint4 weight[kLinearDepth];
    UNROLL for (int k = 0; k < kLinearDepth; ++k) {
      weight[k].x = weight[k].y = weight[k].z = weight[k].w = 0;
      if (k0 + depth0 + k < p.in && column < p.out) {
        // not ldg128, which the compiler moves behind the barrier to save registers
        weight[k] =
            dev::ldg128_stream(p.weight + static_cast<int64_t>(k0 + depth0 + k) * p.out + column);
      }
    }
    if (k0 > 0) {
      dev::sync();
    } else {
      dev::pdl_wait();  // weights depend on no kernel before this one
    }
    fill_inputs<kRows>(p, row0, k0, tid, inputs);
    dev::sync();
    multiply_inputs<kRows>(sums, weight, inputs + depth0 * 4);
  }
  UNROLL for (int r = 0; r < kRows; ++r) {
    UNROLL for (int e = 0; e < 4; ++e) {
      sums[r][e] += dev::shfl_xor(sums[r][e], 8);
      sums[r][e] += dev::shfl_xor(sums[r][e], 16);
    }
    if ((lane >> 3) == (r & 3)) {  // all four hold the sum
      uint4 packed;
      packed.x = dev::ubits(sums[r][0]);
      packed.y = dev::ubits(sums[r][1]);
      packed.z = dev::ubits(sums[r][2]);
      packed.w = dev::ubits(sums[r][3]);
      dev::sts128(partial + ((warp * kRows + r) * kLinearColumns + (lane & 7) * 4) * 4, packed);
    }
  }
  dev::sync();
  for (int i = tid; i < kRows * kLinearColumns; i += kLinearThreads) {
    const int64_t row = row0 + i / kLinearColumns;
    const int c = column0 + i % kLinearColumns;
    if (row < p.rows && c < p.out) {
      float sum = p.bias == nullptr ? 0.0F : dev::load(p.bias + c);
      UNROLL for (int w = 0; w < kLinearWarps; ++w) {
        sum += dev::ldsf(partial + (w * kRows * kLinearColumns + i) * 4);
      }
      dev::store(p.y + row * p.out + c, p.relu != 0 ? dev::relu(sum) : sum);
    }
  }
}

template <int kRows>
void launch_linear(const LinearParams& p, void* stream) {
  const int64_t blocks = (static_cast<int64_t>(p.rows) + kRows - 1) / kRows *
                         ((p.out + kLinearColumns - 1) / kLinearColumns);
  CAE_CHECK(blocks <= INT32_MAX, p.rows, " rows are too many for one launch");
  constexpr uint32_t kBytes = kRows * (kLinearSlice + kLinearWarps * kLinearColumns) * 4;
  launch(linear_kernel<kRows>, Grid{static_cast<int>(blocks), 1, 1}, kLinearThreads, kBytes, stream,
         p, {p.overlap});
}

}  // namespace

void path_codes(const PathCodesParams& params, void* stream) {
  if (params.rows == 0) {
    return;
  }
  CAE_CHECK(params.vertex_count >= 1 && params.vertex_count <= kMaxPathVertices,
            "vertex_count must be in [1, ", kMaxPathVertices, "], got ", params.vertex_count);
  CAE_CHECK(params.code_dim >= 1 && params.grid >= 1, "code_dim and grid must be at least 1, got ",
            params.code_dim, " and ", params.grid);
  launch(path_codes_kernel, Grid{params.rows, 1, 1}, kPathThreads,
         16 + static_cast<uint32_t>(params.vertex_count) * 8, stream, params, {params.overlap});
}

void linear(const LinearParams& params, void* stream) {
  if (params.rows == 0) {
    return;
  }
  CAE_CHECK(params.in >= 1 && params.out >= 4 && params.out % 4 == 0,
            "in must be at least 1 and out a multiple of 4, got ", params.in, " and ", params.out);
  if (params.rows == 1) {
    launch_linear<1>(params, stream);
  } else if (params.rows <= 4) {
    launch_linear<4>(params, stream);
  } else if (params.rows <= 8) {
    launch_linear<8>(params, stream);
  } else {
    launch_linear<16>(params, stream);
  }
}

}  // namespace cae::cuda
