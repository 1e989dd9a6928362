// SPDX-License-Identifier: Apache-2.0
// Graphs that others captured, one behind the other in a graph of ours, some of them only while
// there is something to do. Without a CUDA header: graph_sequence_cuda.cu is the GPU's,
// emu/graph_sequence_emu.cpp says that the emulator has none.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/host_device.h"
#include "cuda/gpu_runtime.h"

namespace cae::gpu {

/// Of the same work, for up to `most` of something; several are in descending order.
struct SizedGraph {
  void* graph;  // cudaGraph_t
  int32_t most;
};

constexpr int kMostSizes = 8;

/// Place of the last of the first `count` sizes (descending) that holds `number`, of the first
/// where none does; `count` for 0. The loop has a known end: a kernel's parameters stay where they
/// are.
CAE_HD constexpr int32_t fitting_size(const int32_t (&sizes)[kMostSizes], int32_t count,
                                      int32_t number) {
  int32_t place = 0;
  for (int32_t i = 1; i < kMostSizes; ++i) {
    place = i < count && number <= sizes[i] ? i : place;
  }
  return number == 0 ? count : place;
}

/// Not thread-safe. Throws std::runtime_error with file and line for what the runtime refuses.
class GraphSequence {
 public:
  explicit GraphSequence(int device);
  ~GraphSequence();
  GraphSequence(const GraphSequence&) = delete;
  GraphSequence& operator=(const GraphSequence&) = delete;

  /// Appends a copy of a graph (a cudaGraph_t), whose memory must stay where it is.
  void append(void* graph);
  /// Copies of graphs in an IF or SWITCH node: where `*number`, device memory, is not 0 when its
  /// turn comes, the last that is for as many runs, and else none. Throws std::invalid_argument for
  /// none, more than kMostSizes or another order, std::runtime_error for a graph with nodes that
  /// such a body may not have.
  void append_one_of(const std::vector<SizedGraph>& graphs, const int32_t* number);
  /// Queues all of it. The first launch instantiates it: nothing can be appended afterwards.
  void launch(Stream queue);

 private:
  struct Nodes;
  std::unique_ptr<Nodes> nodes_;
};

}  // namespace cae::gpu
