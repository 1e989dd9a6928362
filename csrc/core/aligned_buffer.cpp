// SPDX-License-Identifier: Apache-2.0
#include "core/aligned_buffer.h"

#include <cstddef>
#include <limits>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cae {
namespace {

constexpr size_t kCacheLine = AlignedBuffer::kAlignment;
constexpr size_t kHugePage = size_t{2} << 20;

/// A buffer of half a huge page or more begins on one and is a whole number of them.
std::align_val_t alignment(size_t bytes) {
  return std::align_val_t{2 * bytes >= kHugePage ? kHugePage : kCacheLine};
}

size_t size_in_bytes(int64_t size) { return static_cast<size_t>(size) * sizeof(float); }

}  // namespace

AlignedBuffer::AlignedBuffer(int64_t size) : size_(size) {
  constexpr int64_t kLimit = std::numeric_limits<int64_t>::max() / 8;
  if (size < 0 || size > kLimit) {
    throw std::bad_alloc();
  }
  if (size == 0) {
    return;
  }
  const size_t bytes = size_in_bytes(size);
  const std::align_val_t align = alignment(bytes);
  const size_t whole = (bytes + static_cast<size_t>(align) - 1) & ~(static_cast<size_t>(align) - 1);
  data_ = static_cast<float*>(::operator new(whole, align));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (static_cast<size_t>(align) == kHugePage) {
    madvise(data_, whole, MADV_HUGEPAGE);  // a wish: without it, small pages serve
  }
#endif
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) {
    ::operator delete(data_, alignment(size_in_bytes(size_)));
  }
}

}  // namespace cae
