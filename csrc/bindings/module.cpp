// SPDX-License-Identifier: Apache-2.0
// The module cae_fast._C. Exceptions: std::invalid_argument becomes ValueError, std::bad_alloc
// MemoryError, std::runtime_error RuntimeError (pybind11's own translation).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "core/check.h"
#include "cpu/isa_cpu.h"
#include "cpu/parallel_cpu.h"

namespace py = pybind11;

namespace {

constexpr const char* kBuildConfigDoc =
    R"(How this extension was built.

Returns:
    dict with compiler, cxx_flags, build_type, cpu_isas (built in), cuda (bool), cuda_reason (why
    not; empty where built), cuda_compiler, cuda_archs, sanitize.)";

constexpr const char* kCpuIsaDoc =
    R"(Instruction set in use: the best of cpu_isas(), or what CAE_CPU_ISA names.

Raises:
    ValueError: CAE_CPU_ISA names none of cpu_isas().)";

constexpr const char* kSetNumThreadsDoc =
    R"(Set the number of threads of the CPU backend, for the whole process.

Until then it is the number of cores that the process may use (affinity, cgroup quota), at most the
environment variable OMP_NUM_THREADS, both read when the extension is imported.

Args:
    n: 1 .. 256.

Raises:
    TypeError: n is no integer; True and False are none.
    ValueError: n is outside that range.)";

py::dict build_config() {
  py::dict config;
  config["compiler"] = CAE_BUILD_COMPILER;
  config["cxx_flags"] = CAE_BUILD_FLAGS;
  config["build_type"] = CAE_BUILD_TYPE;
#if defined(CAE_X86_KERNELS)
  config["cpu_isas"] = py::make_tuple("portable", "avx2", "avx512");
#else
  config["cpu_isas"] = py::make_tuple("portable");
#endif
  config["cuda"] = static_cast<bool>(CAE_WITH_CUDA);
  config["cuda_reason"] = CAE_CUDA_REASON;
  config["cuda_compiler"] = CAE_CUDA_COMPILER;
  config["cuda_archs"] = CAE_CUDA_ARCHS;
  config["sanitize"] = CAE_BUILD_SANITIZE;
  return config;
}

std::string cpu_isa() { return cae::cpu::kernels().name; }

/// Any Python integer: one that no C integer holds is out of range like the others.
void set_num_threads(const py::object& n) {
  const auto number =
      py::reinterpret_steal<py::object>(PyBool_Check(n.ptr()) ? nullptr : PyNumber_Index(n.ptr()));
  if (!number) {
    PyErr_Clear();
    throw py::type_error(cae::concat("num_threads must be an integer in 1..", cae::cpu::kMaxThreads,
                                     ", got ", std::string(py::str(py::repr(n)))));
  }
  int overflow = 0;
  const long threads = PyLong_AsLongAndOverflow(number.ptr(), &overflow);
  const bool fits = overflow == 0 && threads >= 0 && threads <= 2 * cae::cpu::kMaxThreads;
  CAE_CHECK(fits, "num_threads must be in 1..", cae::cpu::kMaxThreads, ", got ",
            std::string(py::str(number)));
  cae::cpu::set_num_threads(static_cast<int>(threads));
}

/// Leaves no initialisation to a later call, during which another thread might fork.
void prepare() {
  cae::cpu::prepare_pool();
  try {
    cae::cpu::kernels();
  } catch (const std::invalid_argument&) {  // NOLINT(bugprone-empty-catch)
    // A CAE_CPU_ISA that this machine lacks: the calls that need the kernels report it.
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  prepare();
  m.doc() = "Native engine of cae_fast. Import it through cae_fast._backend.";
  m.def("build_config", &build_config, kBuildConfigDoc);
  m.def("cpu_isa", &cpu_isa, kCpuIsaDoc);
  m.def("cpu_isas", &cae::cpu::available_isas,
        "Instruction sets built in that this machine runs, slowest first.");
  m.def("set_num_threads", &set_num_threads, py::arg("n"), kSetNumThreadsDoc);
  m.def("get_num_threads", &cae::cpu::get_num_threads,
        "Threads of the CPU backend; see set_num_threads() for the default.");
  bind_ops(m);
  bind_engine(m);
  bind_search(m);
  bind_cuda(m);
#if CAE_WITH_CUDA
  bind_device_array(m);
  bind_gpu(m);
  bind_gpu_search(m);
  bind_graph_sequence(m);
#endif
}
