// SPDX-License-Identifier: Apache-2.0
#include "bindings/device_array.h"

#include "bindings/dlpack_view.h"
#include "bindings/integers.h"
#include "bindings/without_gil.h"
#include "core/check.h"

namespace py = pybind11;

namespace cae::bindings {
namespace {

constexpr size_t kAlignment = 16;      // kernels move whole vectors
constexpr int64_t kDefaultStream = 1;  // as DLPack numbers streams
constexpr int64_t kNoStream = -1;

int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    count *= size;
  }
  return count;
}

std::string dtype_of(int code, int bits = 32) {
  return (code == kDlFloat ? "float" : "int") + std::to_string(bits);
}

/// What an exported tensor keeps alive, and its shape.
struct Exported {
  DlManagedTensor managed;
  std::shared_ptr<const void> owner;
  std::vector<int64_t> shape;
};

void delete_exported(DlManagedTensor* managed) { delete static_cast<Exported*>(managed->context); }

void delete_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, "dltensor") != 0) {
    auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  }
}

bool is_contiguous(const DlTensor& tensor) {
  int64_t stride = 1;
  for (int32_t i = tensor.rank; tensor.strides != nullptr && i-- > 0;) {
    if (tensor.shape[i] != 1 && tensor.strides[i] != stride) {
      return false;
    }
    stride *= tensor.shape[i];
  }
  return true;
}

}  // namespace

gpu::Stream read_stream(const py::object& stream) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): a handle that Python holds as a number
  return reinterpret_cast<gpu::Stream>(read_integer<int64_t>(stream, "stream"));
}

DeviceArray::DeviceArray(std::vector<int64_t> shape, int code, int device, gpu::Stream queue)
    : shape_(std::move(shape)), code_(code), device_(device), queue_(queue) {
  for (const int64_t size : shape_) {
    CAE_CHECK(size >= 0, "sizes must not be negative, got ", shape_string(shape_));
  }
  auto buffer = std::make_shared<gpu::DeviceBuffer>(device, bytes());
  data_ = buffer->data();
  owner_ = std::move(buffer);
}

int64_t DeviceArray::numel() const { return product(shape_); }

DeviceArray DeviceArray::rows(int64_t first, int64_t count) const {
  CAE_CHECK(!shape_.empty() && first >= 0 && count >= 0 && first + count <= shape_[0], "rows ",
            first, " to ", first + count, " of ", shape_string(shape_));
  DeviceArray part(*this);
  part.shape_[0] = count;
  const int64_t row = shape_[0] == 0 ? 0 : numel() / shape_[0];
  part.data_ = static_cast<char*>(data_) + first * row * bits_ / 8;
  return part;
}

py::array DeviceArray::to_numpy(gpu::Stream stream) const {
  py::array out(py::dtype(dtype_of(code_, bits_)),
                std::vector<py::ssize_t>(shape_.begin(), shape_.end()));
  void* target = out.mutable_data();
  without_gil([&] {
    const gpu::DeviceGuard guard(device());
    gpu::copy_to_host(target, data_, bytes(), stream);
    gpu::synchronize(stream);
  });
  return out;
}

void DeviceArray::copy_from(const void* source, gpu::Stream stream) const {
  const gpu::DeviceGuard guard(device());
  gpu::copy_to_device(data_, source, bytes(), stream);
  gpu::synchronize(stream);
}

py::capsule DeviceArray::to_dlpack(const py::object& stream) const {
  const int64_t consumer =
      stream.is_none() ? kDefaultStream : read_integer<int64_t>(stream, "stream");
  CAE_CHECK(consumer != 0 && consumer >= kNoStream,
            "stream must be None, -1 or a stream as DLPack numbers them, got ", consumer);
  if (consumer != kNoStream) {
    const gpu::DeviceGuard guard(device());
    // NOLINTNEXTLINE(performance-no-int-to-ptr): a handle that Python holds as a number
    auto* const handle = reinterpret_cast<gpu::Stream>(consumer);
    gpu::order_streams(queue_, consumer == kDefaultStream ? nullptr : handle);
  }
  auto* exported = new Exported{{}, owner_, shape_};
  DlTensor& tensor = exported->managed.tensor;
  tensor.data = gpu::foreign_address(data_, bytes());
  tensor.device_type = gpu::is_emulated() ? kDlCpu : kDlCuda;
  tensor.device_id = gpu::is_emulated() ? 0 : device();
  tensor.rank = static_cast<int32_t>(exported->shape.size());
  tensor.type_code = static_cast<uint8_t>(code_);
  tensor.type_bits = static_cast<uint8_t>(bits_);
  tensor.type_lanes = 1;
  tensor.shape = exported->shape.data();
  tensor.strides = nullptr;
  tensor.byte_offset = 0;
  exported->managed.context = exported;
  exported->managed.deleter = &delete_exported;
  return py::reinterpret_steal<py::capsule>(
      PyCapsule_New(&exported->managed, "dltensor", &delete_capsule));
}

py::tuple DeviceArray::dlpack_device() const {
  return gpu::is_emulated() ? py::make_tuple(kDlCpu, 0) : py::make_tuple(kDlCuda, device());
}

DeviceArgument::DeviceArgument(const py::handle& object, const char* name, int code, int device,
                               gpu::Stream stream) {
  if (take_foreign(object, name, code, device, stream)) {
    return;
  }
  const auto copy = [&](const auto& view) {
    shape_ = view.shape;
    copy_ = std::make_shared<DeviceArray>(shape_, code, device, stream);
    data_ = copy_->data();
    without_gil([&] { copy_->copy_from(view.data, stream); });
  };
  if (code == kDlFloat) {
    FloatArray host(object, name);
    copy(host.view());
  } else {
    IndexArray host(object, name);
    copy(host.view());
  }
}

bool DeviceArgument::take_foreign(const py::handle& object, const char* name, int code, int device,
                                  gpu::Stream stream) {
  if (py::isinstance<DeviceArray>(object)) {
    const auto& array = py::cast<const DeviceArray&>(object);
    CAE_CHECK(array.code() == code && array.bits() == 32, name, " must be ", dtype_of(code),
              ", got ", dtype_of(array.code(), array.bits()));
    CAE_CHECK(array.device() == device, name, " must be on GPU ", device, ", got GPU ",
              array.device());
    owner_ = py::reinterpret_borrow<py::object>(object);
    data_ = array.data();
    shape_ = array.shape();
    return true;
  }
  if (gpu::is_emulated() || !py::hasattr(object, "__dlpack_device__")) {
    return false;
  }
  const auto where = py::cast<py::tuple>(object.attr("__dlpack_device__")());
  if (py::cast<int>(py::int_(where[0])) != kDlCuda) {
    return false;
  }
  const int index = py::cast<int>(py::int_(where[1]));
  CAE_CHECK(index == device, name, " must be on GPU ", device, ", got GPU ", index);
  // 1 stands for the default stream.
  const auto queue = stream == nullptr ? 1 : reinterpret_cast<intptr_t>(stream);
  const py::object capsule = object.attr("__dlpack__")(py::arg("stream") = queue);
  const auto* managed =
      static_cast<const DlManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) {
    throw py::error_already_set();
  }
  const DlTensor& tensor = managed->tensor;
  CAE_CHECK(tensor.type_code == code && tensor.type_bits == 32 && tensor.type_lanes == 1, name,
            " must be ", dtype_of(code), ", got DLPack type code ",
            static_cast<int>(tensor.type_code), " with ", static_cast<int>(tensor.type_bits),
            " bits");
  CAE_CHECK(is_contiguous(tensor), name, " must be C-contiguous on a GPU; call .contiguous()");
  data_ = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  shape_.assign(tensor.shape, tensor.shape + tensor.rank);
  CAE_CHECK(reinterpret_cast<uintptr_t>(data_) % kAlignment == 0 || product(shape_) == 0, name,
            " must be aligned to ", kAlignment, " bytes on a GPU; call .clone()");
  owner_ = capsule;
  return true;
}

}  // namespace cae::bindings
