// SPDX-License-Identifier: Apache-2.0
// Bindings of the engine and its sessions.
#include <memory>

#include "bindings/bind.h"
#include "bindings/dlpack_view.h"
#include "bindings/integers.h"
#include "bindings/network_arguments.h"
#include "bindings/without_gil.h"
#include "engine/engine.h"

namespace py = pybind11;

namespace {

using cae::DecodeSession;
using cae::Engine;
using cae::NetworkConfig;
using cae::bindings::FloatArray;
using cae::bindings::IndexArray;
using cae::bindings::OutputArray;
using cae::bindings::read_integer;
using cae::bindings::without_gil;

std::shared_ptr<Engine> make_engine(const py::dict& config, const py::dict& weights,
                                    const py::object& max_batch, bool exact) {
  const auto batch = read_integer<int64_t>(max_batch, "max_batch");
  CAE_CHECK(batch >= 1, "max_batch must be at least 1, got ", batch);
  cae::bindings::NetworkArguments network(config, weights);
  std::shared_ptr<Engine> engine;
  without_gil([&] {
    engine = std::make_shared<Engine>(network.config(), network.weights(), batch,
                                      exact ? cae::Arithmetic::kExact : cae::Arithmetic::kFast);
  });
  return engine;
}

py::tuple encode(Engine& engine, const py::object& images) {
  FloatArray array(images, "images");
  engine.check_images(array.shape());
  const auto view = array.view();
  const NetworkConfig& config = engine.config();
  const OutputArray<float> individual(
      {view.dim(0), config.code_channels(), config.code_size(), config.code_size()});
  const OutputArray<float> class_code({view.dim(0), config.code_dim});
  without_gil([&] { engine.encode(view, individual.view(), class_code.view()); });
  return py::make_tuple(individual.array(), class_code.array());
}

py::array_t<float> encode_class(Engine& engine, const py::object& images) {
  FloatArray array(images, "images");
  engine.check_images(array.shape());
  const auto view = array.view();
  const OutputArray<float> class_code({view.dim(0), engine.config().code_dim});
  without_gil([&] { engine.encode_class(view, class_code.view()); });
  return class_code.array();
}

OutputArray<float> make_images(const Engine& engine, int64_t count) {
  const NetworkConfig& config = engine.config();
  return OutputArray<float>(
      std::vector<int64_t>{count, config.in_channels, config.image_size, config.image_size});
}

py::array_t<float> decode(Engine& engine, const py::object& individual,
                          const py::object& class_code, const py::object& image_index) {
  FloatArray individual_array(individual, "individual");
  FloatArray code_array(class_code, "class_code");
  IndexArray index_array(image_index, "image_index");
  engine.check_individual(individual_array.shape());
  cae::check_shape(code_array.shape(), "class_code", {"M", engine.config().code_dim});
  cae::check_shape(index_array.shape(), "image_index", {code_array.shape()[0]});
  const auto individual_view = individual_array.view();
  const auto code_view = code_array.view();
  const auto index_view = index_array.view();
  const OutputArray<float> images = make_images(engine, code_view.dim(0));
  without_gil([&] { engine.decode(individual_view, code_view, index_view, images.view()); });
  return images.array();
}

std::shared_ptr<DecodeSession> make_session(const std::shared_ptr<Engine>& engine,
                                            const py::object& individual,
                                            const py::object& vertices, const py::object& grid) {
  const auto steps = read_integer<int64_t>(grid, "grid");
  FloatArray individual_array(individual, "individual");
  FloatArray vertices_array(vertices, "vertices");
  engine->check_individual(individual_array.shape());
  cae::check_shape(vertices_array.shape(), "vertices",
                   {individual_array.shape()[0], "V", engine->config().code_dim});
  const auto individual_view = individual_array.view();
  const auto vertices_view = vertices_array.view();
  std::shared_ptr<DecodeSession> session;
  without_gil([&] {
    session = std::make_shared<DecodeSession>(engine, individual_view, vertices_view, steps);
  });
  return session;
}

py::array_t<float> session_decode(DecodeSession& session, const py::object& image_index,
                                  const py::object& step) {
  IndexArray index_array(image_index, "image_index");
  IndexArray step_array(step, "step");
  cae::check_shape(index_array.shape(), "image_index", {"M"});
  cae::check_shape(step_array.shape(), "step", {index_array.shape()[0]});
  const auto index_view = index_array.view();
  const auto step_view = step_array.view();
  const OutputArray<float> images = make_images(session.engine(), index_view.dim(0));
  without_gil([&] { session.decode(index_view, step_view, images.view()); });
  return images.array();
}

constexpr const char* kEngineDoc =
    R"(Encoders and decoder of one model on the CPU.

Calls from several threads are served in turns. A result depends neither on the other images of the
call nor on max_batch nor on the number of threads, bit for bit. Array arguments: NumPy arrays,
anything with __dlpack__ in CPU memory, anything with __array_interface__; C-contiguous memory is
used in place, other layouts are copied. What is returned is NumPy.)";

constexpr const char* kInitDoc =
    R"(Plan the network and pack its weights (copied).

Args:
    config: CAEConfig.to_dict(); the fields that fix shapes are read, others ignored.
    weights: Canonical tensor name -> float32 array.
    max_batch: Images or path points in flight at once, at least 1; bounds the memory used.
    exact: Convolve by direct sums. Else by Winograd's filtering F(4x4, r x r) where that saves work.
        Both err by about 2e-6 of an image.

Raises:
    ValueError: A field is out of range, or tensors are missing, unknown or mis-shaped (all listed).
    MemoryError: The workspace does not fit.)";

constexpr const char* kEncodeDoc =
    R"(Split images into codes.

Args:
    images: [N, C, S, S] float32 in [-1, 1]; N may be 0. NaN stays in its image.

Returns:
    individual [N, 4w, S/4, S/4] and class_code [N, D], float32.

Raises:
    ValueError: Wrong shape, dtype or device.)";

constexpr const char* kEncodeClassDoc =
    R"(The class codes of encode() alone.

Args:
    images: [N, C, S, S] float32 in [-1, 1]; N may be 0.

Returns:
    class_code [N, D], float32.

Raises:
    ValueError: Wrong shape, dtype or device.)";

constexpr const char* kDecodeDoc =
    R"(Recombine codes to images.

Args:
    individual: Individual codes, [N, 4w, S/4, S/4] float32.
    class_code: Class codes, [M, D] float32.
    image_index: Individual code of each class code, [M] int32 in [0, N).

Returns:
    Images [M, C, S, S] float32 in [-1, 1].

Raises:
    ValueError: Wrong shape, dtype, device or index.)";

constexpr const char* kSessionDoc =
    R"(Prepare to decode many points of one path per image.

Does once what all points of an image share: the first residual convolution of the decoder.

Args:
    individual: Individual codes, [N, 4w, S/4, S/4] float32; copied.
    vertices: Polyline of class codes of each image, [N, V, D] float32, V >= 1; copied.
    grid: Steps of a path; a point is at t = step / grid by arc length. At least 1.

Returns:
    DecodeSession, which holds about two individual codes of memory per image.

Raises:
    ValueError: Wrong shape, dtype, device or grid.)";

constexpr const char* kSessionDecodeDoc =
    R"(Decode points of the paths.

Args:
    image_index: Image of each point, [M] int32 in [0, N).
    step: Position of each point, [M] int32 in [0, grid].

Returns:
    Images [M, C, S, S] float32, equal bit for bit to Engine.decode of the same codes.

Raises:
    ValueError: Wrong shape, dtype, index or step.)";

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<DecodeSession, std::shared_ptr<DecodeSession>>(
      m, "DecodeSession", "Path points of a fixed set of images; made by Engine.session.")
      .def("decode", &session_decode, py::arg("image_index"), py::arg("step"), kSessionDecodeDoc);
  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine", kEngineDoc)
      .def(py::init(&make_engine), py::arg("config"), py::arg("weights"), py::kw_only(),
           py::arg("max_batch") = 16, py::arg("exact") = false, kInitDoc)
      .def("encode", &encode, py::arg("images"), kEncodeDoc)
      .def("encode_class", &encode_class, py::arg("images"), kEncodeClassDoc)
      .def("decode", &decode, py::arg("individual"), py::arg("class_code"), py::arg("image_index"),
           kDecodeDoc)
      .def("session", &make_session, py::arg("individual"), py::arg("vertices"), py::arg("grid"),
           kSessionDoc);
}
