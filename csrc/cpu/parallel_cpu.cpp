// SPDX-License-Identifier: Apache-2.0
// Between jobs workers spin for some tens of microseconds, about what waking them takes, and then
// sleep on a condition variable; a job's tasks are handed out by an atomic counter. The pool is
// never destroyed: at exit its sleeping threads end with the process, and a forked child, where
// they do not exist, abandons it for a new one.
#include "cpu/parallel_cpu.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/check.h"
#include "cpu/cores_cpu.h"

namespace cae::cpu {
namespace {

/// Tells the processor that this thread spins.
void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

struct Job {
  const TaskFunction* body = nullptr;
  int64_t tasks = 0;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex error_mutex;
  std::exception_ptr error;
};

thread_local int turn_depth = 0;        // turns this thread holds
thread_local int turn_threads = 1;      // threads of the outermost one
thread_local bool inside_task = false;  // this thread is running a body
thread_local int current_worker = 0;

void run_tasks(Job& job, int worker) {
  inside_task = true;
  current_worker = worker;
  for (int64_t task = job.next++; task < job.tasks && !job.failed; task = job.next++) {
    try {
      (*job.body)(task, worker);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(job.error_mutex);
      if (!job.error) {
        job.error = std::current_exception();
      }
      job.failed = true;
    }
  }
  inside_task = false;
}

class Pool {
 public:
  explicit Pool(Pool* abandoned) : abandoned_(abandoned) {}

  void take_turn() {
    std::unique_lock<std::mutex> lock(turn_mutex_);
    const uint64_t ticket = next_ticket_++;
    turn_changed_.wait(lock, [&] { return ticket == serving_; });
  }

  void leave_turn() {
    {
      const std::lock_guard<std::mutex> lock(turn_mutex_);
      ++serving_;
    }
    turn_changed_.notify_all();
  }

  /// The caller holds the turn. `spin` while waiting: not with fewer cores than threads, where who
  /// spins keeps off who works.
  void run(int64_t tasks, const TaskFunction& body, int threads, bool spin) {
    resize(static_cast<size_t>(threads - 1));
    workers_spin_ = spin;
    Job job;
    job.body = &body;
    job.tasks = tasks;
    if (!workers_.empty() && tasks > 1) {
      {
        const std::lock_guard<std::mutex> lock(job_mutex_);
        job_ = &job;
        ++job_number_;
      }
      job_changed_.notify_all();
      run_tasks(job, 0);
      {
        const std::lock_guard<std::mutex> lock(job_mutex_);
        job_ = nullptr;  // a worker that has not woken yet stays out
      }
      spin_until([&] { return busy_ == 0; });
      std::unique_lock<std::mutex> lock(job_mutex_);
      workers_idle_.wait(lock, [&] { return busy_ == 0; });
    } else {
      run_tasks(job, 0);
    }
    if (job.error) {
      std::rethrow_exception(job.error);
    }
  }

  /// The caller holds the turn.
  void resize(size_t workers) {
    if (workers == workers_.size() || workers == refused_) {
      return;
    }
    refused_ = kNothingRefused;
    if (workers < workers_.size()) {
      {
        const std::lock_guard<std::mutex> lock(job_mutex_);
        wanted_ = workers;
      }
      job_changed_.notify_all();
      for (size_t i = workers; i < workers_.size(); ++i) {
        workers_[i].join();
      }
      workers_.resize(workers);
      return;
    }
    sigset_t all;
    sigset_t before;
    sigfillset(&all);  // signals belong to the threads that the user made
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      workers_.reserve(workers);
      while (workers_.size() < workers) {
        const size_t index = workers_.size();
        {
          const std::lock_guard<std::mutex> lock(job_mutex_);
          wanted_ = index + 1;
        }
        workers_.emplace_back([this, index, seen = job_number_.load()] { work(index, seen); });
      }
    } catch (const std::exception&) {  // no more threads for this process: the others suffice
      const std::lock_guard<std::mutex> lock(job_mutex_);
      wanted_ = workers_.size();
      refused_ = workers;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

 private:
  template <class Condition>
  void spin_until(const Condition& condition) {
    if (workers_spin_) {
      for (int spin = 0; spin < kSpins && !condition(); ++spin) {
        pause_core();
      }
    }
  }

  void work(size_t index, uint64_t seen) {
    std::unique_lock<std::mutex> lock(job_mutex_);
    for (;;) {
      lock.unlock();
      spin_until([&] { return job_number_ != seen; });
      lock.lock();
      job_changed_.wait(lock, [&] { return index >= wanted_ || job_number_ != seen; });
      if (index >= wanted_) {
        return;
      }
      seen = job_number_;
      Job* job = job_;
      if (job == nullptr) {
        continue;
      }
      ++busy_;
      lock.unlock();
      run_tasks(*job, static_cast<int>(index) + 1);
      lock.lock();
      if (--busy_ == 0) {
        workers_idle_.notify_all();
      }
    }
  }

  static constexpr int kSpins = 2000;  // 20 to 80 us
  static constexpr size_t kNothingRefused = std::numeric_limits<size_t>::max();

  [[maybe_unused]] Pool* const abandoned_;  // what a child cannot free stays reachable

  std::mutex turn_mutex_;
  std::condition_variable turn_changed_;
  uint64_t next_ticket_ = 0;
  uint64_t serving_ = 0;

  std::mutex job_mutex_;
  std::condition_variable job_changed_;
  std::condition_variable workers_idle_;
  std::vector<std::thread> workers_;
  size_t refused_ = kNothingRefused;  // number of workers not to be had: asked for only once
  size_t wanted_ = 0;
  Job* job_ = nullptr;
  std::atomic<uint64_t> job_number_{0};  // changes with the mutex held
  std::atomic<int> busy_{0};             // likewise
  std::atomic<bool> workers_spin_{false};
};

std::atomic<Pool*> current_pool{nullptr};
std::atomic<Pool*> abandoned_pool{nullptr};

void abandon_pool_in_child() {
  abandoned_pool = current_pool.exchange(nullptr);
  turn_depth = 0;
  inside_task = false;
}

void register_fork_handler() {
  static const int registered = pthread_atfork(nullptr, nullptr, &abandon_pool_in_child);
  CAE_CHECK(registered == 0, "cannot register the thread pool's fork handler");
}

Pool& pool() {
  Pool* existing = current_pool.load();
  if (existing != nullptr) {
    return *existing;
  }
  register_fork_handler();
  auto made = std::make_unique<Pool>(abandoned_pool.load());
  if (current_pool.compare_exchange_strong(existing, made.get())) {
    return *made.release();
  }
  return *existing;
}

/// First number of OMP_NUM_THREADS ("4" or "4,2"), or `most` if there is none in 1..most.
int wanted_threads(int most) {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const long threads = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
  return threads >= 1 && threads < most ? static_cast<int>(threads) : most;
}

/// Cores this process may use, asked once: the answer takes reading files.
int core_count() {
  static const int cores = usable_cores();
  return cores;
}

std::atomic<int>& thread_count() {
  static std::atomic<int> count{wanted_threads(std::min(core_count(), kMaxThreads))};
  return count;
}

}  // namespace

void prepare_pool() {
  thread_count();
  register_fork_handler();
}

int get_num_threads() { return thread_count(); }

void set_num_threads(int threads) {
  CAE_CHECK(threads >= 1 && threads <= kMaxThreads, "num_threads must be in 1..", kMaxThreads,
            ", got ", threads);
  thread_count() = threads;
}

PoolTurn::PoolTurn() : held_(!inside_task) {
  if (!held_) {
    return;
  }
  if (turn_depth == 0) {
    pool().take_turn();
    turn_threads = get_num_threads();
  }
  ++turn_depth;
}

// The pool exists while a turn is held, and locking its mutex cannot fail.
// NOLINTNEXTLINE(bugprone-exception-escape)
PoolTurn::~PoolTurn() {
  if (!held_ || turn_depth == 0) {  // the latter in a child forked during the turn
    return;
  }
  --turn_depth;
  if (turn_depth == 0) {
    pool().leave_turn();
  }
}

int PoolTurn::threads() const { return turn_threads; }

void run_parallel(int64_t tasks, const TaskFunction& body) {
  if (tasks <= 0) {
    return;
  }
  if (inside_task) {
    for (int64_t task = 0; task < tasks; ++task) {
      body(task, current_worker);
    }
    return;
  }
  const PoolTurn turn;
  pool().run(tasks, body, turn.threads(), turn.threads() <= core_count());
}

}  // namespace cae::cpu
