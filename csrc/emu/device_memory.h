// SPDX-License-Identifier: Apache-2.0
// Memory that emulated kernels may touch. A device address is no host address: each allocation has
// a window of its own in a range that no processor maps, so an access beside it is found, one
// through a plain pointer faults, and a freed address is never given out again.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cae::emu {

// Who touched four bytes in the launch `launch`: a block's number + 1 above a mask of bytes.
struct WordOwners {
  uint32_t launch;
  uint32_t writer;
  uint32_t reader;
};

struct Allocation {
  uint64_t address = 0;  // as kernels see it
  size_t bytes = 0;
  uint8_t* host = nullptr;
  WordOwners* words = nullptr;  // one for each word that the allocation touches
  bool writable = true;
  bool constant = false;  // no kernel that may be running writes it
  bool external = false;
  bool freed = false;
  uint64_t number = 0;
};

constexpr uint64_t kDeviceAddresses = uint64_t{1} << 56;  // the first
constexpr int kWindowBits = 36;                           // of addresses, for one allocation
constexpr uint64_t kWindows = uint64_t{1} << 20;

// Allocations by window. Entries are set once and stay, so kernels read them without a lock.
extern std::atomic<Allocation*> windows[kWindows];

/// Filled with 0xff bytes: not a number, as float and as half. Throws std::bad_alloc.
void* allocate_device(size_t bytes);
void free_device(void* data) noexcept;
/// No kernel may write it from now on.
void seal_device(const void* data);

/// Allocations beyond `bytes` in all fail from now on.
void set_memory_limit(size_t bytes);
size_t memory_in_use();

/// Host memory behind [data, data + bytes). Throws Fault, naming `what`, if not all of it is device
/// memory.
uint8_t* host_view(const void* data, size_t bytes, const char* what);

/// What ExternalMemory objects have registered at this moment.
std::vector<Allocation*> external_memory();

/// "byte 5 beyond the end of allocation 3 (96 bytes)": where an address is.
std::string describe_address(uint64_t address, const std::vector<Allocation*>& external);

enum class Access : uint8_t { kRead, kReadOnly, kWrite };  // kReadOnly: the non-coherent path

/// Records an access of one block of a launch to part of an aligned 16 bytes. Returns null, or what
/// is wrong with it. `shared`: other host threads run blocks of this launch.
const char* record_access(Allocation& memory, uint64_t address, uint32_t bytes, Access access,
                          uint32_t launch, uint32_t block, bool shared);

}  // namespace cae::emu
