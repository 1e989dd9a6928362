// SPDX-License-Identifier: Apache-2.0
// CAE_CHECK: refuses bad arguments with one line that says what was wanted and what was seen.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace cae {

/// Concatenates the arguments as a stream would print them.
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream stream;
  (stream << ... << args);
  return stream.str();
}

}  // namespace cae

/// Throws std::invalid_argument with the concatenated message unless `condition` holds.
#define CAE_CHECK(condition, ...)                              \
  do {                                                         \
    if (!(condition)) {                                        \
      throw std::invalid_argument(::cae::concat(__VA_ARGS__)); \
    }                                                          \
  } while (false)
