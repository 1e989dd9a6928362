// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "core/check.h"
#include "search/flip_search.h"

namespace cae::bindings {

/// "bisection" or "margin"; throws std::invalid_argument for another name.
inline search::FlipMethod read_method(const std::string& name) {
  CAE_CHECK(name == "bisection" || name == "margin",
            "method must be 'bisection' or 'margin', got '", name, "'");
  return name == "margin" ? search::FlipMethod::kMargin : search::FlipMethod::kBisection;
}

}  // namespace cae::bindings
