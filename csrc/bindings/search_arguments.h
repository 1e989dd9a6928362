// SPDX-License-Identifier: Apache-2.0
// What a search on the device is made of, from Python's arguments.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>

#include "engine/gpu_search.h"

namespace cae::bindings {

/// Class codes [R][D] float32 and classes [R] int32 on the engine's device.
std::shared_ptr<gpu::DeviceBank> make_bank(const gpu::GpuEngine& engine,
                                           const pybind11::object& codes,
                                           const pybind11::object& classes);

/// See SearchPlan. coarse_batch: None is the whole scan; classifier_input: None, or a dict of
/// "dtype", "channels", "channels_last", "mean", "std" (these two numbers by channel, or None).
/// Throws std::invalid_argument.
std::shared_ptr<gpu::GpuSearch> make_search(
    const std::shared_ptr<gpu::GpuEngine>& engine, const std::shared_ptr<gpu::DeviceBank>& bank,
    int32_t images, int32_t num_classes, int32_t grid, int32_t coarse, int32_t depth,
    double min_probability, const pybind11::object& coarse_batch, const std::string& method,
    int32_t exemplars, double reach, int32_t vertices, bool against_image,
    const pybind11::object& classifier_input, bool packed, bool elsewhere);

}  // namespace cae::bindings
