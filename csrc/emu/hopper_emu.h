// SPDX-License-Identifier: Apache-2.0
// What Hopper adds: mbarriers, bulk copies through the asynchronous proxy, clusters, and products
// of a warpgroup from shared memory. Copies land in any order, products happen as late as their
// wait.
#pragma once

#include <cstdint>

#include "emu/emulator.h"

namespace cae::emu {

// A shared address with a block of the cluster above it (mapa); 0 above: the thread's own block.
constexpr uint32_t kRankShift = 24;
constexpr uint32_t kOffsetMask = (1U << kRankShift) - 1;

void init_mbarrier(Lane& me, uint32_t address, uint32_t count);
/// `address` may be of another block of the cluster.
void arrive_mbarrier(Lane& me, uint32_t address);
void expect_bytes(Lane& me, uint32_t address, uint32_t bytes);
void wait_mbarrier(Lane& me, uint32_t address, uint32_t parity);

/// Four bytes into shared memory of any block of the cluster: its threads see them after the next
/// barrier of the cluster, and must not have used them since the last.
void store_in_cluster(Lane& me, uint32_t address, uint32_t value);

/// When the last thread of a cluster ends. Throws Fault if a block could have ended, and its shared
/// memory with it, before another one's arrival or store.
void check_cluster_done(const Lane& me);

void fence_proxies(Lane& me);
/// One copy to each block of the cluster that `mask` names.
void issue_bulk(Lane& me, uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier,
                uint32_t mask);

/// Throws Fault if a descriptor cannot say this.
void check_descriptor(const Lane& me, uint32_t address, uint32_t along_k, uint32_t along_rows);
void fence_products(Lane& me);
/// The warpgroup's threads have `count` registers each from here on.
void change_registers(Lane& me, int count, bool more);
/// When the last thread of a cluster ends. Throws Fault if a warpgroup took registers that no other
/// gave back: it would wait for ever.
void check_registers(const Lane& me);
void issue_product(Lane& me, float* sums, uint64_t a, uint64_t b, int accumulate, int columns);
void commit_products(Lane& me);
void wait_products(Lane& me, int remaining);

}  // namespace cae::emu
