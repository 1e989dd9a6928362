// SPDX-License-Identifier: Apache-2.0
// Integer arguments: Python's own and what NumPy makes, of any size.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/check.h"

namespace cae::bindings {

/// An argument with `__index__` (int, np.int64) but bool, which is no number here. Throws
/// std::invalid_argument (ValueError) if it is none or no Int holds it.
template <class Int>
Int read_integer(const pybind11::handle& value, const std::string& name) {
  const auto text = [&value] { return std::string(pybind11::str(value)); };
  const auto number = pybind11::reinterpret_steal<pybind11::object>(
      PyBool_Check(value.ptr()) ? nullptr : PyNumber_Index(value.ptr()));
  if (!number) {
    PyErr_Clear();
    throw std::invalid_argument(concat(name, " must be an integer, got ", text()));
  }
  int overflow = 0;
  const int64_t read = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  CAE_CHECK(overflow == 0 && read >= std::numeric_limits<Int>::min() &&
                read <= std::numeric_limits<Int>::max(),
            name, " is out of range: ", text());
  return static_cast<Int>(read);
}

}  // namespace cae::bindings
