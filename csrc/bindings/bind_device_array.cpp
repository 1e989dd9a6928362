// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/device_array.h"
#include "bindings/dlpack_view.h"
#include "bindings/integers.h"
#include "bindings/without_gil.h"

namespace py = pybind11;

using cae::bindings::DeviceArray;
using cae::bindings::kDlFloat;
using cae::bindings::read_integer;
using cae::bindings::read_stream;
using cae::bindings::without_gil;

namespace {

py::object device_array_from(const py::object& array, const py::object& device) {
  const auto index = read_integer<int32_t>(device, "device");
  cae::bindings::FloatArray host(array, "array");
  const auto view = host.view();
  DeviceArray copy(view.shape, kDlFloat, index, nullptr);
  without_gil([&] { copy.copy_from(view.data, nullptr); });
  return py::cast(copy);
}

}  // namespace

void bind_device_array(py::module_& m) {
  py::class_<DeviceArray>(m, "DeviceArray", py::module_local(),
                          "C-contiguous float32, float16 or int32 array in device memory.")
      .def_static("from_host", &device_array_from, py::arg("array"), py::arg("device") = 0,
                  "Copies a float32 host array to a device.")
      .def_property_readonly("shape",
                             [](const DeviceArray& a) { return py::tuple(py::cast(a.shape())); })
      .def_property_readonly("device", &DeviceArray::device, "Index of the GPU.")
      .def_property_readonly("nbytes", &DeviceArray::bytes)
      .def("__len__", [](const DeviceArray& a) { return a.shape().empty() ? 0 : a.shape()[0]; })
      .def("rows", &DeviceArray::rows, py::arg("first"), py::arg("count"),
           "Rows [first, first + count), sharing memory.")
      .def(
          "numpy",
          [](const DeviceArray& a, const py::object& s) { return a.to_numpy(read_stream(s)); },
          py::arg("stream") = 0, "A copy in host memory; waits for the stream.")
      .def(
          "__dlpack__",
          [](const DeviceArray& a, const py::object& stream, const py::kwargs&) {
            return a.to_dlpack(stream);
          },
          py::kw_only(), py::arg("stream") = py::none(),
          "A capsule for who works on a stream, as DLPack numbers them; that stream waits for the\n"
          "contents. None or 1: the default stream; -1: the caller has ordered the streams.")
      .def("__dlpack_device__", &DeviceArray::dlpack_device);
}
