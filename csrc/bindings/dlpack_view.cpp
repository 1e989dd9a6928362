// SPDX-License-Identifier: Apache-2.0
#include "bindings/dlpack_view.h"

#include <limits>

#include "bindings/dlpack_types.h"
#include "core/check.h"

namespace py = pybind11;

namespace cae::bindings {
namespace {

constexpr int64_t kElementBytes = 4;
constexpr int32_t kMostDimensions = 32;  // what every NumPy takes

std::string dtype_name(int code) { return code == 2 ? "float32" : "int32"; }

std::string type_name(const py::handle& object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

void check_device(int type, const char* name) {
  CAE_CHECK(type == kDlCpu || type == kDlCudaHost, name,
            " must be in CPU memory, got DLPack device type ", type);
}

/// Refuses what no tensor has: sizes that lie would be sizes of reads.
void check_sizes(const DlTensor& tensor, const char* name) {
  CAE_CHECK(tensor.rank >= 0 && tensor.rank <= kMostDimensions, name,
            ": DLPack rank must be in 0..", kMostDimensions, ", got ", tensor.rank);
  CAE_CHECK(tensor.rank == 0 || tensor.shape != nullptr, name, ": DLPack tensor without a shape");
  int64_t left = std::numeric_limits<int64_t>::max() / kElementBytes;
  bool empty = false;
  for (int32_t i = 0; i < tensor.rank; ++i) {
    const int64_t size = tensor.shape[i];
    CAE_CHECK(size >= 0, name, ": DLPack size of dimension ", i, " must not be negative, got ",
              size);
    empty = empty || size == 0;
    left = size == 0 ? left : left / size;
    CAE_CHECK(left > 0, name, ": DLPack shape has more elements than memory can hold");
  }
  CAE_CHECK(empty || tensor.data != nullptr, name, ": DLPack tensor without data");
}

/// Calls a method of the protocol; an exporter's refusal becomes an error that names the argument.
py::object call_export(const py::handle& object, const char* method, const char* name) {
  try {
    return object.attr(method)();
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) {
      throw;
    }
    throw std::invalid_argument(
        concat(name, " cannot be exported by DLPack: ", std::string(py::str(error.value()))));
  }
}

}  // namespace

ArrayArgument::ArrayArgument(const py::handle& object, const char* name, int code) : code_(code) {
  if (py::isinstance<py::array>(object)) {
    from_numpy(py::reinterpret_borrow<py::array>(object), name);
  } else if (py::hasattr(object, "__dlpack__")) {
    from_dlpack(object, name);
  } else {
    CAE_CHECK(py::hasattr(object, "__array_interface__"), name,
              " must be an array (NumPy, __dlpack__ or __array_interface__), got ",
              type_name(object));
    from_numpy(py::array::ensure(object), name);
  }
}

void ArrayArgument::from_numpy(const py::array& array, const char* name) {
  CAE_CHECK(array, name, " must be an array, but its array interface cannot be read");
  const py::dtype wanted(dtype_name(code_));
  CAE_CHECK(array.dtype().equal(wanted), name, " must be ", dtype_name(code_), ", got ",
            std::string(py::str(array.dtype())));
  owner_ = array;
  data_ = array.data();
  shape_.assign(array.shape(), array.shape() + array.ndim());
  strides_.assign(array.strides(), array.strides() + array.ndim());
}

void ArrayArgument::from_dlpack(const py::handle& object, const char* name) {
  if (py::hasattr(object, "__dlpack_device__")) {
    const py::object device = call_export(object, "__dlpack_device__", name);
    CAE_CHECK(py::isinstance<py::tuple>(device) && py::len(device) == 2, name,
              ": __dlpack_device__ must return a pair");
    const int type = py::cast<int>(py::int_(py::reinterpret_borrow<py::tuple>(device)[0]));
    check_device(type, name);
  }
  const py::object capsule = call_export(object, "__dlpack__", name);
  // The capsule is read, not consumed: its own destructor frees the tensor when `owner_` goes.
  const void* pointer = PyCapsule_GetPointer(capsule.ptr(), "dltensor");
  if (pointer == nullptr) {
    PyErr_Clear();
    throw std::invalid_argument(concat(name, ": __dlpack__ must return a \"dltensor\" capsule"));
  }
  const auto& tensor = *static_cast<const DlTensor*>(pointer);
  check_device(tensor.device_type, name);
  CAE_CHECK(
      tensor.type_code == code_ && tensor.type_bits == 8 * kElementBytes && tensor.type_lanes == 1,
      name, " must be ", dtype_name(code_), ", got DLPack type code ",
      static_cast<int>(tensor.type_code), " with ", static_cast<int>(tensor.type_bits), " bits");
  check_sizes(tensor, name);
  owner_ = capsule;
  data_ = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  shape_.assign(tensor.shape, tensor.shape + tensor.rank);
  strides_.resize(shape_.size());
  int64_t stride = 1;
  for (size_t i = shape_.size(); i-- > 0;) {
    strides_[i] = (tensor.strides != nullptr ? tensor.strides[i] : stride) * kElementBytes;
    stride *= shape_[i];
  }
}

bool ArrayArgument::contiguous() const {
  int64_t stride = kElementBytes;
  for (size_t i = shape_.size(); i-- > 0;) {
    if (shape_[i] == 0) {
      return true;
    }
    if (shape_[i] != 1 && strides_[i] != stride) {
      return false;
    }
    stride *= shape_[i];
  }
  return reinterpret_cast<uintptr_t>(data_) % kElementBytes == 0;
}

void ArrayArgument::make_contiguous() {
  if (!contiguous()) {
    make_private();
  }
}

void ArrayArgument::make_private() {
  // NumPy copies strided memory well, and without the lock where that pays.
  const py::array view(py::dtype(dtype_name(code_)), shape_, strides_, data_, owner_);
  const py::array copy = py::module_::import("numpy").attr("array")(view, py::arg("order") = "C");
  data_ = copy.data();
  owner_ = copy;
}

}  // namespace cae::bindings
