// SPDX-License-Identifier: Apache-2.0
// Work without the interpreter's lock, safe at the end of the process.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <exception>

namespace cae::bindings {

/// Until dismissed, its destructor never returns.
class HangOnUnwind {
 public:
  HangOnUnwind() = default;
  HangOnUnwind(const HangOnUnwind&) = delete;
  HangOnUnwind& operator=(const HangOnUnwind&) = delete;
  ~HangOnUnwind() {
    while (!dismissed_) {
      pause();
    }
  }
  void dismiss() { dismissed_ = true; }

 private:
  bool dismissed_ = false;
};

/// Runs work() with the lock released and rethrows what it throws with the lock held.
///
/// Before Python 3.14, a daemon thread that asks for the lock while the interpreter shuts down is
/// ended by pthread_exit, whose unwinding would run destructors of Python objects without the lock,
/// or meet a noexcept function and abort the process. It is parked instead, as 3.14 does: the main
/// thread ends the process without waiting for it.
template <class Work>
void without_gil(const Work& work) {
  PyThreadState* const state = PyEval_SaveThread();
  std::exception_ptr error;
  try {
    work();
  } catch (...) {
    error = std::current_exception();
  }
  HangOnUnwind guard;
  PyEval_RestoreThread(state);
  guard.dismiss();
  if (error) {
    std::rethrow_exception(error);
  }
}

}  // namespace cae::bindings
