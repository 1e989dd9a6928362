// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa_cpu.h"

#include <cstdlib>

#include "core/check.h"

namespace cae::cpu {
namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables = {&kPortableKernels};
#if defined(CAE_X86_KERNELS)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&kAvx2Kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
      tables.push_back(&kAvx512Kernels);
    }
  }
#endif
  return tables;
}

const KernelTable* select_table() {
  const std::vector<const KernelTable*> tables = available_tables();
  const char* forced = std::getenv("CAE_CPU_ISA");
  if (forced == nullptr || *forced == '\0') {
    return tables.back();
  }
  std::string names;
  for (const KernelTable* table : tables) {
    if (std::string(forced) == table->name) {
      return table;
    }
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument(
      concat("CAE_CPU_ISA must be one of the instruction sets of this machine (", names,
             "), got \"", forced, "\""));
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_tables()) {
    names.emplace_back(table->name);
  }
  return names;
}

const KernelTable& kernels() {
  static const KernelTable* const table = select_table();
  return *table;
}

}  // namespace cae::cpu
