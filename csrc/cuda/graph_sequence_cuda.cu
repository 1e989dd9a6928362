// SPDX-License-Identifier: Apache-2.0
// Graphs in a row by the CUDA runtime: child graphs, and IF or SWITCH nodes around those that may
// be left out.
#include <cuda_runtime.h>

#include <string>
#include <vector>

#include "core/check.h"
#include "cuda/graph_sequence.h"
#include "simt/cuda_check.cuh"
#include "simt/simt.h"

namespace cae::gpu {
namespace {

struct ConditionParams {
  const int32_t* number;
  cudaGraphConditionalHandle handle;
  int32_t sizes;
  int32_t most[kMostSizes];  // descending
};

/// An IF node runs for 1, of a SWITCH node the body of that number: none beyond the last.
KERNEL void __launch_bounds__(1) set_condition(const ConditionParams p) {
  const int32_t place = fitting_size(p.most, p.sizes, *p.number);
  cudaGraphSetConditional(p.handle,
                          p.sizes == 1 ? (place == 0 ? 1U : 0U) : static_cast<uint32_t>(place));
}

/// What a conditional body may hold besides conditionals, which no child graph may.
bool may_be_conditional(cudaGraphNodeType type) {
  return type == cudaGraphNodeTypeKernel || type == cudaGraphNodeTypeEmpty ||
         type == cudaGraphNodeTypeGraph || type == cudaGraphNodeTypeMemset ||
         type == cudaGraphNodeTypeMemcpy;
}

void check_nodes(cudaGraph_t graph) {  // NOLINT(misc-no-recursion): child graphs of child graphs
  size_t count = 0;
  CAE_CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  CAE_CUDA_CHECK(cudaGraphGetNodes(graph, nodes.data(), &count));
  for (cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type{};
    CAE_CUDA_CHECK(cudaGraphNodeGetType(node, &type));
    if (type == cudaGraphNodeTypeGraph) {
      cudaGraph_t inner = nullptr;
      CAE_CUDA_CHECK(cudaGraphChildGraphNodeGetGraph(node, &inner));
      check_nodes(inner);
    }
    if (!may_be_conditional(type)) {
      throw std::runtime_error("a captured graph has a node of type " +
                               std::to_string(static_cast<int>(type)) +
                               ", which cannot be left out");
    }
  }
}

}  // namespace

struct GraphSequence::Nodes {
  int device = 0;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaGraphNode_t last = nullptr;

  void add(cudaGraph_t into, cudaGraphNodeParams& params, cudaGraphNode_t* node) const {
    const bool first = into != graph || last == nullptr;
    CAE_CUDA_CHECK(
        cudaGraphAddNode(node, into, first ? nullptr : &last, nullptr, first ? 0 : 1, &params));
  }
};

GraphSequence::GraphSequence(int device) : nodes_(std::make_unique<Nodes>()) {
  nodes_->device = device;
  const DeviceGuard guard(device);
  CAE_CUDA_CHECK(cudaGraphCreate(&nodes_->graph, 0));
}

GraphSequence::~GraphSequence() {
  if (nodes_->exec != nullptr) {
    cudaGraphExecDestroy(nodes_->exec);
  }
  cudaGraphDestroy(nodes_->graph);
}

void GraphSequence::append(void* graph) {
  const DeviceGuard guard(nodes_->device);
  cudaGraphNodeParams child{};
  child.type = cudaGraphNodeTypeGraph;
  child.graph.graph = static_cast<cudaGraph_t>(graph);
  cudaGraphNode_t node = nullptr;
  nodes_->add(nodes_->graph, child, &node);
  nodes_->last = node;
}

void GraphSequence::append_one_of(const std::vector<SizedGraph>& graphs, const int32_t* number) {
  const DeviceGuard guard(nodes_->device);
  CAE_CHECK(!graphs.empty() && graphs.size() <= kMostSizes, "graphs must be 1 to ", kMostSizes,
            ", got ", graphs.size());
  ConditionParams params{number, {}, static_cast<int32_t>(graphs.size()), {}};
  for (size_t i = 0; i < graphs.size(); ++i) {
    CAE_CHECK(graphs[i].most >= 1 && (i == 0 || graphs[i].most < graphs[i - 1].most),
              "sizes of graphs must descend, got ", graphs[i].most);
    check_nodes(static_cast<cudaGraph_t>(graphs[i].graph));
    params.most[i] = graphs[i].most;
  }
  CAE_CUDA_CHECK(cudaGraphConditionalHandleCreate(&params.handle, nodes_->graph, 0,
                                                  cudaGraphCondAssignDefault));
  void* arguments[] = {&params};
  cudaGraphNodeParams kernel{};
  kernel.type = cudaGraphNodeTypeKernel;
  kernel.kernel.func = reinterpret_cast<void*>(&set_condition);
  kernel.kernel.gridDim = dim3(1);
  kernel.kernel.blockDim = dim3(1);
  kernel.kernel.kernelParams = arguments;
  cudaGraphNode_t asked = nullptr;
  nodes_->add(nodes_->graph, kernel, &asked);
  nodes_->last = asked;

  cudaGraphNodeParams choice{};
  choice.type = cudaGraphNodeTypeConditional;
  choice.conditional.handle = params.handle;
  choice.conditional.type = graphs.size() == 1 ? cudaGraphCondTypeIf : cudaGraphCondTypeSwitch;
  choice.conditional.size = static_cast<unsigned>(graphs.size());
  cudaGraphNode_t node = nullptr;
  nodes_->add(nodes_->graph, choice, &node);
  nodes_->last = node;

  for (size_t i = 0; i < graphs.size(); ++i) {
    cudaGraphNodeParams child{};
    child.type = cudaGraphNodeTypeGraph;
    child.graph.graph = static_cast<cudaGraph_t>(graphs[i].graph);
    cudaGraphNode_t inside = nullptr;
    nodes_->add(choice.conditional.phGraph_out[i], child, &inside);
  }
}

void GraphSequence::launch(Stream queue) {
  const DeviceGuard guard(nodes_->device);
  if (nodes_->exec == nullptr) {
    CAE_CUDA_CHECK(cudaGraphInstantiate(&nodes_->exec, nodes_->graph, 0));
  }
  CAE_CUDA_CHECK(cudaGraphLaunch(nodes_->exec, static_cast<cudaStream_t>(queue)));
}

}  // namespace cae::gpu
