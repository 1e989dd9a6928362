// SPDX-License-Identifier: Apache-2.0
// Stress of the thread pool: meant to run under the thread sanitizer as well.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check_test.h"
#include "cpu/parallel_cpu.h"

// The thread sanitizer does not support threads in a forked child. GCC and Clang name it
// differently.
#if defined(__SANITIZE_THREAD__)
#define CAE_THREAD_SANITIZER
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CAE_THREAD_SANITIZER
#endif
#endif

namespace {

using cae::cpu::get_num_threads;
using cae::cpu::parallel_for;
using cae::cpu::PoolTurn;
using cae::cpu::set_num_threads;

constexpr int kThreadCounts[] = {1, 2, 3, 8, 1, 5};

/// Runs `tasks` tasks; true if each ran exactly once.
bool each_runs_once(int64_t tasks) {
  std::vector<int> runs(static_cast<size_t>(tasks), 0);  // one writer each, or a data race
  parallel_for(tasks, [&runs](int64_t task) { ++runs[static_cast<size_t>(task)]; });
  return std::all_of(runs.begin(), runs.end(), [](int count) { return count == 1; });
}

void test_each_task_once() {
  for (const int threads : kThreadCounts) {
    set_num_threads(threads);
    CAE_TEST_CHECK(get_num_threads() == threads);
    for (const int64_t tasks : {0, 1, 2, 3, 7, 64, 1000}) {
      CAE_TEST_CHECK(each_runs_once(tasks));
    }
    for (int repeat = 0; repeat < 300; ++repeat) {
      CAE_TEST_CHECK(each_runs_once(repeat % 5));
    }
  }
  set_num_threads(2);
  int untouched = 0;
  parallel_for(-3, [&untouched](int64_t) { ++untouched; });
  CAE_TEST_CHECK(untouched == 0);
}

void test_workers_take_part() {
  set_num_threads(2);
  // Two tasks that wait for each other: they end only if two threads run them.
  std::atomic<int> arrived{0};
  parallel_for(2, [&arrived](int64_t) {
    ++arrived;
    while (arrived < 2) {
      std::this_thread::yield();
    }
  });
  CAE_TEST_CHECK(arrived == 2);
}

void test_nested() {
  for (const int threads : kThreadCounts) {
    set_num_threads(threads);
    std::atomic<int64_t> sum{0};
    parallel_for(20, [&sum](int64_t outer) {
      const PoolTurn none;  // its caller has it
      parallel_for(30, [&sum, outer](int64_t inner) { sum += outer * 30 + inner; });
    });
    CAE_TEST_CHECK(sum == 600 * 599 / 2);
    const PoolTurn turn;
    const PoolTurn same_thread;
    CAE_TEST_CHECK(each_runs_once(50));
  }
}

void test_exceptions() {
  for (const int threads : kThreadCounts) {
    set_num_threads(threads);
    for (int64_t bad = 0; bad < 40; ++bad) {
      std::string seen;
      try {
        parallel_for(40, [bad](int64_t task) {
          if (task == bad) {
            throw std::out_of_range("task " + std::to_string(task));
          }
        });
      } catch (const std::out_of_range& error) {
        seen = error.what();
      }
      CAE_TEST_CHECK(seen == "task " + std::to_string(bad));
      CAE_TEST_CHECK(each_runs_once(40));  // the pool is usable afterwards
    }
    CAE_TEST_CHECK(cae::testing::throws<std::runtime_error>(
        [] { parallel_for(100, [](int64_t) { throw std::runtime_error("every task"); }); }));
    CAE_TEST_CHECK(cae::testing::throws<std::runtime_error>([] {
      parallel_for(
          8, [](int64_t) { parallel_for(8, [](int64_t) { throw std::runtime_error("nested"); }); });
    }));
  }
}

/// Several threads use the pool at once while another changes its size.
void test_many_callers() {
  constexpr int kCallers = 6;
  constexpr int kRepeats = 150;
  std::atomic<int> wrong{0};
  std::atomic<bool> stop{false};
  int64_t inside_turn = 0;  // guarded by the pool's turn alone
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&wrong, &inside_turn, caller] {
      for (int repeat = 0; repeat < kRepeats; ++repeat) {
        if (!each_runs_once(1 + (caller * 7 + repeat) % 40)) {
          ++wrong;
        }
        const PoolTurn turn;
        ++inside_turn;
        if (!each_runs_once(3)) {
          ++wrong;
        }
      }
    });
  }
  std::thread resizer([&stop] {
    for (int i = 0; !stop; ++i) {
      set_num_threads(1 + i % 6);
      std::this_thread::yield();
    }
  });
  for (std::thread& caller : callers) {
    caller.join();
  }
  stop = true;
  resizer.join();
  CAE_TEST_CHECK(wrong == 0);
  CAE_TEST_CHECK(inside_turn == kCallers * kRepeats);
}

void test_range_errors() {
  for (const int threads : {0, -1, 257, 1 << 30}) {
    CAE_TEST_CHECK(
        cae::testing::throws<std::invalid_argument>([threads] { set_num_threads(threads); }));
  }
}

#if !defined(CAE_THREAD_SANITIZER)

/// Exit status of a forked child; 99 if it hangs or died.
int wait_for(pid_t child) {
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
    return 99;
  }
  return WEXITSTATUS(status);
}

/// Exit status of a forked child that uses the pool.
int status_of_child() {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(each_runs_once(100) && each_runs_once(1000) ? 0 : 1);
  }
  return wait_for(child);
}

/// True if no other thread gets a turn while this one holds one.
bool turn_excludes_others() {
  std::atomic<bool> entered{false};
  std::thread other;
  bool excluded = false;
  {
    const PoolTurn turn;
    other = std::thread([&entered] {
      const PoolTurn own;
      entered = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    excluded = !entered;
  }
  other.join();
  return excluded && entered;
}

/// A child forked during a turn is free of it, and ends it without harm.
void test_fork_during_turn() {
  pid_t child = -1;
  {
    const PoolTurn turn;
    child = fork();
    if (child == 0) {
      alarm(20);
    }
  }
  if (child == 0) {
    _exit(turn_excludes_others() && each_runs_once(10) ? 0 : 1);
  }
  CAE_TEST_CHECK(wait_for(child) == 0);
  CAE_TEST_CHECK(turn_excludes_others());
}

/// A child gets a fresh pool, also if other threads were using the parent's when it was made.
void test_fork() {
  set_num_threads(4);
  CAE_TEST_CHECK(each_runs_once(10));
  CAE_TEST_CHECK(status_of_child() == 0);
  std::atomic<bool> stop{false};
  std::vector<std::thread> users;
  for (int user = 0; user < 3; ++user) {
    users.emplace_back([&stop] {
      while (!stop) {
        each_runs_once(50);
      }
    });
  }
  for (int repeat = 0; repeat < 30; ++repeat) {
    CAE_TEST_CHECK(status_of_child() == 0);
  }
  stop = true;
  for (std::thread& user : users) {
    user.join();
  }
  CAE_TEST_CHECK(each_runs_once(10));  // the parent's pool goes on
}

#endif

}  // namespace

int main() {
#if !defined(CAE_THREAD_SANITIZER)
  test_fork();
  test_fork_during_turn();
#endif
  test_each_task_once();
  test_workers_take_part();
  test_nested();
  test_exceptions();
  test_many_callers();
  test_range_errors();
  return cae::testing::finish("test_parallel");
}
