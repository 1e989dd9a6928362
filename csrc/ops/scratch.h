// SPDX-License-Identifier: Apache-2.0
// Memory that layers work in, kept from call to call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"

namespace cae {

/// A part for each thread. Grows when a layer asks for more than any before did;
/// what it held is lost then.
class Scratch {
 public:
  /// Throws std::bad_alloc.
  void reserve(int64_t floats, int workers) {
    if (workers_.size() < static_cast<size_t>(workers)) {
      workers_.resize(static_cast<size_t>(workers));
    }
    for (int worker = 0; worker < workers; ++worker) {
      grow(workers_[static_cast<size_t>(worker)], floats);
    }
  }

  float* worker(int worker) { return workers_[static_cast<size_t>(worker)].data(); }

 private:
  static void grow(AlignedBuffer& buffer, int64_t size) {
    if (buffer.size() < size) {
      buffer = AlignedBuffer();  // the old one first: both may not fit
      buffer = AlignedBuffer(size);
    }
  }

  std::vector<AlignedBuffer> workers_;
};

}  // namespace cae
