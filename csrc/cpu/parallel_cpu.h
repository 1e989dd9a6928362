// SPDX-License-Identifier: Apache-2.0
// The process-wide pool of worker threads.
#pragma once

#include <cstdint>
#include <functional>

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
/// that all callers share. Nests within a thread. A child made by fork() starts with a free pool
/// and new worker threads.
class PoolTurn {
 public:
  PoolTurn();
  ~PoolTurn();
  PoolTurn(const PoolTurn&) = delete;
  PoolTurn& operator=(const PoolTurn&) = delete;
};

/// Runs body(task) once for each task in [0, tasks), in any order and on any thread, and returns
/// when all have ended. The split into tasks is the caller's and must not depend on the number of
/// threads; then neither do results. Takes a turn at the pool. The first exception thrown by a body
/// is rethrown here, after the tasks already started. From within a body it runs serially.
void parallel_for(int64_t tasks, const std::function<void(int64_t)>& body);

}  // namespace cae::cpu
