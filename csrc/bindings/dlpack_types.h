// SPDX-License-Identifier: Apache-2.0
// The DLPack binary interface (dmlc.github.io/dlpack), as far as tensors are read and made here.
#pragma once

#include <cstdint>

namespace cae::bindings {

struct DlTensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t rank;
  uint8_t type_code;
  uint8_t type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;  // elements; null if C-contiguous
  uint64_t byte_offset;
};

/// What a capsule named "dltensor" holds; who takes it calls the deleter and renames the capsule.
struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

constexpr int kDlCpu = 1;
constexpr int kDlCuda = 2;
constexpr int kDlCudaHost = 3;
constexpr int kDlInt = 0;
constexpr int kDlFloat = 2;

}  // namespace cae::bindings
