// SPDX-License-Identifier: Apache-2.0
// Bindings of graphs in a row.
#include "bindings/bind.h"
#include "bindings/device_array.h"
#include "bindings/integers.h"
#include "bindings/without_gil.h"
#include "cuda/graph_sequence.h"
#include "engine/gpu_search.h"

namespace py = pybind11;

namespace {

using cae::bindings::read_integer;
using cae::bindings::read_stream;
using cae::bindings::without_gil;
using cae::gpu::GpuEngine;
using cae::gpu::GpuSearch;
using cae::gpu::GraphSequence;
using cae::gpu::Stream;

/// The address of a graph: what torch's CUDAGraph.raw_cuda_graph() returns.
void* read_graph(const py::object& graph) {
  const auto address = read_integer<int64_t>(graph, "graph");
  CAE_CHECK(address != 0, "graph must not be null");
  return reinterpret_cast<void*>(static_cast<uintptr_t>(address));  // NOLINT(*-no-int-to-ptr)
}

constexpr const char* kDoc =
    R"(Captured graphs, one behind the other in one graph, some only while a search has work left.

Graphs are given as addresses, and are copied; the memory that they were captured with must stay.
launch() queues all of them; after the first launch nothing can be appended.)";

}  // namespace

void bind_graph_sequence(py::module_& m) {
  py::class_<GraphSequence>(m, "GraphSequence", py::module_local(), kDoc)
      .def(py::init([](const GpuEngine& engine) {
             return std::make_unique<GraphSequence>(engine.device());
           }),
           py::arg("engine"))
      .def(
          "append", [](GraphSequence& s, const py::object& graph) { s.append(read_graph(graph)); },
          py::arg("graph"), "Appends a graph that always runs.")
      .def(
          "append_if",
          [](GraphSequence& s, const py::object& graph, const std::shared_ptr<GpuSearch>& search) {
            s.append_if(read_graph(graph), search->flips().remaining);
          },
          py::keep_alive<1, 3>(), py::arg("graph"), py::arg("search"),
          "Appends a graph that runs where the search has points left when its turn comes.")
      .def(
          "launch",
          [](GraphSequence& s, const py::object& stream) {
            const Stream queue = read_stream(stream);
            without_gil([&] { s.launch(queue); });
          },
          py::kw_only(), py::arg("stream") = 0, "Queues all graphs.");
}
