// SPDX-License-Identifier: Apache-2.0
// What CUDA this build has and what the machine offers. No CUDA header is needed to include this:
// device_cuda.cu implements it where nvcc builds, device_none.cpp elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cae {

struct CudaDevice {
  std::string name;
  int32_t major;  // compute capability
  int32_t minor;
  int64_t memory_bytes;
};

struct CudaStatus {
  bool built = false;
  std::string reason;              // why it is not built; empty where it is
  std::string compiler;            // "nvcc 13.0.88"
  std::vector<std::string> archs;  // as CMake names them: "80-real", "90a-real", "80-virtual"
  int32_t runtime = 0;             // 13000 is CUDA 13.0; 0 without CUDA
  int32_t driver = 0;              // newest CUDA the driver serves; 0 without a driver
  std::vector<CudaDevice> devices;
  std::string error;  // why `devices` is empty; empty where it is not
};

/// Asks anew at each call. Throws nothing but std::bad_alloc: a machine without a driver or a GPU
/// is an answer, not an error. Creates no CUDA context.
CudaStatus cuda_status();

/// Runs a kernel of this build on the device and compares with the CPU, bit for bit: proof that
/// the architectures built fit the GPU. Synchronises. Throws std::runtime_error saying what failed,
/// or that there is no such device.
void check_cuda_device(int32_t device);

}  // namespace cae
