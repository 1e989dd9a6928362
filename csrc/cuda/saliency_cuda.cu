// SPDX-License-Identifier: Apache-2.0
// A thread has four neighbouring pixels. The first kernel leaves sums over channels and the largest
// of each block, the second divides by the largest of all: a maximum does not depend on the order.
#include <limits>

#include "core/check.h"
#include "cuda/saliency_cuda.h"
#include "simt/launch.h"
#include "simt/simt.h"

namespace cae::cuda {
namespace {

using search::FlipStatus;

constexpr int kSaliencyThreads = kSaliencyBlock / 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr uint32_t kSaliencyShared = kSaliencyThreads / 32 * 4;

/// Largest value of the block, for all threads. Every thread calls.
KFN float block_max(float value, int tid, uint32_t scratch) {
  UNROLL for (int m = 1; m < 32; m <<= 1) { value = dev::max(value, dev::shfl_xor(value, m)); }
  if ((tid & 31) == 0) {
    dev::stsf(scratch + (tid >> 5) * 4, value);
  }
  dev::sync();
  float largest = dev::ldsf(scratch);
  UNROLL for (int w = 1; w < kSaliencyThreads / 32; ++w) {
    largest = dev::max(largest, dev::ldsf(scratch + w * 4));
  }
  return largest;
}

KFN void unpack_four(uint4 v, float (&out)[4]) {
  out[0] = dev::fbits(v.x);
  out[1] = dev::fbits(v.y);
  out[2] = dev::fbits(v.z);
  out[3] = dev::fbits(v.w);
}
KFN uint4 pack_four(const float (&v)[4]) {
  uint4 out;
  out.x = dev::ubits(v[0]);
  out.y = dev::ubits(v[1]);
  out.z = dev::ubits(v[2]);
  out.w = dev::ubits(v[3]);
  return out;
}

KERNEL void __launch_bounds__(kSaliencyThreads) difference_kernel(const SaliencyParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int tid = dev::tid();
  const int parts = saliency_parts(p.pixels);
  const int64_t image = dev::bx() / parts;
  const int part = dev::bx() % parts;
  const int pixel = part * kSaliencyBlock + tid * 4;
  const FlipStatus status = dev::load(&p.states[image].status);
  const bool compared = status != FlipStatus::kAlreadyTarget && status != FlipStatus::kNonFinite;
  const bool to_input = p.against_input || status == FlipStatus::kReconstructionFlips;
  const float* reference = to_input ? p.inputs : p.reconstruction;
  float sums[4] = {};
  if (pixel < p.pixels) {
    for (int c = 0; c < p.channels; ++c) {
      const int64_t at = (image * p.channels + c) * p.pixels + pixel;
      float difference[4] = {};
      if (compared) {
        float a[4], b[4];
        unpack_four(dev::ldg128_stream(p.counterfactual + at), a);
        unpack_four(dev::ldg128_stream(reference + at), b);
        UNROLL for (int i = 0; i < 4; ++i) {
          difference[i] = a[i] - b[i];
          sums[i] += difference[i] < 0.0F ? -difference[i] : difference[i];
        }
      }
      dev::stg128(p.difference + at, pack_four(difference));
    }
    dev::stg128(p.saliency + image * p.pixels + pixel, pack_four(sums));
  }
  float largest = 0.0F;
  UNROLL for (int i = 0; i < 4; ++i) {
    const bool finite = sums[i] - sums[i] == 0.0F;
    largest = dev::max(largest, finite ? sums[i] : kInfinity);
  }
  largest = block_max(largest, tid, dev::smem_base());
  if (tid == 0) {
    dev::store(p.workspace + image * parts + part, largest);
  }
}

KERNEL void __launch_bounds__(kSaliencyThreads) saliency_kernel(const SaliencyParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int tid = dev::tid();
  const int parts = saliency_parts(p.pixels);
  const int64_t image = dev::bx() / parts;
  const int pixel = dev::bx() % parts * kSaliencyBlock + tid * 4;
  float largest = 0.0F;
  for (int part = tid; part < parts; part += kSaliencyThreads) {
    largest = dev::max(largest, dev::load(p.workspace + image * parts + part));
  }
  largest = block_max(largest, tid, dev::smem_base());
  if (pixel >= p.pixels || largest == 0.0F) {
    return;  // all sums are 0, and stored already
  }
  float* const at = p.saliency + image * p.pixels + pixel;
  float values[4];
  unpack_four(dev::ldg128_stream(at), values);
  const bool finite = largest - largest == 0.0F;
  UNROLL for (int i = 0; i < 4; ++i) { values[i] = finite ? values[i] / largest : 0.0F; }
  dev::stg128(at, pack_four(values));
}

}  // namespace

void difference_saliency(const SaliencyParams& p, void* stream) {
  if (p.images == 0) {
    return;
  }
  CAE_CHECK(p.channels >= 1, "channels must be positive, got ", p.channels);
  CAE_CHECK(p.pixels >= 4 && p.pixels % 4 == 0, "pixels must be a positive multiple of 4, got ",
            p.pixels);
  const int64_t blocks = static_cast<int64_t>(p.images) * saliency_parts(p.pixels);
  CAE_CHECK(p.images > 0 && blocks <= INT32_MAX, "maps of ", p.images, " images of ", p.pixels,
            " pixels are too many for one launch");
  const Grid grid{static_cast<int>(blocks)};
  launch(difference_kernel, grid, kSaliencyThreads, kSaliencyShared, stream, p, {p.overlap});
  launch(saliency_kernel, grid, kSaliencyThreads, kSaliencyShared, stream, p, {p.overlap});
}

}  // namespace cae::cuda
