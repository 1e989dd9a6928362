// SPDX-License-Identifier: Apache-2.0
// Says why no thread of a block can go on.
#include <map>

#include "emu/emulator.h"
#include "emu/shared_memory.h"

namespace cae::emu {
namespace {

const char* name_of(WarpOp op) {
  switch (op) {
    case WarpOp::kSyncWarp:
      return "syncwarp";
    case WarpOp::kShuffle:
      return "shfl";
    case WarpOp::kShuffle8:
      return "shfl of 8 bytes";
    case WarpOp::kLoadMatrix:
      return "ldsm4";
    case WarpOp::kMultiply:
      return "mma16816";
    case WarpOp::kUniform:
      return "uniform";
  }
  return "";
}

std::string where(const Lane& lane) {
  if (lane.ended) {
    return "ended";
  }
  const std::string number = std::to_string(lane.waits_on);
  switch (lane.waiting) {
    case Waiting::kWarpOp:
      return std::string("in ") + name_of(lane.warp->op);
    case Waiting::kBarrier:
      return "at barrier " + number;
    case Waiting::kMbarrier:
      return "waiting for parity " + std::to_string(lane.waits_parity) +
             " of the mbarrier at byte " + std::to_string(lane.waits_on - kSharedBase);
    case Waiting::kCluster:
      return "at the barrier of the cluster";
    case Waiting::kWarpgroup:
      return "in an operation of the warpgroup";
    case Waiting::kNothing:
      break;
  }
  return "here";
}

/// "16 threads in shfl, 16 ended"
std::string counted(const Lane* lanes, size_t count) {
  std::map<std::string, int> places;
  for (size_t i = 0; i < count; ++i) {
    ++places[where(lanes[i])];
  }
  std::string text;
  for (const auto& [place, threads] : places) {
    text += (text.empty() ? "" : ", ") + std::to_string(threads) + " threads " + place;
  }
  return text;
}

}  // namespace

void fail_mixed(const Lane& me, WarpOp op) {
  fail(me, std::string("divergent collective: in ") + name_of(op) +
               ", where others of its warp are in " + name_of(me.warp->op));
}

std::string describe_deadlock(const Worker& worker) {
  for (const Block& block : worker.blocks) {
    for (const Warp& warp : block.warp) {
      if (warp.arrived != 0) {
        return "deadlock by a divergent collective: warp " + std::to_string(warp.index) + " has " +
               counted(warp.lanes, kWarp);
      }
    }
  }
  std::string text = "deadlock:";
  for (const Block& block : worker.blocks) {
    text += " block " + std::to_string(block.number) + " has " +
            counted(block.lanes.data(), block.lanes.size()) + ";";
  }
  text.pop_back();
  return text;
}

}  // namespace cae::emu
