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
using cae::gpu::SizedGraph;
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
          "append_one_of",
          [](GraphSequence& s, const py::sequence& graphs,
             const std::shared_ptr<GpuSearch>& search) {
            std::vector<SizedGraph> sized;
            for (const py::handle& item : graphs) {
              const auto pair = py::cast<py::tuple>(item);
              CAE_CHECK(pair.size() == 2, "graphs must be pairs of a size and a graph");
              sized.push_back({read_graph(pair[1]), read_integer<int32_t>(pair[0], "size")});
            }
            s.append_one_of(sized, search->flips().remaining);
          },
          py::keep_alive<1, 3>(), py::arg("graphs"), py::arg("search"),
          "Appends (size, graph), largest first: the last that is for as many points as the search "
          "has left\nwhen its turn comes runs, none where it has none left.")
      .def(
          "launch",
          [](GraphSequence& s, const py::object& stream) {
            const Stream queue = read_stream(stream);
            without_gil([&] { s.launch(queue); });
          },
          py::kw_only(), py::arg("stream") = 0, "Queues all graphs.");
}
