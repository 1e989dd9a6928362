// SPDX-License-Identifier: Apache-2.0
// Products of a warpgroup: they happen as late as their wait, and until then own the registers.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "emu/half_emu.h"
#include "emu/hopper_emu.h"
#include "emu/shared_memory.h"

namespace cae::emu {
namespace {

// What a warpgroup meets for; products are named by their columns / 64.
constexpr uint8_t kCommit = 8;
constexpr uint8_t kWaitProducts = 9;
constexpr uint8_t kRegisters = 10;

/// All 128 threads of a warpgroup meet; the last to come runs `exec`.
template <class Exec>
void meet_warpgroup(Lane& me, uint8_t op, Exec&& exec) {
  Block& block = *me.block;
  const uint32_t first = me.warp->index / 4 * 4;
  if (first / 4 >= block.warpgroups.size()) {
    fail(me, "an operation of a warpgroup in a warp that is in none");
  }
  Warpgroup& group = block.warpgroups[first / 4];
  if (group.arrived != 0 && group.op != op) {
    fail(me, "divergent collective: threads of a warpgroup are in different operations");
  }
  group.op = op;
  if (++group.arrived != 128) {
    me.waiting = Waiting::kWarpgroup;
    suspend(me);
    return;
  }
  group.arrived = 0;
  exec(group);
  for (uint32_t w = first; w < first + 4; ++w) {
    wake(block.warp[w], w == me.warp->index ? ~me.bit : kAllLanes);
  }
}

/// One row of 8 halves of an operand, after the checks that a thread's read gets, and the proxy's.
void load_row(Lane& me, uint64_t descriptor, int row, int k, float* to) {
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const auto along_k = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const auto along_rows = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t address = start + row / 8 * along_rows + row % 8 * 16 + k / 8 * along_k;
  Block& block = *me.block;
  const uint8_t* from = shared_bytes(me, address, 16);
  for (uint32_t i = 0; i < 4; ++i) {
    const Cell& cell = block.cells[(address - kSharedBase) / 4 + i];
    const bool other = cell.writer == kOtherBlock;  // whose fences are not kept here
    if ((cell.flags & kGeneric) != 0 &&
        (other || block.lanes[cell.writer].fence_tick <= cell.write_tick)) {
      fail(me, "wgmma reads what " +
                   (other ? "another block" : "thread " + std::to_string(cell.writer)) +
                   " wrote without fence_async() after it: shared memory at byte " +
                   std::to_string(address + i * 4 - kSharedBase));
    }
  }
  check_read(me, address, 16);
  for (int i = 0; i < 8; ++i) {
    uint16_t half;
    std::memcpy(&half, from + i * 2, 2);
    to[i] = half_to_float(half);
  }
}

WarpgroupSums* find_sums(Warpgroup& group, const WarpgroupProduct& product) {
  const auto found = std::find_if(
      group.held.begin(), group.held.end(),
      [&product](const WarpgroupSums& sums) { return sums.registers == product.sums; });
  return found == group.held.end() ? nullptr : &*found;
}

/// Takes the registers of a product from its threads until it is waited for.
void hold_sums(const Lane& me, Warpgroup& group) {
  const WarpgroupProduct& call = group.call;
  const size_t count = static_cast<size_t>(call.columns) / 2;
  if (find_sums(group, call) == nullptr) {
    WarpgroupSums sums{call.sums, {}};
    for (float* registers : call.sums) {
      sums.values.insert(sums.values.end(), registers, registers + count);
      std::memset(registers, 0xff, count * sizeof(float));
    }
    group.held.push_back(std::move(sums));
    return;
  }
  for (const float* registers : call.sums) {
    for (size_t i = 0; i < count; ++i) {
      uint32_t bits;
      std::memcpy(&bits, registers + i, sizeof(bits));
      if (bits != kAllLanes) {
        fail(me, "registers written that a wgmma under way adds to");
      }
    }
  }
}

/// Gives registers back that nothing under way adds to.
void release_sums(Warpgroup& group) {
  for (size_t i = group.held.size(); i-- > 0;) {
    const WarpgroupSums& sums = group.held[i];
    const bool busy = std::any_of(
        group.issued.begin(), group.issued.end(),
        [&sums](const WarpgroupProduct& product) { return product.sums == sums.registers; });
    if (!busy) {
      const size_t count = sums.values.size() / sums.registers.size();
      for (size_t t = 0; t < sums.registers.size(); ++t) {
        std::memcpy(sums.registers[t], &sums.values[t * count], count * sizeof(float));
      }
      group.held.erase(group.held.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
}

void multiply(Lane& me, const WarpgroupProduct& product, float* held) {
  if (product.a >> 46 != 0 || product.b >> 46 != 0) {
    fail(me, "wgmma descriptor with swizzle or base offset: not emulated");
  }
  std::vector<float> a(64 * 16);
  const auto columns = static_cast<size_t>(product.columns);
  std::vector<float> b(16 * columns);
  for (int row = 0; row < 64 * 2; ++row) {
    load_row(me, product.a, row / 2, row % 2 * 8, &a[row * 8]);
  }
  for (size_t row = 0; row < columns * 2; ++row) {
    float values[8];
    load_row(me, product.b, row / 2, row % 2 * 8, values);
    for (int k = 0; k < 8; ++k) {
      b[(row % 2 * 8 + k) * columns + row / 2] = values[k];
    }
  }
  // Rows by columns, so that the inner loop runs along memory.
  std::vector<float> sums(64 * columns);
  for (size_t row = 0; row < 64; ++row) {
    for (size_t k = 0; k < 16; ++k) {
      const float value = a[row * 16 + k];
      for (size_t n = 0; n < columns; ++n) {
        sums[row * columns + n] += value * b[k * columns + n];
      }
    }
  }
  for (int t = 0; t < 128; ++t) {
    for (size_t i = 0; i < columns / 2; ++i) {
      const size_t row = t / 32 * 16 + t % 32 / 4 + i % 4 / 2 * 8;
      const size_t column = i / 4 * 8 + t % 4 * 2 + i % 2;
      float& sum = held[t * (columns / 2) + i];
      sum = (product.accumulate != 0 ? sum : 0.0F) + sums[row * columns + column];
    }
  }
  ++me.block->worker->counts.multiplies;
}

/// Of a thread when the kernel begins, where it is compiled for as many as the block's size allows.
int registers_at_launch(const Block& block) {
  constexpr size_t kOfMultiprocessor = 65536;
  constexpr size_t kMost = 248;
  return static_cast<int>(std::min(kMost, kOfMultiprocessor / block.lanes.size() / 8 * 8));
}

}  // namespace

void change_registers(Lane& me, int count, bool more) {
  meet_warpgroup(me, kRegisters, [&me, count, more](Warpgroup& group) {
    const int before = group.registers != 0 ? group.registers : registers_at_launch(*me.block);
    if (count < 24 || count > 256 || count % 8 != 0 || (more ? count < before : count > before)) {
      fail(me, std::string(more ? "takes" : "gives back") + " registers: from " +
                   std::to_string(before) + " to " + std::to_string(count) + " a thread");
    }
    group.registers = count;
  });
}

void check_registers(const Lane& me) {
  for (const Block& block : me.block->worker->blocks) {
    int64_t beyond = 0;
    for (const Warpgroup& group : block.warpgroups) {
      beyond += group.registers != 0 ? group.registers - registers_at_launch(block) : 0;
    }
    if (beyond > 0) {
      fail(me, "warpgroups of block " + std::to_string(block.rank) + " of the cluster wait for " +
                   std::to_string(beyond) + " registers a thread that no other gave back");
    }
  }
}

void check_descriptor(const Lane& me, uint32_t address, uint32_t along_k, uint32_t along_rows) {
  constexpr uint32_t kMost = 1U << 18;
  if ((address | along_k | along_rows) % 16 != 0) {
    fail(me, "wgmma descriptor with an address or offset that is not aligned to 16");
  }
  if (address >= kMost || along_k >= kMost || along_rows >= kMost) {
    fail(me, "wgmma descriptor with an address or offset beyond 256 KB");
  }
}

void fence_products(Lane& me) { me.products_fenced = true; }

void issue_product(Lane& me, float* sums, uint64_t a, uint64_t b, int accumulate, int columns) {
  if (!me.products_fenced) {
    fail(me, "wgmma without wg_fence() after its registers were used otherwise");
  }
  Warpgroup* group = nullptr;
  const uint32_t index = me.warp->index / 4;
  if (index < me.block->warpgroups.size()) {
    group = &me.block->warpgroups[index];
    WarpgroupProduct& call = group->call;
    if (group->arrived == 0) {
      call.a = a;
      call.b = b;
      call.accumulate = accumulate;
      call.columns = columns;
    } else if (call.a != a || call.b != b || call.accumulate != accumulate) {
      fail(me, "wgmma operands differ in the warpgroup");
    }
    call.sums[me.thread % 128] = sums;
  }
  meet_warpgroup(me, static_cast<uint8_t>(columns / 64), [&me](Warpgroup& all) {
    hold_sums(me, all);
    all.issued.push_back(all.call);
  });
}

void commit_products(Lane& me) {
  meet_warpgroup(me, kCommit, [](Warpgroup& group) {
    group.groups.push_back(static_cast<uint32_t>(group.issued.size()));
  });
}

void wait_products(Lane& me, int remaining) {
  meet_warpgroup(me, kWaitProducts, [&me, remaining](Warpgroup& group) {
    if (static_cast<int>(group.groups.size()) <= remaining) {
      return;
    }
    const auto done = static_cast<int>(group.groups.size()) - remaining;
    const uint32_t end = group.groups[done - 1];
    // The first warp stands for all four: each of them may tell others that the operands are read.
    Block& block = *me.block;
    const uint32_t first = me.warp->index / 4 * 4;
    order_partly(block);
    for (uint32_t i = 0; i < end; ++i) {
      multiply(*block.warp[first].lanes, group.issued[i],
               find_sums(group, group.issued[i])->values.data());
    }
    ++block.tick;
    for (uint32_t warp = first; warp < first + 4; ++warp) {
      seen_by(block, warp)[first] = block.tick;
    }
    group.issued.erase(group.issued.begin(), group.issued.begin() + end);
    group.groups.erase(group.groups.begin(), group.groups.begin() + done);
    for (uint32_t& later : group.groups) {
      later -= end;
    }
    release_sums(group);
    if (group.issued.empty()) {
      for (uint32_t t = first * kWarp; t < (first + 4) * kWarp; ++t) {
        block.lanes[t].products_fenced = false;
      }
    }
  });
}

}  // namespace cae::emu
