// SPDX-License-Identifier: Apache-2.0
// Array arguments: NumPy arrays, anything with `__dlpack__` on the CPU, anything with the array
// interface. Floats that are C-contiguous and aligned are viewed in place, other layouts copied.
// Indices are always copied: what has been checked must not change while work goes on without the
// interpreter's lock. Read-only arrays are fine: nothing here is written through.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "core/tensor_view.h"

namespace cae::bindings {

/// An argument's memory as found: any strides, owner kept alive. Make and destroy with the GIL.
class ArrayArgument {
 public:
  /// `code` as in DLPack: 0 signed integer, 2 floating point; of 32 bits each. Throws
  /// std::invalid_argument naming the argument if the object is no array, lies on another device
  /// or has another dtype.
  ArrayArgument(const pybind11::handle& object, const char* name, int code);

  const std::vector<int64_t>& shape() const { return shape_; }
  const void* data() const { return data_; }

  /// Copies to C-contiguous storage, if not so already.
  void make_contiguous();

  /// Copies to C-contiguous storage in any case.
  void make_private();

 private:
  bool contiguous() const;
  void from_numpy(const pybind11::array& array, const char* name);
  void from_dlpack(const pybind11::handle& object, const char* name);

  int code_;
  pybind11::object owner_;
  const void* data_ = nullptr;
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;  // bytes
};

/// Float32 or int32 argument; a view of indices is a copy. Check shape() before view(): only view()
/// may copy.
template <class T>
class ArrayOf {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, int32_t>);

 public:
  ArrayOf(const pybind11::handle& object, const char* name)
      : argument_(object, name, std::is_same_v<T, float> ? 2 : 0) {}

  const std::vector<int64_t>& shape() const { return argument_.shape(); }
  TensorView<const T> view() {
    if constexpr (std::is_same_v<T, float>) {
      argument_.make_contiguous();
    } else {
      argument_.make_private();
    }
    return {static_cast<const T*>(argument_.data()), argument_.shape()};
  }

 private:
  ArrayArgument argument_;
};

using FloatArray = ArrayOf<float>;
using IndexArray = ArrayOf<int32_t>;

/// New NumPy array and a view of it.
template <class T>
class OutputArray {
 public:
  explicit OutputArray(const std::vector<int64_t>& shape)
      : array_(std::vector<pybind11::ssize_t>(shape.begin(), shape.end())),
        view_(array_.mutable_data(), shape) {}

  const TensorView<T>& view() const { return view_; }
  const pybind11::array_t<T>& array() const { return array_; }

 private:
  pybind11::array_t<T> array_;
  TensorView<T> view_;
};

}  // namespace cae::bindings
