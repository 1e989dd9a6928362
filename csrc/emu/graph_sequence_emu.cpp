// SPDX-License-Identifier: Apache-2.0
// The emulator runs what is queued at once: there is nothing to put in a row.
#include <stdexcept>

#include "cuda/graph_sequence.h"

namespace cae::gpu {

struct GraphSequence::Nodes {};

GraphSequence::GraphSequence(int /*device*/) {
  throw std::runtime_error("the emulator has no graphs");
}

GraphSequence::~GraphSequence() = default;

void GraphSequence::append(void* /*graph*/) {}

void GraphSequence::append_one_of(const std::vector<SizedGraph>& /*graphs*/,
                                  const int32_t* /*number*/) {}

void GraphSequence::launch(Stream /*queue*/) {}

}  // namespace cae::gpu
