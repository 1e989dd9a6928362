// SPDX-License-Identifier: Apache-2.0
// Bindings of the GPU engine: the same in the module for GPUs and in the emulator's. Classes are
// local to their module, for both may be loaded.
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/device_array.h"
#include "bindings/dlpack_view.h"
#include "bindings/integers.h"
#include "bindings/network_arguments.h"
#include "bindings/without_gil.h"
#include "engine/gpu_engine.h"

namespace py = pybind11;

namespace {

using cae::bindings::DeviceArgument;
using cae::bindings::DeviceArray;
using cae::bindings::IndexArray;
using cae::bindings::kDlFloat;
using cae::bindings::read_integer;
using cae::bindings::read_stream;
using cae::bindings::without_gil;
using cae::gpu::GpuEngine;
using cae::gpu::GpuSession;
using cae::gpu::Stream;

using Lock = std::lock_guard<std::mutex>;

std::shared_ptr<GpuEngine> make_engine(const py::dict& config, const py::dict& weights,
                                       const py::object& max_batch, const py::object& device) {
  const auto batch = read_integer<int64_t>(max_batch, "max_batch");
  CAE_CHECK(batch >= 1 && batch <= 65535, "max_batch must be in 1..65535, got ", batch);
  const auto index = read_integer<int32_t>(device, "device");
  CAE_CHECK(index >= 0, "device must not be negative, got ", index);
  cae::bindings::NetworkArguments network(config, weights);
  std::shared_ptr<GpuEngine> engine;
  without_gil([&] {
    engine = std::make_shared<GpuEngine>(network.config(), network.weights(), batch, index);
  });
  return engine;
}

void check_images(const GpuEngine& engine, const std::vector<int64_t>& shape) {
  const cae::NetworkConfig& config = engine.config();
  cae::check_shape(shape, "images",
                   {"N", config.in_channels, config.image_size, config.image_size});
}

void check_individual(const GpuEngine& engine, const std::vector<int64_t>& shape) {
  const cae::NetworkConfig& config = engine.config();
  cae::check_shape(shape, "individual",
                   {"N", config.code_channels(), config.code_size(), config.code_size()});
}

DeviceArray make_images(const GpuEngine& engine, int64_t count, Stream queue) {
  const cae::NetworkConfig& config = engine.config();
  return {{count, config.in_channels, config.image_size, config.image_size},
          kDlFloat,
          engine.device(),
          queue};
}

py::tuple encode(GpuEngine& engine, const py::object& images, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const DeviceArgument argument(images, "images", kDlFloat, engine.device(), queue);
  check_images(engine, argument.shape());
  const cae::NetworkConfig& config = engine.config();
  const int64_t count = argument.shape()[0];
  const DeviceArray individual(
      {count, config.code_channels(), config.code_size(), config.code_size()}, kDlFloat,
      engine.device(), queue);
  const DeviceArray class_code({count, config.code_dim}, kDlFloat, engine.device(), queue);
  without_gil([&] {
    const Lock lock(engine.turn());
    engine.encode(argument.floats(), count, nullptr, individual.floats(), class_code.floats(),
                  queue);
  });
  return py::make_tuple(individual, class_code);
}

DeviceArray encode_class(GpuEngine& engine, const py::object& images, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const DeviceArgument argument(images, "images", kDlFloat, engine.device(), queue);
  check_images(engine, argument.shape());
  const int64_t count = argument.shape()[0];
  const DeviceArray class_code({count, engine.config().code_dim}, kDlFloat, engine.device(), queue);
  without_gil([&] {
    const Lock lock(engine.turn());
    engine.encode_class(argument.floats(), count, class_code.floats(), queue);
  });
  return class_code;
}

DeviceArray decode(GpuEngine& engine, const py::object& individual, const py::object& class_code,
                   const py::object& image_index, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const DeviceArgument codes(class_code, "class_code", kDlFloat, engine.device(), queue);
  const DeviceArgument source(individual, "individual", kDlFloat, engine.device(), queue);
  IndexArray index(image_index, "image_index");
  check_individual(engine, source.shape());
  cae::check_shape(codes.shape(), "class_code", {"M", engine.config().code_dim});
  cae::check_shape(index.shape(), "image_index", {codes.shape()[0]});
  const auto index_view = index.view();
  const DeviceArray images = make_images(engine, codes.shape()[0], queue);
  without_gil([&] {
    const Lock lock(engine.turn());
    engine.decode_codes(source.floats(), source.shape()[0], codes.floats(), index_view.data,
                        codes.shape()[0], images.floats(), queue);
  });
  return images;
}

std::shared_ptr<GpuSession> make_session(const std::shared_ptr<GpuEngine>& engine,
                                         const py::object& individual, const py::object& vertices,
                                         const py::object& grid, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const auto steps = read_integer<int32_t>(grid, "grid");
  const DeviceArgument source(individual, "individual", kDlFloat, engine->device(), queue);
  const DeviceArgument lines(vertices, "vertices", kDlFloat, engine->device(), queue);
  check_individual(*engine, source.shape());
  cae::check_shape(lines.shape(), "vertices", {source.shape()[0], "V", engine->config().code_dim});
  CAE_CHECK(lines.shape()[1] <= INT32_MAX, "vertices has too many vertices");
  std::shared_ptr<GpuSession> session;
  without_gil([&] {
    const Lock lock(engine->turn());
    session =
        std::make_shared<GpuSession>(engine, source.floats(), source.shape()[0], lines.floats(),
                                     static_cast<int32_t>(lines.shape()[1]), steps, queue);
  });
  return session;
}

DeviceArray session_decode(GpuSession& session, const py::object& image_index,
                           const py::object& step, const py::object& stream) {
  const Stream queue = read_stream(stream);
  IndexArray index(image_index, "image_index");
  IndexArray steps(step, "step");
  cae::check_shape(index.shape(), "image_index", {"M"});
  cae::check_shape(steps.shape(), "step", {index.shape()[0]});
  const auto index_view = index.view();
  const auto step_view = steps.view();
  const DeviceArray images = make_images(session.engine(), index_view.dim(0), queue);
  without_gil([&] {
    const Lock lock(session.engine().turn());
    session.decode(index_view.data, step_view.data, index_view.dim(0), images.floats(), queue);
    cae::gpu::synchronize(queue);  // the indices go
  });
  return images;
}

constexpr const char* kEngineDoc =
    R"(Encoders and decoder of one model on a GPU: halves as operands, sums in float32.

Calls from several threads are served in turns; work is queued on `stream` (a cudaStream_t as an
integer, 0 the default stream), and results are ready when the stream is. A result depends neither on
the other images of the call nor on max_batch. Array arguments: DeviceArray, anything with __dlpack__
on the same GPU (float32, C-contiguous, aligned to 16 bytes), or host memory, which is copied.)";

constexpr const char* kInitDoc =
    R"(Pack the weights and copy them to the GPU.

Args:
    config: CAEConfig.to_dict(); the fields that fix shapes are read, others ignored.
    weights: Canonical tensor name -> float32 array.
    max_batch: Images or path points in flight at once, 1..65535; bounds the memory used.
    device: Index of the GPU.

Raises:
    ValueError: A field is out of range, or tensors are missing, unknown or mis-shaped (all listed).
    MemoryError: Weights or workspace do not fit.
    RuntimeError: There is no such GPU or it cannot run these kernels.)";

}  // namespace

void bind_gpu(py::module_& m) {
  py::class_<GpuSession, std::shared_ptr<GpuSession>>(
      m, "GpuSession", py::module_local(),
      "Path points of a fixed set of images; made by GpuEngine.session.")
      .def("decode", &session_decode, py::arg("image_index"), py::arg("step"), py::kw_only(),
           py::arg("stream") = 0,
           "Images [M, C, S, S] at t = step / grid of the paths of image_index, int32 [M].");
  py::class_<GpuEngine, std::shared_ptr<GpuEngine>>(m, "GpuEngine", py::module_local(), kEngineDoc)
      .def(py::init(&make_engine), py::arg("config"), py::arg("weights"), py::kw_only(),
           py::arg("max_batch") = 16, py::arg("device") = 0, kInitDoc)
      .def_property_readonly("device", &GpuEngine::device)
      .def_property_readonly("max_batch", &GpuEngine::max_batch)
      .def_property_readonly(
          "conv_path",
          [](const GpuEngine& engine) {
            const auto path = engine.network().decoder_blocks.front().params.path;
            return path == cae::cuda::ConvPath::kWgmma ? "wgmma" : "portable";
          },
          "What convolves: `portable`, or `wgmma` on compute capability 9.0 (CAE_GPU_CONV).")
      .def_property_readonly(
          "overlap", [](const GpuEngine& engine) { return engine.network().overlap; },
          "Whether kernels start while the one before them ends (CAE_GPU_OVERLAP).")
      .def("encode", &encode, py::arg("images"), py::kw_only(), py::arg("stream") = 0,
           "Images [N, C, S, S] in [-1, 1] -> individual [N, 4w, S/4, S/4], class_code [N, D].")
      .def("encode_class", &encode_class, py::arg("images"), py::kw_only(), py::arg("stream") = 0,
           "The class codes of encode() alone.")
      .def("decode", &decode, py::arg("individual"), py::arg("class_code"), py::arg("image_index"),
           py::kw_only(), py::arg("stream") = 0,
           "Images [M, C, S, S] of individual[image_index] with the class codes [M, D].")
      .def("session", &make_session, py::arg("individual"), py::arg("vertices"), py::arg("grid"),
           py::kw_only(), py::arg("stream") = 0,
           "Prepares paths: vertices [N, V, D] of the individual codes, grid steps each.");
}
