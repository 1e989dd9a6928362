// SPDX-License-Identifier: Apache-2.0
// launch() in the emulator: runs the kernel to its end. Included through simt/launch.h.
#pragma once

#include <typeinfo>

#include "simt/launch.h"

namespace cae::emu {

/// Runs `run(closure)` for each thread of the grid. `params` names the kernel.
void launch_kernel(const std::type_info& params, const cuda::Grid& grid, int threads,
                   size_t shared_bytes, const cuda::LaunchOptions& options,
                   void (*run)(const void*), const void* closure);

}  // namespace cae::emu

namespace cae::cuda {

/// Runs kernel(params) to its end. Throws emu::Fault if it does what a GPU does not define.
template <class P>
void launch(void (*kernel)(P), Grid grid, int threads, size_t shared_bytes, Stream /*stream*/,
            const P& params, LaunchOptions options = {}) {
  struct Closure {
    void (*kernel)(P);
    const P* params;
  };
  const Closure closure{kernel, &params};
  const auto run = [](const void* self) {
    const auto* call = static_cast<const Closure*>(self);
    call->kernel(*call->params);
  };
  emu::launch_kernel(typeid(P), grid, threads, shared_bytes, options, run, &closure);
}

}  // namespace cae::cuda
