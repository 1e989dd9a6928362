// SPDX-License-Identifier: Apache-2.0
// A launch: what the CUDA runtime would refuse, the host threads that run its blocks, the counts.
#include "emu/launch_emu.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <thread>

#include "emu/device_limits.h"
#include "emu/emulator.h"
#include "emu/fault.h"

namespace cae::emu {

void Counts::add(const Counts& other) {
  launches += other.launches;
  overlapped += other.overlapped;
  blocks += other.blocks;
  multiplies += other.multiplies;
  matrix_loads += other.matrix_loads;
  matrix_wavefronts += other.matrix_wavefronts;
  shared_accesses += other.shared_accesses;
  shared_wavefronts += other.shared_wavefronts;
  shared_bytes = std::max(shared_bytes, other.shared_bytes);
  async_copies += other.async_copies;
  bulk_bytes += other.bulk_bytes;
}

namespace {

constexpr int64_t kMaxGridX = 0x7fffffff;
constexpr int64_t kMaxGridYz = 65535;
constexpr int64_t kMaxBlocks = 0x0ffffff0;  // what the record of global accesses can number

std::mutex mutex;  // of all below
std::map<std::string, Counts> counts_by_kernel;
std::vector<std::unique_ptr<Worker>> idle_workers;
uint32_t launches_so_far = 0;

/// The type's name without what is the same for all.
std::string kernel_name(const std::type_info& params) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> readable(
      abi::__cxa_demangle(params.name(), nullptr, nullptr, &status), std::free);
  std::string name = status == 0 ? readable.get() : params.name();
  for (const std::string part : {"cae::cuda::", "(anonymous namespace)::"}) {
    for (size_t at = 0; (at = name.find(part)) != std::string::npos;) {
      name.erase(at, part.size());
    }
  }
  return name;
}

void check_launch(const Launch& launch) {
  const std::string of = "launch of the kernel of " + launch.kernel + ": ";
  const auto refuse = [&of](const std::string& what) { throw Fault(of + what); };
  if (launch.threads <= 0 || launch.threads > kMaxThreads || launch.threads % kWarp != 0) {
    refuse("threads must be a multiple of 32 in 32..1024, got " + std::to_string(launch.threads));
  }
  const DeviceLimits& limits = device_limits();
  if (launch.shared_bytes > limits.shared_bytes) {
    refuse("shared memory must be at most " + std::to_string(limits.shared_bytes) +
           " bytes on compute capability " + std::to_string(limits.arch / 10) + "." +
           std::to_string(limits.arch % 10) + ", got " + std::to_string(launch.shared_bytes));
  }
  if (launch.grid_x <= 0 || launch.grid_y <= 0 || launch.grid_z <= 0 || launch.grid_x > kMaxGridX ||
      launch.grid_y > kMaxGridYz || launch.grid_z > kMaxGridYz ||
      static_cast<int64_t>(launch.grid_y) * launch.grid_z > kMaxBlocks / launch.grid_x) {
    refuse("grid of " + std::to_string(launch.grid_x) + " x " + std::to_string(launch.grid_y) +
           " x " + std::to_string(launch.grid_z) + " blocks");
  }
  if (launch.cluster <= 0 || launch.cluster > kMaxCluster || launch.grid_x % launch.cluster != 0) {
    refuse("clusters of " + std::to_string(launch.cluster) + " blocks in a grid of width " +
           std::to_string(launch.grid_x));
  }
}

/// CAE_EMU_THREADS, or the cores of the machine.
int64_t host_threads() {
  const char* wanted = std::getenv("CAE_EMU_THREADS");
  const int64_t count = wanted != nullptr
                            ? std::strtol(wanted, nullptr, 10)
                            : static_cast<int64_t>(std::thread::hardware_concurrency());
  return std::clamp<int64_t>(count, 1, 64);
}

std::unique_ptr<Worker> take_worker() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (idle_workers.empty()) {
    return std::make_unique<Worker>();
  }
  std::unique_ptr<Worker> worker = std::move(idle_workers.back());
  idle_workers.pop_back();
  return worker;
}

void work(Launch& launch) {
  std::unique_ptr<Worker> worker = take_worker();
  run_worker(launch, *worker);
  const std::lock_guard<std::mutex> lock(mutex);
  idle_workers.push_back(std::move(worker));
}

}  // namespace

void launch_kernel(const std::type_info& params, const cuda::Grid& grid, int threads,
                   size_t shared_bytes, const cuda::LaunchOptions& options,
                   void (*run)(const void*), const void* closure) {
  Launch launch;
  launch.kernel = kernel_name(params);
  launch.grid_x = grid.x;
  launch.grid_y = grid.y;
  launch.grid_z = grid.z;
  launch.threads = threads;
  launch.shared_bytes = static_cast<uint32_t>(std::min<size_t>(shared_bytes, UINT32_MAX));
  launch.cluster = options.cluster;
  launch.overlap = options.overlap;
  launch.run = run;
  launch.closure = closure;
  check_launch(launch);
  launch.groups = static_cast<int64_t>(grid.x) / options.cluster * grid.y * grid.z;
  launch.external = external_memory();
  const int64_t workers = std::min(launch.groups, host_threads());
  launch.shared = workers > 1;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    launch.id = ++launches_so_far;
  }
  std::vector<std::thread> others;
  for (int64_t i = 1; i < workers; ++i) {
    others.emplace_back([&launch] { work(launch); });
  }
  work(launch);
  for (std::thread& other : others) {
    other.join();
  }
  if (launch.failure != nullptr) {
    std::rethrow_exception(launch.failure);
  }
  launch.counts.launches = 1;
  launch.counts.overlapped = launch.overlap ? 1 : 0;
  launch.counts.shared_bytes = launch.shared_bytes;
  const std::lock_guard<std::mutex> lock(mutex);
  counts_by_kernel[launch.kernel].add(launch.counts);
}

std::map<std::string, Counts> launch_counts() {
  const std::lock_guard<std::mutex> lock(mutex);
  return counts_by_kernel;
}

void reset_counts() {
  const std::lock_guard<std::mutex> lock(mutex);
  counts_by_kernel.clear();
}

}  // namespace cae::emu
