// SPDX-License-Identifier: Apache-2.0
#include "emu/fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#ifdef CAE_EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CAE_EMU_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__)
asm(R"(
.text
.globl cae_emu_switch
.hidden cae_emu_switch
.type cae_emu_switch, @function
cae_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cae_emu_switch, .-cae_emu_switch
)");
#endif

namespace cae::emu {

FiberStacks::~FiberStacks() { release(); }

void FiberStacks::release() {
  if (memory_ != nullptr) {
    munmap(memory_, count_ * pitch_);
    memory_ = nullptr;
    count_ = 0;
  }
}

void FiberStacks::reserve(size_t count) {
  if (count <= count_) {
    return;
  }
  release();
  guard_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  pitch_ = kStackBytes + guard_;
  void* memory = mmap(nullptr, count * pitch_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  memory_ = static_cast<char*>(memory);
  count_ = count;
  for (size_t i = 0; i < count; ++i) {
    mprotect(memory_ + i * pitch_, guard_, PROT_NONE);
  }
}

void start_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
  fiber.stack = stack;
  fiber.stack_bytes = bytes;
  fiber.fake_stack = nullptr;
#ifdef CAE_EMU_ASAN
  __asan_unpoison_memory_region(stack, fiber.stack_bytes);
#endif
#ifdef CAE_EMU_TSAN
  if (fiber.tsan_context != nullptr) {
    __tsan_destroy_fiber(fiber.tsan_context);
  }
  fiber.tsan_context = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  // As if `entry` had been called with its stack aligned: 16 bytes and a return address.
  auto** top = reinterpret_cast<void**>(stack + fiber.stack_bytes) - 8;
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) {
    *--top = nullptr;
  }
  fiber.stack_pointer = static_cast<void*>(top);
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

void adopt_thread(Fiber& fiber) {
#ifdef CAE_EMU_ASAN
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &fiber.stack_bytes);
  pthread_attr_destroy(&attributes);
  fiber.stack = static_cast<char*>(stack);
#endif
#ifdef CAE_EMU_TSAN
  fiber.tsan_context = __tsan_get_current_fiber();
#endif
  fiber.fake_stack = nullptr;
}

#ifndef CAE_EMU_SWITCHES_ONLY
void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool last) {
#ifdef CAE_EMU_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#endif
#ifdef CAE_EMU_TSAN
  __tsan_switch_to_fiber(to.tsan_context, 0);
#endif
#if defined(__x86_64__)
  cae_emu_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef CAE_EMU_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}
#endif

void fiber_entered() {
#ifdef CAE_EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace cae::emu
