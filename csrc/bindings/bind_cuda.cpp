// SPDX-License-Identifier: Apache-2.0
// Python face of the CUDA device query.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/without_gil.h"
#include "cuda/device_cuda.h"

namespace py = pybind11;

namespace {

constexpr const char* kCudaStatusDoc =
    R"(What CUDA this build has and what this machine offers.

Returns:
    dict with
    built (bool): CUDA kernels are in this build;
    reason (str): why not, empty where they are;
    compiler (str): for example "nvcc 13.0.88";
    archs (list of str): architectures built, as CMake names them ("90a-real", "80-virtual");
    runtime (int): CUDA version linked, 13000 for 13.0, 0 where not built;
    driver (int): newest CUDA version the driver serves, 0 without a driver;
    devices (list of dict): name (str), capability (tuple of two int), memory_bytes (int);
    error (str): why devices is empty; empty where it is not.

A machine without driver or GPU is an answer, not an error. No CUDA context is made.)";

constexpr const char* kCheckDeviceDoc =
    R"(Run a kernel of this build on a GPU and compare it with the CPU, bit for bit.

Args:
    device: Index into cuda_status()["devices"].

Raises:
    RuntimeError: CUDA is not built, there is no such device, the kernel does not run there, or its
        values differ.)";

py::dict cuda_status() {
  cae::CudaStatus status;  // the first query may take the driver seconds
  cae::bindings::without_gil([&] { status = cae::cuda_status(); });
  py::list devices;
  for (const cae::CudaDevice& device : status.devices) {
    py::dict entry;
    entry["name"] = device.name;
    entry["capability"] = py::make_tuple(device.major, device.minor);
    entry["memory_bytes"] = device.memory_bytes;
    devices.append(entry);
  }
  py::dict out;
  out["built"] = status.built;
  out["reason"] = status.reason;
  out["compiler"] = status.compiler;
  out["archs"] = status.archs;
  out["runtime"] = status.runtime;
  out["driver"] = status.driver;
  out["devices"] = devices;
  out["error"] = status.error;
  return out;
}

void check_cuda_device(int32_t device) {
  cae::bindings::without_gil([device] { cae::check_cuda_device(device); });
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_status", &cuda_status, kCudaStatusDoc);
  m.def("check_cuda_device", &check_cuda_device, py::arg("device") = 0, kCheckDeviceDoc);
}
