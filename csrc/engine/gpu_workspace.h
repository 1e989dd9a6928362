// SPDX-License-Identifier: Apache-2.0
// Device memory of an engine, planned once: every call works in it, a batch at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/gpu_network.h"

namespace cae::gpu {

/// Hands out pieces of a block of memory, 256 bytes aligned. With a null base it only counts.
class Bump {
 public:
  explicit Bump(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

/// What a convolution stores: values, moments of its parts, and those merged.
struct LayerOutput {
  uint16_t* values = nullptr;
  float* parts = nullptr;
  float* merged = nullptr;
};

LayerOutput take_output(Bump& bump, const GpuConv& conv, int64_t rows);

struct EncodeBuffers {
  std::vector<LayerOutput> class_convs;
  std::vector<LayerOutput> individual_convs;
  LayerOutput hidden;    // of a block's first convolution
  LayerOutput residual;  // of its second
  uint16_t* streams[2] = {};
};

/// From class codes to shifts and scales of the decoder, a row for each point.
struct ModulationBuffers {
  float* codes = nullptr;  // [rows][code_dim]
  float* hidden[2] = {};
  float* table = nullptr;  // [rows][GpuNetwork::modulation_row()]
};

ModulationBuffers take_modulation(Bump& bump, const GpuNetwork& network, int64_t rows);

struct DecodeBuffers {
  ModulationBuffers modulation;
  LayerOutput first;   // of a block's first convolution
  LayerOutput second;  // of its second
  LayerOutput upsamples[2];
  float* ring_rows[2] = {};
  float* ring_columns[2] = {};
  uint16_t* streams[2] = {};
  int32_t* image_index = nullptr;
  int32_t* step = nullptr;
  int32_t* finite = nullptr;  // [rows][tiles of the output layer]
};

struct GpuWorkspace {
  GpuWorkspace(const GpuNetwork& network, int64_t rows);

  int64_t rows;
  EncodeBuffers encode;
  DecodeBuffers decode;
  uint16_t* stream = nullptr;  // [rows] individual codes of a call that keeps none
  LayerOutput shared;          // [rows] first decoder convolution of a call that keeps none

 private:
  void plan(const GpuNetwork& network, Bump& bump);
  DeviceBuffer memory_;
};

}  // namespace cae::gpu
