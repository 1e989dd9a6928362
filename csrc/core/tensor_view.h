// SPDX-License-Identifier: Apache-2.0
// TensorView: a pointer and a shape over C-contiguous memory that somebody else owns.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/check.h"

namespace cae {

/// "[2, 3, 4]".
inline std::string shape_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

/// C-contiguous elements of type T with a shape. Does not own the memory.
template <class T>
struct TensorView {
  T* data = nullptr;
  std::vector<int64_t> shape;

  TensorView() = default;
  TensorView(T* elements, std::vector<int64_t> sizes) : data(elements), shape(std::move(sizes)) {}
  /// A mutable view converts to a read-only one.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  TensorView(const TensorView<U>& other) : data(other.data), shape(other.shape) {}

  int64_t rank() const { return static_cast<int64_t>(shape.size()); }
  int64_t dim(int64_t i) const { return shape[static_cast<size_t>(i)]; }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t size : shape) {
      count *= size;
    }
    return count;
  }
};

/// One wanted dimension: a size, or a letter that stands for any size.
struct Dim {
  int64_t size = -1;
  const char* letter = nullptr;

  Dim(int64_t wanted) : size(wanted) {}
  Dim(int wanted) : size(wanted) {}
  Dim(const char* any) : letter(any) {}
};

/// Throws std::invalid_argument "name must be [N, 8], got [2, 7]" unless the shape matches.
inline void check_shape(const std::vector<int64_t>& shape, const char* name,
                        std::initializer_list<Dim> wanted) {
  bool matches = shape.size() == wanted.size();
  std::string text = "[";
  size_t i = 0;
  for (const Dim& dim : wanted) {
    if (matches && dim.letter == nullptr && shape[i] != dim.size) {
      matches = false;
    }
    text += i == 0 ? "" : ", ";
    text += dim.letter != nullptr ? std::string(dim.letter) : std::to_string(dim.size);
    ++i;
  }
  CAE_CHECK(matches, name, " must be ", text, "], got ", shape_string(shape));
}

}  // namespace cae
