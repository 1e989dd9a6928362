// SPDX-License-Identifier: Apache-2.0
#include "cpu/cores_cpu.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace cae::cpu {
namespace {

int affinity_cores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

/// Quota in cores of one control group folder, or infinity. Version 2 keeps "quota period" or
/// "max period" in one file, version 1 two numbers in two files.
double folder_quota(const std::string& folder) {
  double quota = 0.0;
  double period = 0.0;
  std::ifstream joint(folder + "/cpu.max");
  if (joint >> quota >> period && quota > 0.0 && period > 0.0) {
    return quota / period;
  }
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0.0 && period > 0.0) {
    return quota / period;
  }
  return INFINITY;
}

/// Smallest quota of the group at `path` below `root` and of all groups above it.
double path_quota(const std::string& root, std::string path) {
  double cores = folder_quota(root);
  while (path.size() > 1) {
    cores = std::min(cores, folder_quota(root + path));
    path.resize(path.rfind('/'));
  }
  return cores;
}

double group_quota() {
  double cores = INFINITY;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos || second + 1 >= line.size() || line[second + 1] != '/') {
      continue;
    }
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    const std::string path = line.substr(second + 1);
    if (second == first + 1) {
      cores = std::min(cores, path_quota("/sys/fs/cgroup", path));
    }
    for (std::string name; std::getline(controllers, name, ',');) {
      if (name == "cpu") {
        cores = std::min(cores, path_quota("/sys/fs/cgroup/cpu", path));
      }
    }
  }
  return cores;
}

}  // namespace

int usable_cores() {
  const double quota = std::ceil(group_quota());
  const int cores = affinity_cores();
  return quota < cores ? std::max(1, static_cast<int>(quota)) : cores;
}

}  // namespace cae::cpu
