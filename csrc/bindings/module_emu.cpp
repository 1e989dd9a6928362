// SPDX-License-Identifier: Apache-2.0
// The module cae_fast._C_emu: the CUDA engine with its kernels in the emulator, for tests.
#include <pybind11/pybind11.h>

#include "bindings/bind.h"
#include "emu/emu_counts.h"

namespace py = pybind11;

namespace {

py::dict launch_counts() {
  py::dict counts;
  counts["launches"] = cae::emu::launches.load();
  return counts;
}

}  // namespace

PYBIND11_MODULE(_C_emu, m) {
  m.doc() = "CUDA kernels of cae_fast in the emulator. For tests.";
  m.def("launch_counts", &launch_counts, "What the emulator counted since the process began.");
  bind_device_array(m);
  bind_gpu(m);
  bind_gpu_search(m);
}
