// SPDX-License-Identifier: Apache-2.0
// Difference and map of the emulated GPU against the CPU's: bit by bit the same.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/saliency_cuda.h"
#include "device_values.h"
#include "tests/check_test.h"

namespace {

using cae::cuda::SaliencyParams;
using cae::search::FlipState;
using cae::search::FlipStatus;
using cae::testing::DeviceArray;

/// As csrc/cpu/difference_saliency_cpu.cpp has it, for one image.
void expect(const float* a, const float* b, int channels, int pixels, float* difference,
            float* saliency) {
  float largest = 0.0F;
  bool finite = true;
  for (int p = 0; p < pixels; ++p) {
    float sum = 0.0F;
    for (int c = 0; c < channels; ++c) {
      difference[c * pixels + p] = a[c * pixels + p] - b[c * pixels + p];
      sum += std::fabs(difference[c * pixels + p]);
    }
    saliency[p] = sum;
    largest = std::fmax(largest, sum);
    finite = finite && std::isfinite(sum);
  }
  for (int p = 0; p < pixels; ++p) {
    saliency[p] = largest == 0.0F || !finite ? 0.0F : saliency[p] / largest;
  }
}

/// Equal, NaN of any kind being equal to NaN.
bool same(float a, float b) { return a == b || (a != a && b != b); }

void test_maps(int channels, int pixels, bool against_input) {
  const std::vector<FlipStatus> statuses = {
      FlipStatus::kFlipped,   FlipStatus::kNotFlipped, FlipStatus::kAlreadyTarget,
      FlipStatus::kNonFinite, FlipStatus::kFlipped,    FlipStatus::kReconstructionFlips,
      FlipStatus::kFlipped,   FlipStatus::kNotFlipped};
  const size_t n = statuses.size();
  const auto size = static_cast<size_t>(channels) * static_cast<size_t>(pixels);
  std::mt19937 random(static_cast<unsigned>(channels * pixels));
  std::uniform_real_distribution<float> draw(-1.0F, 1.0F);
  std::vector<float> a, reconstruction, input;
  std::vector<FlipState> states;
  for (size_t i = 0; i < n; ++i) {
    FlipState state{};
    state.status = statuses[i];
    states.push_back(state);
    for (size_t j = 0; j < size; ++j) {
      a.push_back(draw(random));
      reconstruction.push_back(i == 4 ? a.back() : draw(random));  // image 4: no difference
      input.push_back(i == 4 ? a.back() : draw(random));
    }
  }
  a[6 * size + 5] = std::numeric_limits<float>::quiet_NaN();
  a[7 * size + size - 1] = std::numeric_limits<float>::infinity();
  const DeviceArray<float> a_d(a), reconstruction_d(reconstruction), input_d(input),
      difference(n * size, -9.0F), saliency(n * static_cast<size_t>(pixels), -9.0F),
      workspace(n * static_cast<size_t>(cae::cuda::saliency_parts(pixels)), -9.0F);
  const DeviceArray<FlipState> states_d(states);
  SaliencyParams params;
  params.overlap = true;  // the emulator is strictest then
  params.images = static_cast<int32_t>(n);
  params.channels = channels;
  params.pixels = pixels;
  params.against_input = against_input;
  params.states = states_d.data();
  params.counterfactual = a_d.data();
  params.reconstruction = reconstruction_d.data();
  params.inputs = input_d.data();
  params.difference = difference.data();
  params.saliency = saliency.data();
  params.workspace = workspace.data();
  cae::cuda::difference_saliency(params, nullptr);
  const std::vector<float> got_difference = difference.values();
  const std::vector<float> got_saliency = saliency.values();
  for (size_t i = 0; i < n; ++i) {
    std::vector<float> expected_difference(size, 0.0F);
    std::vector<float> expected_saliency(static_cast<size_t>(pixels), 0.0F);
    const bool to_input = against_input || statuses[i] == FlipStatus::kReconstructionFlips;
    if (statuses[i] != FlipStatus::kAlreadyTarget && statuses[i] != FlipStatus::kNonFinite) {
      expect(a.data() + i * size, (to_input ? input : reconstruction).data() + i * size, channels,
             pixels, expected_difference.data(), expected_saliency.data());
    }
    bool differences = true;
    for (size_t j = 0; j < size; ++j) {
      differences = differences && same(got_difference[i * size + j], expected_difference[j]);
    }
    bool maps = true;
    for (size_t j = 0; j < expected_saliency.size(); ++j) {
      maps = maps && same(got_saliency[i * expected_saliency.size() + j], expected_saliency[j]);
    }
    CAE_TEST_CHECK(differences);
    CAE_TEST_CHECK(maps);
  }
}

void test_errors() {
  SaliencyParams params;
  cae::cuda::difference_saliency(params, nullptr);  // no images: nothing happens
  params.images = params.channels = 1;
  params.pixels = 6;
  const auto launch = [&] { cae::cuda::difference_saliency(params, nullptr); };
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  params.pixels = 16;
  params.channels = 0;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
}

}  // namespace

int main() {
  for (int channels = 1; channels <= 4; ++channels) {
    test_maps(channels, 16 * 16, false);
    test_maps(channels, 36 * 36, channels % 2 == 0);
    test_maps(channels, 64 * 64, channels % 2 == 1);
  }
  test_errors();
  return cae::testing::finish("test_saliency_emu");
}
