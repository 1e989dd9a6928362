// SPDX-License-Identifier: Apache-2.0
#include "emu/device_memory.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <thread>
#include <unordered_map>

#include "emu/external_memory.h"
#include "emu/fault.h"

namespace cae::emu {

std::atomic<Allocation*> windows[kWindows];

namespace {

constexpr size_t kAlignment = 256;

std::mutex mutex;  // of all below
uint64_t windows_used = 0;
size_t bytes_in_use = 0;
size_t byte_limit = std::numeric_limits<size_t>::max();

// Never destroyed: memory may be given back while the process ends.
std::vector<Allocation*>& externals() {
  static auto& all = *new std::vector<Allocation*>;
  return all;
}

uint64_t words_spanned(uint64_t address, size_t bytes) {
  return (address + bytes + 3) / 4 - address / 4;
}

/// Zeroed pages that cost nothing until a kernel touches the words they stand for.
WordOwners* make_words(uint64_t address, size_t bytes) {
  auto* words =
      static_cast<WordOwners*>(std::calloc(words_spanned(address, bytes) + 1, sizeof(WordOwners)));
  if (words == nullptr) {
    throw std::bad_alloc();
  }
  return words;
}

Allocation* find(uint64_t address, const std::vector<Allocation*>& external) {
  const uint64_t window = (address - kDeviceAddresses) >> kWindowBits;
  if (window < kWindows) {
    return windows[window].load(std::memory_order_acquire);
  }
  for (Allocation* memory : external) {
    if (address - memory->address < memory->bytes) {
      return memory;
    }
  }
  return nullptr;
}

}  // namespace

void* allocate_device(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (bytes > byte_limit || bytes_in_use > byte_limit - bytes || windows_used == kWindows ||
      bytes >= uint64_t{1} << kWindowBits) {
    throw std::bad_alloc();
  }
  auto memory = std::make_unique<Allocation>();
  memory->number = windows_used;
  memory->address = kDeviceAddresses + (windows_used << kWindowBits);
  memory->bytes = bytes;
  memory->words = make_words(memory->address, bytes);
  memory->host = static_cast<uint8_t*>(
      std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment));
  if (memory->host == nullptr) {
    std::free(memory->words);
    throw std::bad_alloc();
  }
  std::memset(memory->host, 0xff, bytes);
  bytes_in_use += bytes;
  auto* data = reinterpret_cast<void*>(memory->address);  // NOLINT(performance-no-int-to-ptr)
  windows[windows_used++].store(memory.release(), std::memory_order_release);
  return data;
}

void free_device(void* data) noexcept {
  const std::lock_guard<std::mutex> lock(mutex);
  Allocation* memory = find(reinterpret_cast<uint64_t>(data), {});
  std::free(memory->host);
  std::free(memory->words);
  memory->host = nullptr;
  memory->words = nullptr;
  memory->freed = true;
  bytes_in_use -= memory->bytes;
}

void seal_device(const void* data) {
  const std::lock_guard<std::mutex> lock(mutex);
  Allocation* memory = find(reinterpret_cast<uint64_t>(data), {});
  memory->writable = false;
  memory->constant = true;
}

void set_memory_limit(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  byte_limit = bytes;
}

size_t memory_in_use() {
  const std::lock_guard<std::mutex> lock(mutex);
  return bytes_in_use;
}

std::vector<Allocation*> external_memory() {
  const std::lock_guard<std::mutex> lock(mutex);
  return externals();
}

ExternalMemory::ExternalMemory(const void* data, size_t bytes, ExternalUse use)
    : memory_(std::make_unique<Allocation>()) {
  memory_->address = reinterpret_cast<uint64_t>(data);
  memory_->bytes = bytes;
  memory_->host = static_cast<uint8_t*>(const_cast<void*>(data));
  memory_->words = make_words(memory_->address, bytes);
  memory_->writable = use == ExternalUse::kWritten;
  memory_->constant = use == ExternalUse::kConstant;
  memory_->external = true;
  const std::lock_guard<std::mutex> lock(mutex);
  externals().push_back(memory_.get());
}

ExternalMemory::~ExternalMemory() {
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<Allocation*>& all = externals();
  all.erase(std::find(all.begin(), all.end(), memory_.get()));
  std::free(memory_->words);
}

std::string describe_address(uint64_t address, const std::vector<Allocation*>& external) {
  const Allocation* memory = find(address, external);
  if (memory == nullptr) {
    return address < kDeviceAddresses ? "no device address" : "an address never allocated";
  }
  const uint64_t offset = address - memory->address;
  const uint64_t to_next = (uint64_t{1} << kWindowBits) - offset;
  if (!memory->external && offset >= memory->bytes && to_next < offset - memory->bytes) {
    return std::to_string(to_next) + " bytes before allocation " +
           std::to_string(memory->number + 1);
  }
  std::string name =
      memory->external ? "external memory" : "allocation " + std::to_string(memory->number);
  name = (memory->freed ? "freed " : "") + name + " (" + std::to_string(memory->bytes) + " bytes)";
  return offset < memory->bytes
             ? "byte " + std::to_string(offset) + " of " + name
             : "byte " + std::to_string(offset - memory->bytes) + " beyond the end of " + name;
}

uint8_t* host_view(const void* data, size_t bytes, const char* what) {
  const auto address = reinterpret_cast<uint64_t>(data);
  const std::vector<Allocation*> external = external_memory();
  const Allocation* memory = find(address, external);
  if (memory == nullptr || memory->freed || address - memory->address > memory->bytes ||
      bytes > memory->bytes - (address - memory->address)) {
    throw Fault(std::string(what) + " of " + std::to_string(bytes) + " bytes at " +
                describe_address(address, external));
  }
  return memory->host + (address - memory->address);
}

namespace {

constexpr uint32_t kMaskBits = 4;
constexpr uint32_t kSeveral = 0x0fffffff;  // in place of a block's number
constexpr uint32_t kByBytes = 0x0ffffffe;  // blocks share the word: see SplitWord

// Words of which blocks own different bytes: rare, so exact and slow.
struct SplitWord {
  uint32_t launch = 0;
  std::array<uint32_t, 4> writers = {};
  std::array<uint32_t, 4> readers = {};
};
std::mutex split_mutex;
SplitWord& split_of(const WordOwners& word) {
  static auto& words = *new std::unordered_map<const WordOwners*, SplitWord>;
  return words[&word];
}

constexpr const char* kWriteWrite = "race between blocks: writes what another block wrote";
constexpr const char* kWriteRead = "race between blocks: writes what another block read";
constexpr const char* kReadWrite = "race between blocks: reads what another block wrote";
constexpr const char* kStale = "reads through the read-only path what this launch wrote";

const char* check_split(SplitWord& word, uint32_t mask, Access access, uint32_t me) {
  for (uint32_t byte = 0; byte < 4; ++byte) {
    if ((mask >> byte & 1) == 0) {
      continue;
    }
    uint32_t& writer = word.writers[byte];
    uint32_t& reader = word.readers[byte];
    if (writer != 0 && writer != me) {
      return access == Access::kWrite ? kWriteWrite : kReadWrite;
    }
    if (access == Access::kReadOnly && writer == me) {
      return kStale;
    }
    if (access != Access::kWrite) {
      reader = reader == 0 || reader == me ? me : kSeveral;
      continue;
    }
    if (reader != 0 && reader != me) {
      return kWriteRead;
    }
    writer = me;
  }
  return nullptr;
}

/// From now on the word is recorded byte by byte.
const char* record_split(WordOwners& word, uint32_t mask, Access access, uint32_t me) {
  const std::lock_guard<std::mutex> lock(split_mutex);
  SplitWord& split = split_of(word);
  if (word.writer >> kMaskBits != kByBytes) {
    split = SplitWord{};
    for (uint32_t byte = 0; byte < 4; ++byte) {
      split.writers[byte] = (word.writer >> byte & 1) != 0 ? word.writer >> kMaskBits : 0;
      split.readers[byte] = (word.reader >> byte & 1) != 0 ? word.reader >> kMaskBits : 0;
    }
    word.writer = kByBytes << kMaskBits;
  }
  return check_split(split, mask, access, me);
}

/// Nothing new: a block reads again what blocks only read, or its own.
bool is_known_read(const WordOwners& word, uint32_t mask, uint32_t launch, uint32_t me) {
  const uint32_t reader = word.reader >> kMaskBits;
  return word.launch == launch && word.writer == 0 && (reader == me || reader == kSeveral) &&
         (word.reader & mask) == mask;
}

const char* record_word(WordOwners& word, uint32_t mask, Access access, uint32_t launch,
                        uint32_t me) {
  if (word.launch != launch) {
    word = {launch, 0, 0};
  }
  const uint32_t writer = word.writer >> kMaskBits;
  const uint32_t reader = word.reader >> kMaskBits;
  if (writer == kByBytes) {
    return record_split(word, mask, access, me);
  }
  if (writer != 0 && (writer != me || access == Access::kReadOnly) && (word.writer & mask) != 0) {
    return writer == me ? kStale : access == Access::kWrite ? kWriteWrite : kReadWrite;
  }
  if (access == Access::kWrite) {
    if (reader != 0 && reader != me && (word.reader & mask) != 0) {
      return kWriteRead;
    }
    if ((writer != 0 && writer != me) || (reader != 0 && reader != me)) {
      return record_split(word, mask, access, me);
    }
    word.writer = me << kMaskBits | (word.writer & 15) | mask;
    return nullptr;
  }
  if (writer != 0 && writer != me) {
    return record_split(word, mask, access, me);
  }
  if (reader == 0 || reader == me) {
    word.reader = me << kMaskBits | (word.reader & 15) | mask;
  } else if ((word.reader & mask) != 0) {
    word.reader = kSeveral << kMaskBits | (word.reader & 15) | mask;
  } else {
    return record_split(word, mask, access, me);
  }
  return nullptr;
}

// Blocks on other host threads record in the same words.
std::array<std::atomic_flag, 1024> word_locks;  // zero-initialised: clear

class WordLock {
 public:
  WordLock(uint64_t address, bool needed)
      : flag_(needed ? &word_locks[(address >> 4) % word_locks.size()] : nullptr) {
    while (flag_ != nullptr && flag_->test_and_set(std::memory_order_acquire)) {
      std::this_thread::yield();
    }
  }
  ~WordLock() {
    if (flag_ != nullptr) {
      flag_->clear(std::memory_order_release);
    }
  }
  WordLock(const WordLock&) = delete;
  WordLock& operator=(const WordLock&) = delete;

 private:
  std::atomic_flag* flag_;
};

}  // namespace

const char* record_access(Allocation& memory, uint64_t address, uint32_t bytes, Access access,
                          uint32_t launch, uint32_t block, bool shared) {
  const WordLock lock(address, shared);
  WordOwners* word = memory.words + (address / 4 - memory.address / 4);
  const uint32_t me = block + 1;
  if (bytes < 4) {
    return record_word(*word, ((1U << bytes) - 1) << (address % 4), access, launch, me);
  }
  for (uint32_t i = 0; i < bytes / 4; ++i) {
    if (access != Access::kWrite && is_known_read(word[i], 15, launch, me)) {
      continue;
    }
    const char* wrong = record_word(word[i], 15, access, launch, me);
    if (wrong != nullptr) {
      return wrong;
    }
  }
  return nullptr;
}

}  // namespace cae::emu
