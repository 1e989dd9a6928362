// SPDX-License-Identifier: Apache-2.0
// What the native tests need of a test framework: checks that count and name their failures.
// A test program ends with `return cae::testing::finish("name")`.
#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>

namespace cae::testing {

inline int64_t checks = 0;
inline int64_t failures = 0;

inline void check(bool passed, const char* text, const char* file, int line) {
  ++checks;
  if (passed) {
    return;
  }
  ++failures;
  if (failures <= 20) {
    std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
  }
}

/// True if `body` throws an `Error` (or a class derived from it).
template <class Error, class Body>
bool throws(Body&& body) {
  try {
    body();
  } catch (const Error&) {
    return true;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "another exception: %s\n", error.what());
  }
  return false;
}

/// Prints the tally; the exit status of the program. A test without checks fails.
inline int finish(const char* name) {
  std::printf("%s: %lld checks, %lld failures\n", name, static_cast<long long>(checks),
              static_cast<long long>(failures));
  return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace cae::testing

#define CAE_TEST_CHECK(condition) ::cae::testing::check((condition), #condition, __FILE__, __LINE__)
