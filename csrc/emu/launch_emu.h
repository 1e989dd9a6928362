// SPDX-License-Identifier: Apache-2.0
// launch() in the emulator: runs the kernel to its end. Included through simt/launch.h.
#pragma once

#include <array>
#include <mutex>
#include <vector>

#include "emu/emu_counts.h"
#include "simt/launch.h"
#include "simt/simt.h"

namespace cae::cuda {

template <class P>
void launch(void (*kernel)(P), Grid grid, int threads, size_t shared_bytes, Stream /*stream*/,
            const P& params, LaunchOptions options = {}) {
  const std::lock_guard<std::mutex> lock(emu::turn);
  ++emu::launches;
  ::emu::S.gx = grid.x;
  ::emu::S.gy = grid.y;
  ::emu::S.gz = grid.z;
  for (int z = 0; z < grid.z; ++z) {
    for (int y = 0; y < grid.y; ++y) {
      for (int x = 0; x < grid.x; x += options.cluster) {
        std::vector<std::array<int, 3>> blocks;
        for (int i = 0; i < options.cluster; ++i) {
          blocks.push_back({x + i, y, z});
        }
        ::emu::launch(blocks, threads, shared_bytes, options.cluster == 1, [&] { kernel(params); });
      }
    }
  }
}

}  // namespace cae::cuda
