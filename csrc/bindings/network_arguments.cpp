// SPDX-License-Identifier: Apache-2.0
#include "bindings/network_arguments.h"

#include "bindings/integers.h"

namespace py = pybind11;

namespace cae::bindings {
namespace {

int64_t read_field(const py::dict& config, const char* field) {
  CAE_CHECK(config.contains(field), "config lacks the field ", field);
  return read_integer<int64_t>(config[field], cae::concat("config field ", field));
}

NetworkConfig read_config(const py::dict& config) {
  NetworkConfig out;
  out.image_size = read_field(config, "image_size");
  out.in_channels = read_field(config, "in_channels");
  out.channels = read_field(config, "channels");
  out.num_blocks = read_field(config, "num_blocks");
  out.code_dim = read_field(config, "code_dim");
  out.modulation_width = read_field(config, "modulation_width");
  return out;
}

}  // namespace

NetworkArguments::NetworkArguments(const py::dict& config, const py::dict& weights)
    : config_(read_config(config)) {
  check_config(config_);
  for (const auto& item : weights) {
    CAE_CHECK(py::isinstance<py::str>(item.first), "names of weights must be strings, got ",
              std::string(py::str(item.first)));
    const auto name = py::cast<std::string>(item.first);
    const auto added = arrays_.emplace(name, FloatArray(item.second, name.c_str())).first;
    views_.emplace(name, TensorView<const float>(nullptr, added->second.shape()));
  }
  check_weights(config_, views_);  // before any is copied
  for (auto& entry : arrays_) {
    views_[entry.first] = entry.second.view();
  }
}

}  // namespace cae::bindings
