// SPDX-License-Identifier: Apache-2.0
// A model as Python gives it: configuration and weights by name.
#pragma once

#include <map>
#include <string>

#include "bindings/dlpack_view.h"
#include "engine/network_spec.h"

namespace cae::bindings {

/// Checked, the weights' memory kept alive. Make and destroy with the GIL.
class NetworkArguments {
 public:
  /// `config`: CAEConfig.to_dict(); `weights`: canonical name -> float32 array. Throws
  /// std::invalid_argument as check_weights() does.
  NetworkArguments(const pybind11::dict& config, const pybind11::dict& weights);

  const NetworkConfig& config() const { return config_; }
  const WeightMap& weights() const { return views_; }

 private:
  NetworkConfig config_;
  std::map<std::string, FloatArray> arrays_;
  WeightMap views_;
};

}  // namespace cae::bindings
