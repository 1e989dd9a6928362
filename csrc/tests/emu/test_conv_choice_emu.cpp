// SPDX-License-Identifier: Apache-2.0
// Which path convolves where, and that a path with other results is not taken.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/gpu_conv_choice.h"
#include "engine/gpu_conv_trial.h"
#include "engine/gpu_tiles.h"
#include "tests/check_test.h"

namespace {

using cae::cuda::ConvKind;
using cae::cuda::ConvParams;
using cae::cuda::ConvPath;
using cae::cuda::ConvTile;
using cae::gpu::choose_conv;
using cae::gpu::conv_paths_agree;

ConvPath path_with(const char* arch, const char* wanted, const char* cluster = "") {
  setenv("CAE_EMU_ARCH", arch, 1);
  setenv("CAE_GPU_CONV", wanted, 1);
  setenv("CAE_GPU_CLUSTER", cluster, 1);
  return choose_conv(0).path;
}

/// What choosing is refused with.
std::string refusal(const char* arch, const char* wanted, const char* cluster = "") {
  try {
    path_with(arch, wanted, cluster);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

void test_choice() {
  for (const char* arch : {"80", "86", "89", "100", "120"}) {
    CAE_TEST_CHECK(path_with(arch, "") == ConvPath::kPortable);
    CAE_TEST_CHECK(path_with(arch, "auto") == ConvPath::kPortable);
  }
  CAE_TEST_CHECK(path_with("90", "") == ConvPath::kPortable);
  CAE_TEST_CHECK(path_with("90", "auto") == ConvPath::kWgmma);
  CAE_TEST_CHECK(path_with("90", "auto", "4") == ConvPath::kWgmma);
  CAE_TEST_CHECK(choose_conv(0).cluster == 4);
  CAE_TEST_CHECK(!choose_conv(0).one_tile);
  CAE_TEST_CHECK(path_with("90", "wgmma") == ConvPath::kWgmma);
  CAE_TEST_CHECK(choose_conv(0).cluster == 2);
  CAE_TEST_CHECK(path_with("90", "portable") == ConvPath::kPortable);
  CAE_TEST_CHECK(refusal("86", "wgmma").find("this GPU has 8.6") != std::string::npos);
  CAE_TEST_CHECK(refusal("90", "fast").find("must be auto, portable or wgmma, got fast") !=
                 std::string::npos);
  CAE_TEST_CHECK(refusal("90", "", "3").find("must be 1, 2 or 4, got 3") != std::string::npos);
}

// Paths that go wrong as a misread descriptor or a lost copy would.
void writes_nothing(const ConvParams& p, void* stream) {
  if (p.path == ConvPath::kPortable) {
    cae::cuda::conv_tile(p, stream);
  }
}
void shifts_weights(const ConvParams& p, void* stream) {
  ConvParams wrong = p;
  wrong.weights += p.path == ConvPath::kWgmma ? 8 : 0;
  wrong.in_channels -= 8;  // within the weights that there are
  cae::cuda::conv_tile(wrong, stream);
}
void loses_wide_blocks(const ConvParams& p, void* stream) {
  ConvParams wrong = p;
  if (p.tile.columns == 128) {
    wrong.out_width -= 1;
  }
  cae::cuda::conv_tile(wrong, stream);
}

/// Wide blocks a little off, as another order of sums would put them: here, of the portable path.
void adds_otherwise(const ConvParams& p, void* stream) {
  ConvParams other = p;
  if (p.tile.columns == 128) {
    other.path = ConvPath::kPortable;
    other.tile = {128, 128};
  }
  cae::cuda::conv_tile(other, stream);
}

void test_disagreement() {
  setenv("CAE_EMU_ARCH", "90", 1);
  const std::vector<ConvTile> all = {{128, 64}, {64, 128}, {128, 128}, {128, 256}};
  for (const int cluster : {1, 2, 4}) {
    const cae::gpu::ConvAgreement agreement = conv_paths_agree(0, cluster, all);
    CAE_TEST_CHECK(agreement.wrong.empty() && agreement.same_bits);
  }
  const std::vector<ConvTile> two = {{128, 64}, {128, 128}};
  const std::string both =
      "3x3 in tiles of 128 x 64, 3x3 in tiles of 128 x 128, upsampling in tiles of 128 x 64, "
      "upsampling in tiles of 128 x 128";
  CAE_TEST_CHECK(conv_paths_agree(0, 1, two, writes_nothing).wrong == both);
  CAE_TEST_CHECK(conv_paths_agree(0, 1, two, shifts_weights).wrong == both);
  CAE_TEST_CHECK(conv_paths_agree(0, 1, two, loses_wide_blocks).wrong ==
                 "3x3 in tiles of 128 x 128, upsampling in tiles of 128 x 128");
  const cae::gpu::ConvAgreement agreement = conv_paths_agree(0, 1, two, adds_otherwise);
  CAE_TEST_CHECK(agreement.wrong.empty() && !agreement.same_bits);
}

/// What a layer can get, and no more: a tile that is wrong refuses the path.
void test_tiles() {
  cae::gpu::TileTable table = {"made up", 132, {}};
  const std::vector<ConvTile> usual = {{128, 64}, {128, 128}, {128, 256}};
  CAE_TEST_CHECK(cae::gpu::tiles_to_check(table) == usual);
  table.rows.push_back({ConvPath::kWgmma, ConvKind::kConv3x3, 64, 256, 8, 8, 1, {64, 128}});
  table.rows.push_back({ConvPath::kWgmma, ConvKind::kConv3x3, 64, 256, 8, 8, 2, {128, 256}});
  CAE_TEST_CHECK(cae::gpu::tiles_to_check(table).size() == 4);
  CAE_TEST_CHECK((cae::gpu::tiles_to_check(table).back() == ConvTile{64, 128}));
}

}  // namespace

int main() {
  test_choice();
  test_disagreement();
  test_tiles();
  return cae::testing::finish("test_conv_choice_emu");
}
