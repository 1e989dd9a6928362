// SPDX-License-Identifier: Apache-2.0
// Risk 5: cluster launches, programmatic dependent launches and child graphs inside the bodies of
// conditional nodes; what a turn of a WHILE costs. Compiled as a library too (RISK_LIBRARY), it
// puts a graph that another run-time captured into such a body.
#include "risk.cuh"

namespace {

struct AddParams {
  int* value;
  int overlap;
};

struct TurnParams {
  int* left;
  cudaGraphConditionalHandle handle;
};

KERNEL void add_one(const AddParams p) {
  if (p.overlap != 0) {
    dev::pdl_wait();
    dev::pdl_launch();
  }
  if (dev::tid() == 0 && dev::bx() == 0) {
    *p.value += 1;
  }
}

KERNEL void add_cluster(const AddParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  dev::cluster_sync();
  if (dev::tid() == 0 && dev::bx() == 3 && dev::ctarank() == 3) {
    *p.value += 1;
  }
#endif
}

KERNEL void next_turn(const TurnParams p) {
  const int left = *p.left - 1;
  *p.left = left;
  cudaGraphSetConditional(p.handle, left > 0 ? 1u : 0u);
}

enum Body { kPlain = 0, kCluster = 1, kOverlap = 2, kChild = 3 };

constexpr int kTurns = 64;
constexpr int kKernels = 4;  // of a body

cudaError_t queue_body(Body body, int* value, cudaStream_t stream) {
  for (int i = 0; i < kKernels; ++i) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(body == kCluster ? 4 : 1);
    config.blockDim = dim3(32);
    config.stream = stream;
    cudaLaunchAttribute attribute = {};
    config.attrs = &attribute;
    if (body == kCluster) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = 4;
      attribute.val.clusterDim.y = 1;
      attribute.val.clusterDim.z = 1;
      config.numAttrs = 1;
    } else if (body == kOverlap) {
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
      config.numAttrs = i > 0 ? 1 : 0;
    }
    const AddParams p{value, body == kOverlap ? 1 : 0};
    const cudaError_t error =
        cudaLaunchKernelEx(&config, body == kCluster ? add_cluster : add_one, p);
    if (error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

#define RISK_TRY(call)                \
  do {                                \
    const cudaError_t tried = (call); \
    if (tried != cudaSuccess) {       \
      *step = #call;                  \
      return tried;                   \
    }                                 \
  } while (0)

/// A WHILE node whose body is `inner` (a child graph) or the kernels of `body`, then next_turn.
cudaError_t build_while(Body body, cudaGraph_t inner, int* value, int* left, cudaGraphExec_t* exec,
                        const char** step) {
  cudaGraph_t graph = nullptr;
  RISK_TRY(cudaGraphCreate(&graph, 0));
  cudaGraphConditionalHandle handle;
  RISK_TRY(cudaGraphConditionalHandleCreate(&handle, graph, 1, cudaGraphCondAssignDefault));
  cudaGraphNodeParams params = {};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = handle;
  params.conditional.type = cudaGraphCondTypeWhile;
  params.conditional.size = 1;
  cudaGraphNode_t node;
  RISK_TRY(cudaGraphAddNode(&node, graph, nullptr, nullptr, 0, &params));
  cudaGraph_t inside = params.conditional.phGraph_out[0];
  cudaStream_t stream;
  RISK_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaGraphNode_t child = nullptr;
  if (inner != nullptr) {
    RISK_TRY(cudaGraphAddChildGraphNode(&child, inside, nullptr, 0, inner));
  }
  RISK_TRY(cudaStreamBeginCaptureToGraph(stream, inside, inner != nullptr ? &child : nullptr,
                                         nullptr, inner != nullptr ? 1 : 0,
                                         cudaStreamCaptureModeThreadLocal));
  if (inner == nullptr) {
    RISK_TRY(queue_body(body, value, stream));
  }
  next_turn<<<1, 1, 0, stream>>>(TurnParams{left, handle});
  RISK_TRY(cudaGetLastError());
  RISK_TRY(cudaStreamEndCapture(stream, nullptr));
  RISK_TRY(cudaGraphInstantiate(exec, graph, 0));
  RISK_TRY(cudaStreamDestroy(stream));
  return cudaSuccess;
}

/// Runs a WHILE of kTurns turns; microseconds a turn, or what was refused.
[[maybe_unused]] cudaError_t run_while(cudaGraphExec_t exec, int* left, double* micros,
                                       const char** step) {
  cudaEvent_t start;
  cudaEvent_t stop;
  RISK_TRY(cudaEventCreate(&start));
  RISK_TRY(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 9; ++i) {
    const int turns = kTurns;
    RISK_TRY(cudaMemcpy(left, &turns, sizeof turns, cudaMemcpyHostToDevice));
    RISK_TRY(cudaEventRecord(start));
    RISK_TRY(cudaGraphLaunch(exec, nullptr));
    RISK_TRY(cudaEventRecord(stop));
    RISK_TRY(cudaEventSynchronize(stop));
    float taken = 0;
    RISK_TRY(cudaEventElapsedTime(&taken, start, stop));
    times.push_back(taken);
  }
  std::sort(times.begin(), times.end());
  *micros = times[times.size() / 2] * 1e3 / kTurns;
  return cudaSuccess;
}

/// The kernels of a body captured as a graph of their own, `repeats` times in a row.
[[maybe_unused]] cudaError_t capture(Body body, int repeats, int* value, cudaGraph_t* graph,
                                     const char** step) {
  cudaStream_t stream;
  RISK_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  RISK_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < repeats; ++i) {
    RISK_TRY(queue_body(body, value, stream));
  }
  RISK_TRY(cudaStreamEndCapture(stream, graph));
  RISK_TRY(cudaStreamDestroy(stream));
  return cudaSuccess;
}

}  // namespace

#ifdef RISK_LIBRARY

/// Runs `inner`, a cudaGraph_t of whichever run-time, `turns` times as the body of a WHILE node.
/// 0, or the error; `step` says at which call.
extern "C" int risk_run_child(void* inner, int turns, const char** step) {
  *step = "";
  int* left = nullptr;
  cudaGraphExec_t exec = nullptr;
  const auto run = [&]() -> cudaError_t {
    RISK_TRY(cudaMalloc(&left, sizeof(int)));
    RISK_TRY(cudaMemcpy(left, &turns, sizeof turns, cudaMemcpyHostToDevice));
    RISK_TRY(build_while(kChild, static_cast<cudaGraph_t>(inner), nullptr, left, &exec, step));
    RISK_TRY(cudaGraphLaunch(exec, nullptr));
    RISK_TRY(cudaDeviceSynchronize());
    return cudaSuccess;
  };
  return run();
}

#else

int main() {
  risk::device();
  risk::Report report("5 graphs");
  int* value = nullptr;
  int* left = nullptr;
  RISK_CHECK(cudaMalloc(&value, sizeof(int)));
  RISK_CHECK(cudaMalloc(&left, sizeof(int)));
  const char* names[] = {"plain", "cluster", "overlap", "child"};
  std::string refused;
  double turn[4] = {};
  for (const Body body : {kPlain, kCluster, kOverlap, kChild}) {
    const char* step = "";
    cudaGraph_t inner = nullptr;
    cudaGraphExec_t exec = nullptr;
    RISK_CHECK(cudaMemset(value, 0, sizeof(int)));
    cudaError_t error = body == kChild ? capture(kPlain, 1, value, &inner, &step) : cudaSuccess;
    if (error == cudaSuccess) {
      error = build_while(body, inner, value, left, &exec, &step);
    }
    if (error == cudaSuccess) {
      error = run_while(exec, left, &turn[body], &step);
    }
    int counted = 0;
    if (error == cudaSuccess) {
      error = cudaMemcpy(&counted, value, sizeof counted, cudaMemcpyDeviceToHost);
    }
    const bool right = error == cudaSuccess && counted == 9 * kTurns * kKernels;
    if (right) {
      report.number((std::string(names[body]) + " us a turn of WHILE").c_str(), turn[body]);
    } else {
      std::printf("%s in WHILE: %s at %s, counted %d\n", names[body], cudaGetErrorString(error),
                  step, counted);
      cudaGetLastError();
      refused += std::string(refused.empty() ? "" : ", ") + names[body];
    }
  }
  for (const Body body : {kPlain, kOverlap}) {
    const char* step = "";
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    RISK_CHECK(capture(body, kTurns, value, &graph, &step));
    RISK_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    const double ms = risk::milliseconds([&] { RISK_CHECK(cudaGraphLaunch(exec, nullptr)); });
    report.number((std::string(names[body]) + " us a kernel unrolled").c_str(),
                  ms * 1e3 / (kTurns * kKernels));
  }
  return report.finish(refused.empty(), refused.empty()
                                            ? "all kinds run inside WHILE bodies"
                                            : "refused or wrong inside WHILE bodies: " + refused);
}

#endif
