// SPDX-License-Identifier: Apache-2.0
// Threads of a block as fibers: stacks that are switched by hand, because a kernel's threads meet
// at every collective and an operating system's switch would cost a hundred times the work between.
#pragma once

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#define CAE_EMU_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define CAE_EMU_TSAN 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CAE_EMU_ASAN 1
#elif __has_feature(thread_sanitizer)
#define CAE_EMU_TSAN 1
#endif
#endif

#if defined(__x86_64__)
// Saves what a callee must keep, and the place to return to, on the stack that is left. Returning
// by `ret` suits the processor's prediction: both fibers were left at the same call.
extern "C" void cae_emu_switch(void** save, void* load);
#if !defined(CAE_EMU_ASAN) && !defined(CAE_EMU_TSAN)
#define CAE_EMU_SWITCHES_ONLY 1  // nobody else wants to know
#endif
#else
#include <ucontext.h>
#endif

namespace cae::emu {

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;  // for the sanitizers
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;    // of the address sanitizer
  void* tsan_context = nullptr;  // of the thread sanitizer
};

/// Stacks of one size with a page between them that faults: an overflow ends the process.
class FiberStacks {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;  // reserved; only pages that are touched cost

  FiberStacks() = default;
  ~FiberStacks();
  FiberStacks(const FiberStacks&) = delete;
  FiberStacks& operator=(const FiberStacks&) = delete;

  /// Makes at least `count` stacks; those of before are lost if there were fewer.
  void reserve(size_t count);
  char* stack(size_t index) const { return memory_ + index * pitch_ + guard_; }
  /// Bytes of it to use: they differ, because stacks that all end at the same offset of a page
  /// would fight for the same few lines of the processor's caches.
  static size_t usable(size_t index) { return kStackBytes - index * 17 % 1024 * 64; }

 private:
  void release();

  char* memory_ = nullptr;
  size_t count_ = 0;
  size_t pitch_ = 0;
  size_t guard_ = 0;
};

/// Makes `fiber` one that runs `entry` when it is first switched to; `entry` never returns. What
/// ran on the stack before is forgotten, not unwound.
void start_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)());

/// The calling thread itself as a fiber, to be switched back to.
void adopt_thread(Fiber& fiber);

/// Leaves `from` and continues `to`. `last`: nobody will switch back to `from`.
#ifdef CAE_EMU_SWITCHES_ONLY
inline void switch_fiber(Fiber& from, Fiber& to, bool /*last*/ = false) {
  cae_emu_switch(&from.stack_pointer, to.stack_pointer);
}
#else
void switch_fiber(Fiber& from, Fiber& to, bool last = false);
#endif

/// First thing of an `entry`.
void fiber_entered();

}  // namespace cae::emu
