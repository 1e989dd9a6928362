// SPDX-License-Identifier: Apache-2.0
// The process-wide pool of worker threads.
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>

namespace cae::cpu {

constexpr int kMaxThreads = 256;

/// Initialises what is initialised once. Call it before there are threads: a child forked while
/// another thread is in the middle of an initialisation would wait for its end for ever.
void prepare_pool();

/// Threads that parallel_for uses, the caller among them. Default: cores this process may use, at
/// most OMP_NUM_THREADS.
int get_num_threads();

/// Throws std::invalid_argument outside 1..kMaxThreads. Takes effect once running work has ended.
void set_num_threads(int threads);

/// Turn at the pool. Turns are given in the order in which they were asked for, so that callers in
/// several threads share the pool fairly; between taking and leaving it a caller may use buffers
/// that all callers share. Nests within a thread; within
/// a task it takes nothing, for its caller has the turn. A child made by fork() starts with a free
/// pool and new worker threads.
class PoolTurn {
 public:
  PoolTurn();
  ~PoolTurn();
  PoolTurn(const PoolTurn&) = delete;
  PoolTurn& operator=(const PoolTurn&) = delete;

  /// Threads that work during this turn: get_num_threads() when the outermost one began.
  int threads() const;

 private:
  bool held_;
};

/// parallel_for's body: task and worker, in [0, threads of the turn); no two threads have the same.
using TaskFunction = std::function<void(int64_t, int)>;
void run_parallel(int64_t tasks, const TaskFunction& body);

/// Runs body(task) or body(task, worker) once for each task in [0, tasks), on any thread, and
/// returns when all have ended. Tasks are begun in order. The split into tasks is the caller's and
/// must not depend on the number of threads; then neither do results. Takes a turn at the pool. The
/// first exception thrown by a body is rethrown here, after the tasks already started. From within
/// a body it runs serially.
template <class Body>
void parallel_for(int64_t tasks, const Body& body) {
  if constexpr (std::is_invocable_v<const Body&, int64_t, int>) {
    run_parallel(tasks, std::cref(body));
  } else {
    const auto with_worker = [&body](int64_t task, int) { body(task); };
    run_parallel(tasks, std::cref(with_worker));
  }
}

}  // namespace cae::cpu
