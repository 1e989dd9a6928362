// SPDX-License-Identifier: Apache-2.0
#include "bindings/search_arguments.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bindings/bind.h"
#include "bindings/dlpack_view.h"
#include "bindings/flip_method.h"
#include "bindings/integers.h"
#include "bindings/without_gil.h"

namespace py = pybind11;

namespace cae::bindings {

using cuda::ClassifierInput;
using gpu::DeviceBank;
using gpu::GpuEngine;
using gpu::GpuSearch;
using gpu::SearchPlan;

namespace {

ClassifierInput read_classifier_input(const py::dict& wanted) {
  ClassifierInput input;
  const auto dtype = py::cast<std::string>(wanted["dtype"]);
  CAE_CHECK(dtype == "float32" || dtype == "float16", "dtype must be float32 or float16, got ",
            dtype);
  input.half = dtype == "float16";
  input.channels = read_integer<int32_t>(wanted["channels"], "channels");
  CAE_CHECK(input.channels >= 1 && input.channels <= cae::cuda::kMaxImageChannels,
            "channels must be in 1..", cae::cuda::kMaxImageChannels, ", got ", input.channels);
  input.channels_last = py::cast<bool>(wanted["channels_last"]);
  input.normalise = !wanted["mean"].is_none();
  if (input.normalise) {
    const auto mean = py::cast<std::vector<float>>(wanted["mean"]);
    const auto std_dev = py::cast<std::vector<float>>(wanted["std"]);
    const auto channels = static_cast<size_t>(input.channels);
    CAE_CHECK(mean.size() == channels && std_dev.size() == channels, "mean and std must be ",
              channels, " numbers each, got ", mean.size(), " and ", std_dev.size());
    std::copy(mean.begin(), mean.end(), input.mean);
    std::copy(std_dev.begin(), std_dev.end(), input.std_dev);
  }
  return input;
}

}  // namespace

std::shared_ptr<DeviceBank> make_bank(const GpuEngine& engine, const py::object& codes,
                                      const py::object& classes) {
  FloatArray code_array(codes, "codes");
  IndexArray class_array(classes, "classes");
  cae::check_shape(code_array.shape(), "codes", {"R", engine.config().code_dim});
  cae::check_shape(class_array.shape(), "classes", {code_array.shape()[0]});
  const auto code_view = code_array.view();
  const auto class_view = class_array.view();
  CAE_CHECK(code_view.dim(0) <= INT32_MAX, "codes has too many rows");
  std::shared_ptr<DeviceBank> bank;
  without_gil([&] {
    bank = std::make_shared<DeviceBank>(engine.device(), code_view.data, class_view.data,
                                        code_view.dim(0), code_view.dim(1));
  });
  return bank;
}

std::shared_ptr<GpuSearch> make_search(const std::shared_ptr<GpuEngine>& engine,
                                       const std::shared_ptr<DeviceBank>& bank, int32_t images,
                                       int32_t num_classes, int32_t grid, int32_t coarse,
                                       int32_t depth, double min_probability,
                                       const py::object& coarse_batch, const std::string& method,
                                       int32_t exemplars, double reach, int32_t vertices,
                                       bool against_image, const py::object& classifier_input,
                                       bool packed, bool elsewhere) {
  SearchPlan plan;
  plan.rules = {num_classes,
                grid,
                coarse,
                depth,
                min_probability,
                coarse_batch.is_none() ? cae::search::kWholeScan
                                       : read_integer<int32_t>(coarse_batch, "coarse_batch"),
                read_method(method)};
  plan.images = images;
  plan.vertices = vertices;
  plan.exemplars = exemplars;
  plan.reach = reach;
  plan.against_image = against_image;
  if (!classifier_input.is_none()) {
    plan.classifier = read_classifier_input(py::cast<py::dict>(classifier_input));
  }
  plan.packed = packed;
  plan.elsewhere = elsewhere;
  std::shared_ptr<GpuSearch> search;
  without_gil([&] { search = std::make_shared<GpuSearch>(engine, plan, bank); });
  return search;
}

}  // namespace cae::bindings
