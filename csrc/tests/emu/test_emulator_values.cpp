// SPDX-License-Identifier: Apache-2.0
// What the emulator computes and counts: halves, matrix products, shuffles, bank conflicts; the
// same on any number of host threads.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "emu/emu_counts.h"
#include "emu_case.h"

namespace {

using cae::cuda::Grid;
using cae::testing::Case;
using cae::testing::CaseShape;
using cae::testing::run_case;

void test_halves() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = cae::emu::half_to_float(half);
    const uint32_t rest = bits & 0x7fff;
    if (rest > 0x7c00) {
      CAE_TEST_CHECK(std::isnan(value));
      CAE_TEST_CHECK(std::isnan(cae::emu::half_to_float(cae::emu::float_to_half(value))));
      continue;
    }
    const float sign = bits >= 0x8000 ? -1.0F : 1.0F;
    const int exponent = static_cast<int>(rest >> 10);
    const float expected =
        rest == 0x7c00  ? INFINITY
        : exponent == 0 ? std::ldexp(static_cast<float>(rest), -24)
                        : std::ldexp(static_cast<float>(1024 + (rest & 1023)), exponent - 25);
    CAE_TEST_CHECK(value == sign * expected);
    CAE_TEST_CHECK(cae::emu::float_to_half(value) == half);
    if (rest >= 0x7bff) {
      continue;
    }
    // Between it and the next: down, to even, up.
    const float next = cae::emu::half_to_float(static_cast<uint16_t>(bits + 1));
    const float middle = (value + next) / 2;
    const auto above = static_cast<uint16_t>(bits + 1);
    CAE_TEST_CHECK(cae::emu::float_to_half(std::nextafter(middle, value)) == half);
    CAE_TEST_CHECK(cae::emu::float_to_half(middle) == (bits % 2 == 0 ? half : above));
    CAE_TEST_CHECK(cae::emu::float_to_half(std::nextafter(middle, next)) == above);
  }
  CAE_TEST_CHECK(cae::emu::float_to_half(65519.0F) == 0x7bff);
  CAE_TEST_CHECK(cae::emu::float_to_half(65520.0F) == 0x7c00);
  CAE_TEST_CHECK(cae::emu::float_to_half(-1e30F) == 0xfc00);
}

float value_of(int i) { return static_cast<float>((i * 37 + 11) % 61 - 30) / 16.0F; }

// D[16][8] = C + A[16][16] B[16][8] by ldmatrix and mma, as the PTX manual draws the fragments.
KERNEL void __launch_bounds__(32) mma_kernel(const Case p) {
  const int lane = dev::tid();
  const uint32_t a = dev::smem_base();
  const uint32_t b = a + 16 * 16 * 2;  // [8 columns n][16 k]
  for (int i = lane; i < 16 * 8; i += 32) {
    dev::sts32(a + i * 4, dev::pack_half2(dev::load(p.in + i * 2), dev::load(p.in + i * 2 + 1)));
  }
  for (int i = lane; i < 8 * 8; i += 32) {
    dev::sts32(b + i * 4,
               dev::pack_half2(dev::load(p.in + 256 + i * 2), dev::load(p.in + 257 + i * 2)));
  }
  dev::sync();
  uint32_t fa[4];
  uint32_t fb[4];
  dev::ldsm4(fa, a + (lane % 16 * 16 + lane / 16 * 8) * 2);
  dev::ldsm4(fb, b + (lane % 8 * 16 + lane / 8 % 2 * 8) * 2);
  float d[4];
  const int row = lane / 4;
  const int column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    d[i] = dev::load(p.in + 384 + (row + i / 2 * 8) * 8 + column + i % 2);
  }
  dev::mma16816(d, fa, fb[0], fb[1]);
  for (int i = 0; i < 4; ++i) {
    dev::store(p.out + (row + i / 2 * 8) * 8 + column + i % 2, d[i]);
  }
}

void test_mma() {
  std::vector<float> in(512);
  for (int i = 0; i < 512; ++i) {
    in[i] = value_of(i);  // exact in half, and their sums in float
  }
  const cae::gpu::DeviceBuffer in_d(0, in.size() * 4);
  const cae::gpu::DeviceBuffer out_d(0, 128 * 4);
  cae::gpu::copy_to_device(in_d.data(), in.data(), in_d.bytes(), nullptr);
  cae::cuda::launch(mma_kernel, Grid{}, 32, 1024, nullptr,
                    Case{0, in_d.as<float>(), out_d.as<float>()});
  std::vector<float> out(128);
  cae::gpu::copy_to_host(out.data(), out_d.data(), out_d.bytes(), nullptr);
  for (int row = 0; row < 16; ++row) {
    for (int n = 0; n < 8; ++n) {
      float expected = in[384 + row * 8 + n];
      for (int k = 0; k < 16; ++k) {
        expected += in[row * 16 + k] * in[256 + n * 16 + k];
      }
      CAE_TEST_CHECK(out[row * 8 + n] == expected);
    }
  }
}

// The two ways to multiply agree bit for bit on any halves.
void test_mma_ways() {
  uint64_t random = 7;
  for (int round = 0; round < 200; ++round) {
    cae::emu::WarpRegisters one;
    for (auto& row : one.in) {
      for (uint32_t& pair : row) {
        random = random * 6364136223846793005ULL + 1442695040888963407ULL;
        pair = static_cast<uint32_t>(random >> 32) & 0xbfffbfff;  // finite
      }
    }
    for (int i = 0; i < 64; ++i) {
      one.sums[i / 32][i % 32] = {value_of(i), value_of(i + 7)};
    }
    cae::emu::WarpRegisters other = one;
    cae::emu::multiply_matrices(one);
    cae::emu::multiply_portable(other);
    CAE_TEST_CHECK(one.sums == other.sums);
  }
}

KERNEL void __launch_bounds__(64) shuffle_kernel(const Case p) {
  const int tid = dev::tid();
  const auto value = static_cast<float>(tid);
  dev::store(p.out + tid, dev::shfl(value, (tid + 5) % 32));
  dev::store(p.out + 64 + tid, dev::shfl_xor(value, 9));
  dev::store(p.out + 128 + tid, static_cast<float>(dev::uniform(tid)));
}

void test_shuffles() {
  std::vector<float> out;
  CAE_TEST_CHECK(run_case(shuffle_kernel, {Grid{}, 64}, 0, &out).empty());
  for (int t = 0; t < 64; ++t) {
    const int warp = t / 32 * 32;
    CAE_TEST_CHECK(out[t] == static_cast<float>(warp + (t + 5) % 32));
    CAE_TEST_CHECK(out[64 + t] == static_cast<float>(warp + (t % 32 ^ 9)));
    CAE_TEST_CHECK(out[128 + t] == static_cast<float>(warp));
  }
}

// Lanes `bug` words apart; 0: all read one word.
KERNEL void __launch_bounds__(32) banks_kernel(const Case p) {
  const int lane = dev::tid();
  dev::stsf(dev::smem_base() + lane * 4, 1.0F);
  dev::sync();
  if (p.bug == 4) {
    dev::sts128(dev::smem_base() + lane * 16, uint4{});
  } else {
    dev::stsf(dev::smem_base() + lane * p.bug * 4 + (p.bug == 0 ? lane * 4 : 0), 1.0F);
  }
  dev::sync();
  if (p.bug == 0) {
    dev::ldsf(dev::smem_base());
  }
}

void test_bank_conflicts() {
  const auto wavefronts = [](int stride) {
    cae::emu::reset_counts();
    CAE_TEST_CHECK(run_case(banks_kernel, {Grid{}, 32, 8192}, stride).empty());
    const auto counts = cae::emu::launch_counts();
    CAE_TEST_CHECK(counts.size() == 1);
    const cae::emu::Counts& kernel = counts.begin()->second;
    CAE_TEST_CHECK(kernel.launches == 1);
    CAE_TEST_CHECK(kernel.blocks == 1);
    CAE_TEST_CHECK(kernel.shared_bytes == 8192);
    return std::vector<int64_t>{kernel.shared_accesses, kernel.shared_wavefronts};
  };
  CAE_TEST_CHECK((wavefronts(0) == std::vector<int64_t>{3, 3}));
  CAE_TEST_CHECK((wavefronts(1) == std::vector<int64_t>{2, 2}));
  CAE_TEST_CHECK((wavefronts(2) == std::vector<int64_t>{2, 3}));
  CAE_TEST_CHECK((wavefronts(3) == std::vector<int64_t>{2, 2}));
  CAE_TEST_CHECK((wavefronts(4) == std::vector<int64_t>{5, 5}));  // 16 bytes by 8 lanes at a time
  CAE_TEST_CHECK((wavefronts(32) == std::vector<int64_t>{2, 33}));
}

// Values that depend on every part of a launch.
KERNEL void __launch_bounds__(64) grid_kernel(const Case p) {
  const int tid = dev::tid();
  const int block = (dev::bz() * dev::gy() + dev::by()) * dev::gx() + dev::bx();
  float sum = dev::load(p.in + tid + block);
  for (int m = 1; m < 32; m <<= 1) {
    sum += dev::shfl_xor(sum, m);
  }
  if (tid % 32 == 0) {
    dev::stsf(dev::smem_base() + tid / 32 * 4, sum);
  }
  dev::sync();
  sum = dev::tanh(dev::ldsf(dev::smem_base()) * 1e-4F) + dev::ldsf(dev::smem_base() + 4);
  if (p.bug == 1 && block >= 3) {
    dev::ldsf(dev::smem_base() + 8);
  }
  dev::store(p.out + block * 64 + tid, dev::rsqrt(sum) + static_cast<float>(dev::gz()));
}

void test_host_threads() {
  const CaseShape shape{Grid{4, 3, 5}, 64, 256};
  std::vector<float> one;
  setenv("CAE_EMU_THREADS", "1", 1);
  CAE_TEST_CHECK(run_case(grid_kernel, shape, 0, &one).empty());
  const std::string fault = run_case(grid_kernel, shape, 1);
  CAE_TEST_CHECK(fault.find("block (3, 0, 0), thread ") != std::string::npos);
  for (const char* threads : {"2", "5", "64"}) {
    setenv("CAE_EMU_THREADS", threads, 1);
    std::vector<float> many;
    CAE_TEST_CHECK(run_case(grid_kernel, shape, 0, &many).empty());
    for (int i = 0; i < 60 * 64; ++i) {
      CAE_TEST_CHECK(one[i] == many[i]);
    }
    CAE_TEST_CHECK(run_case(grid_kernel, shape, 1) == fault);
  }
  unsetenv("CAE_EMU_THREADS");
}

}  // namespace

int main() {
  test_halves();
  test_mma();
  test_mma_ways();
  test_shuffles();
  test_bank_conflicts();
  test_host_threads();
  return cae::testing::finish("test_emulator_values");
}
