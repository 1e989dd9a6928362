// SPDX-License-Identifier: Apache-2.0
// Bindings of the search on the device.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/device_array.h"
#include "bindings/dlpack_view.h"
#include "bindings/flip_method.h"
#include "bindings/integers.h"
#include "bindings/without_gil.h"
#include "engine/gpu_search.h"

namespace py = pybind11;

namespace {

using cae::bindings::DeviceArgument;
using cae::bindings::DeviceArray;
using cae::bindings::FloatArray;
using cae::bindings::IndexArray;
using cae::bindings::kDlFloat;
using cae::bindings::kDlInt;
using cae::bindings::read_integer;
using cae::bindings::read_method;
using cae::bindings::read_stream;
using cae::bindings::without_gil;
using cae::gpu::DeviceBank;
using cae::gpu::GpuEngine;
using cae::gpu::GpuSearch;
using cae::gpu::SearchPlan;
using cae::gpu::Stream;
using cae::search::FlipState;

using Lock = std::lock_guard<std::mutex>;

std::shared_ptr<DeviceBank> make_bank(const GpuEngine& engine, const py::object& codes,
                                      const py::object& classes) {
  FloatArray code_array(codes, "codes");
  IndexArray class_array(classes, "classes");
  cae::check_shape(code_array.shape(), "codes", {"R", engine.config().code_dim});
  cae::check_shape(class_array.shape(), "classes", {code_array.shape()[0]});
  const auto code_view = code_array.view();
  const auto class_view = class_array.view();
  CAE_CHECK(code_view.dim(0) <= INT32_MAX, "codes has too many rows");
  std::shared_ptr<DeviceBank> bank;
  without_gil([&] {
    bank = std::make_shared<DeviceBank>(engine.device(), code_view.data, class_view.data,
                                        code_view.dim(0), code_view.dim(1));
  });
  return bank;
}

std::shared_ptr<GpuSearch> make_search(const std::shared_ptr<GpuEngine>& engine,
                                       const std::shared_ptr<DeviceBank>& bank, int32_t images,
                                       int32_t num_classes, int32_t grid, int32_t coarse,
                                       int32_t depth, double min_probability,
                                       const py::object& coarse_batch, const std::string& method,
                                       int32_t exemplars, int32_t vertices, bool against_image,
                                       bool elsewhere) {
  SearchPlan plan;
  plan.rules = {num_classes,
                grid,
                coarse,
                depth,
                min_probability,
                coarse_batch.is_none() ? cae::search::kWholeScan
                                       : read_integer<int32_t>(coarse_batch, "coarse_batch"),
                read_method(method)};
  plan.images = images;
  plan.vertices = vertices;
  plan.exemplars = exemplars;
  plan.against_image = against_image;
  plan.elsewhere = elsewhere;
  std::shared_ptr<GpuSearch> search;
  without_gil([&] { search = std::make_shared<GpuSearch>(engine, plan, bank); });
  return search;
}

/// A view of what the search holds.
template <class T>
DeviceArray view_of(const std::shared_ptr<GpuSearch>& search, T* data, std::vector<int64_t> shape) {
  return {search, data, std::move(shape), std::is_same_v<T, float> ? kDlFloat : kDlInt,
          search->engine().device()};
}

std::vector<int64_t> image_shape(const GpuSearch& search, int64_t count) {
  const cae::NetworkConfig& config = search.engine().config();
  return {count, config.in_channels, config.image_size, config.image_size};
}

/// Copies an argument to where the search looks for it: from NumPy without memory in between.
void copy_in(const GpuSearch& search, const py::object& value, const char* name, int code,
             const std::vector<int64_t>& shape, void* target, Stream queue) {
  int64_t bytes = 4;
  for (const int64_t size : shape) {
    bytes *= size;
  }
  const auto check = [&](const std::vector<int64_t>& got) {
    CAE_CHECK(got == shape, name, " must be ", cae::shape_string(shape), ", got ",
              cae::shape_string(got));
  };
  const cae::gpu::DeviceGuard guard(search.engine().device());
  if (!py::isinstance<py::array>(value)) {
    const DeviceArgument argument(value, name, code, search.engine().device(), queue);
    check(argument.shape());
    cae::gpu::copy_on_device(target, argument.floats(), static_cast<size_t>(bytes), queue);
    return;
  }
  const auto upload = [&](auto host) {
    check(host.shape());
    const auto view = host.view();
    without_gil([&] {
      cae::gpu::copy_to_device(target, view.data, static_cast<size_t>(bytes), queue);
      cae::gpu::synchronize(queue);  // the host's memory may go
    });
  };
  if (code == kDlFloat) {
    upload(FloatArray(value, name));
  } else {
    upload(IndexArray(value, name));
  }
}

void set_inputs(GpuSearch& search, const py::object& images, const py::object& wanted,
                const py::object& reachable, const py::object& left_out, const py::object& paths,
                const py::object& stream) {
  const Stream queue = read_stream(stream);
  const int64_t n = search.plan().images;
  copy_in(search, images, "images", kDlFloat, image_shape(search, n), search.images(), queue);
  copy_in(search, wanted, "wanted", kDlInt, {n}, search.wanted(), queue);
  copy_in(search, reachable, "reachable", kDlInt, {search.plan().rules.num_classes},
          search.reachable(), queue);
  copy_in(search, left_out, "left_out", kDlInt, {n}, search.left_out(), queue);
  if (!paths.is_none()) {
    copy_in(search, paths, "paths", kDlFloat,
            {n, search.plan().vertices, search.engine().config().code_dim}, search.paths(), queue);
  }
}

void begin(GpuSearch& search, const py::object& logits, bool given, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const DeviceArgument argument(logits, "logits", kDlFloat, search.engine().device(), queue);
  cae::check_shape(argument.shape(), "logits",
                   {search.plan().images, search.plan().rules.num_classes});
  without_gil([&] {
    const Lock lock(search.engine().turn());
    search.begin(argument.floats(), given, queue);
  });
}

DeviceArray decode(const std::shared_ptr<GpuSearch>& search, int32_t round,
                   const py::object& stream) {
  const Stream queue = read_stream(stream);
  CAE_CHECK(round >= 0 && round < search->rounds(), "round must be in 0..", search->rounds() - 1,
            ", got ", round);
  without_gil([&] {
    const Lock lock(search->engine().turn());
    search->decode(round, queue);
  });
  return view_of(search, search->points(), image_shape(*search, search->round_points(round)));
}

/// Class codes, images they are of, and where pictures and their finiteness go.
py::tuple place(const std::shared_ptr<GpuSearch>& search, int32_t round, const py::object& stream) {
  const Stream queue = read_stream(stream);
  CAE_CHECK(round >= 0 && round < search->rounds(), "round must be in 0..", search->rounds() - 1,
            ", got ", round);
  without_gil([&] { search->place(round, queue); });
  const int64_t points = search->round_points(round);
  return py::make_tuple(view_of(search, const_cast<float*>(search->point_codes()),
                                {points, search->engine().config().code_dim}),
                        view_of(search, search->flips().image_index, {points}),
                        view_of(search, search->points(), image_shape(*search, points)),
                        view_of(search, search->finite(), {points}));
}

void step(GpuSearch& search, int32_t round, const py::object& logits, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const DeviceArgument argument(logits, "logits", kDlFloat, search.engine().device(), queue);
  cae::check_shape(argument.shape(), "logits",
                   {search.round_points(round), search.plan().rules.num_classes});
  without_gil([&] { search.step(argument.floats(), false, queue); });
}

/// Waits for the stream: how many images still have points to look at.
int32_t remaining(GpuSearch& search, const py::object& stream) {
  const Stream queue = read_stream(stream);
  int32_t count = 0;
  without_gil([&] {
    const cae::gpu::DeviceGuard guard(search.engine().device());
    cae::gpu::copy_to_host(&count, search.flips().remaining, sizeof(count), queue);
    cae::gpu::synchronize(queue);
  });
  return count;
}

py::dict result(const std::shared_ptr<GpuSearch>& search, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const int64_t n = search->plan().images;
  const int64_t classes = search->plan().rules.num_classes;
  const cae::cuda::FlipBuffers& flips = search->flips();
  std::vector<FlipState> states(static_cast<size_t>(n));
  without_gil([&] {
    const cae::gpu::DeviceGuard guard(search->engine().device());
    cae::gpu::copy_to_host(states.data(), flips.states, states.size() * sizeof(FlipState), queue);
    cae::gpu::synchronize(queue);
  });
  py::dict out;
  const auto field = [&](const char* name, auto&& read) {
    py::array_t<int32_t> values(static_cast<py::ssize_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      values.mutable_at(i) = read(states[static_cast<size_t>(i)]);
    }
    out[name] = values;
  };
  field("status", [](const FlipState& s) { return static_cast<int32_t>(s.status); });
  field("source_class", [](const FlipState& s) { return s.source_class; });
  field("target_class", [](const FlipState& s) { return s.target_class; });
  field("step", [](const FlipState& s) { return s.reported_step; });
  field("lo", [](const FlipState& s) { return s.lo; });
  field("hi", [](const FlipState& s) { return s.hi; });
  field("reached_class", [](const FlipState& s) { return s.reached_class; });
  field("evaluations", [](const FlipState& s) { return s.evaluations; });
  const auto host = [&](const char* name, auto* data, std::vector<int64_t> shape) {
    out[name] = view_of(search, data, std::move(shape)).to_numpy(queue);
  };
  host("path_count", flips.path_count, {n});
  host("path_step", flips.path_step, {n, flips.max_points});
  host("path_logits", flips.path_logits, {n, flips.max_points, classes});
  host("logits_counterfactual", flips.logits_counterfactual, {n, classes});
  host("exemplars", search->exemplars(), {n, search->plan().exemplars});
  host("class_code", search->class_codes(), {n, search->engine().config().code_dim});
  if (search->missing() != nullptr) {
    host("missing", search->missing(), {n});
  }
  const int64_t size = search->engine().config().image_size;
  out["counterfactual"] = view_of(search, search->counterfactual(), image_shape(*search, n));
  out["reconstruction"] = view_of(search, search->reconstruction(), image_shape(*search, n));
  out["difference"] = view_of(search, search->difference(), image_shape(*search, n));
  out["saliency"] = view_of(search, search->saliency(), {n, size, size});
  return out;
}

constexpr const char* kSearchDoc =
    R"(The whole explanation of a fixed number of images on a GPU; only the classifier is the caller's.

    search.set_inputs(images, wanted, reachable, left_out, paths)
    search.begin(classify(search.images))
    for i in range(search.rounds):
        search.step(i, classify(search.decode(i)))
    search.finish()
    found = search.result()

With logits in device memory begin(), decode(), step() and finish() only queue work, always the same,
and may be captured in a graph. What is found equals FlipSearch's.)";

}  // namespace

void bind_gpu_search(py::module_& m) {
  py::class_<DeviceBank, std::shared_ptr<DeviceBank>>(
      m, "DeviceBank", py::module_local(),
      "Class codes [R, D] float32 and classes [R] int32 (negative: not to be used) on a device.")
      .def(py::init(&make_bank), py::arg("engine"), py::arg("codes"), py::arg("classes"));
  py::class_<GpuSearch, std::shared_ptr<GpuSearch>>(m, "GpuSearch", py::module_local(), kSearchDoc)
      .def(py::init(&make_search), py::arg("engine"), py::arg("bank"), py::kw_only(),
           py::arg("images"), py::arg("num_classes"), py::arg("grid"), py::arg("coarse") = 4,
           py::arg("depth") = 1, py::arg("min_probability") = 0.0,
           py::arg("coarse_batch") = py::none(), py::arg("method") = "bisection",
           py::arg("exemplars") = 1, py::arg("vertices") = 2, py::arg("against_image") = false,
           py::arg("elsewhere") = false,
           "Plans a search of `images` images; bank may be None where paths are given. "
           "`elsewhere`:\n"
           "the caller encodes into class_codes before begin(), and decodes what place() names.")
      .def_property_readonly("rounds", &GpuSearch::rounds)
      .def_property_readonly("slots", &GpuSearch::slots)
      .def_property_readonly("images",
                             [](const std::shared_ptr<GpuSearch>& s) {
                               return view_of(s, s->images(), image_shape(*s, s->plan().images));
                             })
      .def_property_readonly("class_codes",
                             [](const std::shared_ptr<GpuSearch>& s) {
                               return view_of(s, s->class_codes(),
                                              {s->plan().images, s->engine().config().code_dim});
                             })
      .def("set_inputs", &set_inputs, py::arg("images"), py::arg("wanted"), py::arg("reachable"),
           py::arg("left_out"), py::arg("paths") = py::none(), py::kw_only(), py::arg("stream") = 0,
           "Copies images [N, C, S, S], wanted [N] int32 (class, -1 any, -2 runner-up), reachable\n"
           "[K] int32, left_out [N] int32 and paths [N, V, D], whose first vertex is replaced.")
      .def("begin", &begin, py::arg("logits"), py::arg("given") = false, py::kw_only(),
           py::arg("stream") = 0, "Encodes and starts, from the images' logits [N, K] float32.")
      .def("decode", &decode, py::arg("round"), py::kw_only(), py::arg("stream") = 0,
           "Images [M, C, S, S] of a round, in the search's own memory.")
      .def("place", &place, py::arg("round"), py::kw_only(), py::arg("stream") = 0,
           "Class codes [M, D] and image_index [M] of a round's points, and where the caller "
           "writes\n"
           "their images [M, C, S, S] and whether all pixels are finite, int32 [M].")
      .def("step", &step, py::arg("round"), py::arg("logits"), py::kw_only(), py::arg("stream") = 0,
           "Takes their logits [M, K] float32.")
      .def(
          "finish", [](GpuSearch& s, const py::object& t) { s.finish(read_stream(t)); },
          py::kw_only(), py::arg("stream") = 0, "Differences and saliency maps.")
      .def("remaining", &remaining, py::kw_only(), py::arg("stream") = 0,
           "Images that still have points to look at; waits for the stream.")
      .def("result", &result, py::kw_only(), py::arg("stream") = 0,
           "Outcomes as NumPy arrays and images as views of device memory; waits for the stream.");
}
