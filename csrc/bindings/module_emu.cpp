// SPDX-License-Identifier: Apache-2.0
// The module cae_fast._C_emu: the CUDA engine with its kernels in the emulator, for tests.
#include <pybind11/pybind11.h>

#include "bindings/bind.h"
#include "emu/emu_counts.h"

namespace py = pybind11;

namespace {

constexpr const char* kLaunchCountsDoc =
    R"(What the emulator counted since the process began or since reset_launch_counts().

Returns:
    dict from the name of a kernel's parameters to a dict of int:
    launches, blocks; overlapped: of the launches, those that overlap the kernel before them;
    multiplies: warps' 16 x 8 x 16 products;
    matrix_loads, matrix_wavefronts: 8 x 8 matrices loaded, and the wavefronts it took: the same
    number where no banks conflict;
    shared_accesses, shared_wavefronts: the same of other loads and stores of shared memory;
    shared_bytes: the most shared memory that a launch asked for;
    async_copies: of 16 bytes; bulk_bytes.)";

py::dict launch_counts() {
  py::dict out;
  for (const auto& [kernel, counts] : cae::emu::launch_counts()) {
    py::dict entry;
    entry["launches"] = counts.launches;
    entry["overlapped"] = counts.overlapped;
    entry["blocks"] = counts.blocks;
    entry["multiplies"] = counts.multiplies;
    entry["matrix_loads"] = counts.matrix_loads;
    entry["matrix_wavefronts"] = counts.matrix_wavefronts;
    entry["shared_accesses"] = counts.shared_accesses;
    entry["shared_wavefronts"] = counts.shared_wavefronts;
    entry["shared_bytes"] = counts.shared_bytes;
    entry["async_copies"] = counts.async_copies;
    entry["bulk_bytes"] = counts.bulk_bytes;
    out[py::str(kernel)] = entry;
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(_C_emu, m) {
  m.doc() = "CUDA kernels of cae_fast in the emulator. For tests.";
  m.def("launch_counts", &launch_counts, kLaunchCountsDoc);
  m.def("reset_launch_counts", &cae::emu::reset_counts, "Forget what was counted.");
  bind_device_array(m);
  bind_gpu(m);
  bind_gpu_search(m);
  bind_graph_sequence(m);
}
