// SPDX-License-Identifier: Apache-2.0
// Bindings of the search on the device.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>

#include "bindings/bind.h"
#include "bindings/device_array.h"
#include "bindings/dlpack_view.h"
#include "bindings/integers.h"
#include "bindings/search_arguments.h"
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
using cae::bindings::make_bank;
using cae::bindings::make_search;
using cae::bindings::OutputArray;
using cae::bindings::read_integer;
using cae::bindings::read_stream;
using cae::bindings::without_gil;
using cae::cuda::ClassifierInput;
using cae::gpu::DeviceBank;
using cae::gpu::GpuSearch;
using cae::gpu::Stream;
using cae::search::FlipState;

using Lock = std::lock_guard<std::mutex>;

/// A view of what the search holds.
template <class T>
DeviceArray view_of(const std::shared_ptr<GpuSearch>& search, T* data, std::vector<int64_t> shape,
                    Stream queue) {
  return {search,
          data,
          std::move(shape),
          std::is_same_v<T, float> ? kDlFloat : kDlInt,
          search->engine().device(),
          queue};
}

std::vector<int64_t> image_shape(const GpuSearch& search, int64_t count) {
  const cae::NetworkConfig& config = search.engine().config();
  return {count, config.in_channels, config.image_size, config.image_size};
}

void check_sizes(const std::vector<int64_t>& got, const char* name,
                 const std::vector<int64_t>& wanted) {
  CAE_CHECK(got == wanted, name, " must be ", cae::shape_string(wanted), ", got ",
            cae::shape_string(got));
}

/// Copies images from memory of the device, or from NumPy without memory in between; `host` keeps
/// that until the caller has waited for the stream.
void send_images(const GpuSearch& search, const py::object& images, std::optional<FloatArray>& host,
                 Stream queue) {
  const std::vector<int64_t> shape = image_shape(search, search.plan().images);
  const auto bytes = static_cast<size_t>(shape[0] * search.engine().config().image_numel()) * 4;
  if (!py::isinstance<py::array>(images)) {
    const DeviceArgument argument(images, "images", kDlFloat, search.engine().device(), queue);
    check_sizes(argument.shape(), "images", shape);
    cae::gpu::copy_on_device(search.images(), argument.floats(), bytes, queue);
    return;
  }
  host.emplace(images, "images");
  check_sizes(host->shape(), "images", shape);
  const auto view = host->view();
  without_gil([&] { cae::gpu::copy_to_device(search.images(), view.data, bytes, queue); });
}

/// All but the images go to the device as one copy, and there is one wait.
void set_inputs(GpuSearch& search, const py::object& images, const py::object& wanted,
                const py::object& reachable, const py::object& left_out, const py::object& paths,
                const py::object& stream) {
  const Stream queue = read_stream(stream);
  const int64_t n = search.plan().images;
  search.set_queue(queue);
  const cae::gpu::DeviceGuard guard(search.engine().device());
  const bool host_paths = py::isinstance<py::array>(paths);
  const cae::gpu::MemoryRange target = search.settings(host_paths);
  std::vector<char> settings(target.bytes);
  const auto put = [&](auto host, const char* name, const void* place,
                       const std::vector<int64_t>& shape) {
    check_sizes(host.shape(), name, shape);
    const auto view = host.view();
    std::memcpy(settings.data() + (static_cast<const char*>(place) - target.data), view.data,
                static_cast<size_t>(view.numel()) * 4);
  };
  put(IndexArray(wanted, "wanted"), "wanted", search.wanted(), {n});
  put(IndexArray(reachable, "reachable"), "reachable", search.reachable(),
      {search.plan().rules.num_classes});
  put(IndexArray(left_out, "left_out"), "left_out", search.left_out(), {n});
  const std::vector<int64_t> path_shape = {n, search.plan().vertices,
                                           search.engine().config().code_dim};
  if (host_paths) {
    put(FloatArray(paths, "paths"), "paths", search.paths(), path_shape);
  } else if (!paths.is_none()) {
    const DeviceArgument argument(paths, "paths", kDlFloat, search.engine().device(), queue);
    check_sizes(argument.shape(), "paths", path_shape);
    const auto bytes = static_cast<size_t>(path_shape[0] * path_shape[1] * path_shape[2]) * 4;
    cae::gpu::copy_on_device(search.paths(), argument.floats(), bytes, queue);
  }
  std::optional<FloatArray> host_images;
  send_images(search, images, host_images, queue);
  without_gil([&] {
    cae::gpu::copy_to_device(target.data, settings.data(), target.bytes, queue);
    cae::gpu::synchronize(queue);  // the host's memory may go
  });
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

/// How many points of a round are meant: all, where `points` is None.
int32_t read_points(const GpuSearch& search, int32_t round, const py::object& points) {
  return points.is_none() ? search.round_points(round) : read_integer<int32_t>(points, "points");
}

DeviceArray decode(const std::shared_ptr<GpuSearch>& search, int32_t round,
                   const py::object& points, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const int32_t count = read_points(*search, round, points);
  search->set_queue(queue);
  without_gil([&] {
    const Lock lock(search->engine().turn());
    search->decode(round, count, queue);
  });
  const cae::cuda::ClassifierInput& form = search->plan().classifier;
  if (search->classifier_input() == nullptr) {
    return view_of(search, search->points(), image_shape(*search, count), queue);
  }
  const int64_t size = search->engine().config().image_size;
  std::vector<int64_t> shape = {count, form.channels, size, size};
  if (form.channels_last) {
    shape = {count, size, size, form.channels};
  }
  return {search, search->classifier_input(), std::move(shape), kDlFloat, search->engine().device(),
          queue,  form.half ? 16 : 32};
}

/// Class codes, images they are of, and where pictures and their finiteness go.
py::tuple place(const std::shared_ptr<GpuSearch>& search, int32_t round, const py::object& points,
                const py::object& stream) {
  const Stream queue = read_stream(stream);
  const int32_t count = read_points(*search, round, points);
  without_gil([&] { search->place(round, count, queue); });
  return py::make_tuple(view_of(search, const_cast<float*>(search->point_codes()),
                                {count, search->engine().config().code_dim}, queue),
                        view_of(search, search->flips().image_index, {count}, queue),
                        view_of(search, search->points(), image_shape(*search, count), queue),
                        view_of(search, search->finite(), {count}, queue));
}

void step(GpuSearch& search, int32_t round, const py::object& logits, const py::object& stream) {
  const Stream queue = read_stream(stream);
  const DeviceArgument argument(logits, "logits", kDlFloat, search.engine().device(), queue);
  search.round_points(round);  // is there such a round?
  CAE_CHECK(search.decoded() > 0, "decode() or place() the points before their logits are taken");
  cae::check_shape(argument.shape(), "logits", {search.decoded(), search.plan().rules.num_classes});
  without_gil([&] { search.step(round, argument.floats(), false, queue); });
}

/// Waits for the stream: how many points the next round needs.
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
  const cae::gpu::MemoryRange source = search->report();
  std::vector<char> report(source.bytes);
  without_gil([&] {
    const cae::gpu::DeviceGuard guard(search->engine().device());
    cae::gpu::copy_to_host(report.data(), source.data, source.bytes, queue);
    cae::gpu::synchronize(queue);
  });
  const auto place = [&](const void* data) {
    return report.data() + (static_cast<const char*>(data) - source.data);
  };
  std::vector<FlipState> states(static_cast<size_t>(n));
  std::memcpy(states.data(), place(flips.states), states.size() * sizeof(FlipState));
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
  const auto host = [&](const char* name, auto* data, const std::vector<int64_t>& shape) {
    const OutputArray<std::remove_pointer_t<decltype(data)>> values(shape);
    std::memcpy(values.view().data, place(data), static_cast<size_t>(values.view().numel()) * 4);
    out[name] = values.array();
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
  const auto there = [&](const char* name, float* data, std::vector<int64_t> shape) {
    out[name] = view_of(search, data, std::move(shape), queue);
  };
  there("counterfactual", search->counterfactual(), image_shape(*search, n));
  there("reconstruction", search->reconstruction(), image_shape(*search, n));
  there("difference", search->difference(), image_shape(*search, n));
  there("saliency", search->saliency(), {n, size, size});
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
      .def(
          py::init(&make_search), py::arg("engine"), py::arg("bank"), py::kw_only(),
          py::arg("images"), py::arg("num_classes"), py::arg("grid"), py::arg("coarse") = 4,
          py::arg("depth") = 1, py::arg("min_probability") = 0.0,
          py::arg("coarse_batch") = py::none(), py::arg("method") = "bisection",
          py::arg("exemplars") = 1, py::arg("reach") = 1.0, py::arg("vertices") = 2,
          py::arg("against_image") = false, py::arg("classifier_input") = py::none(),
          py::arg("packed") = false, py::arg("elsewhere") = false,
          "Plans a search of `images` images; bank may be None where paths are given. "
          "classifier_input:\n"
          "a dict of dtype, channels, channels_last, mean, std: what decode() makes of the points. "
          "packed:\n"
          "the points that a round needs are its first, so that others can be left away. "
          "elsewhere:\n"
          "the caller encodes into class_codes before begin(), and decodes what place() names.")
      .def_property_readonly("rounds", &GpuSearch::rounds)
      .def_property_readonly("slots", &GpuSearch::slots)
      .def_property_readonly("images",
                             [](const std::shared_ptr<GpuSearch>& s) {
                               return view_of(s, s->images(), image_shape(*s, s->plan().images),
                                              s->queue());
                             })
      .def_property_readonly(
          "points",
          [](const std::shared_ptr<GpuSearch>& s) {
            const int64_t slots = int64_t{s->plan().images} * s->slots();
            return view_of(s, s->points(), image_shape(*s, slots), s->queue());
          },
          "Images [N slots, C, S, S], the first of them those of the last round, whatever a "
          "classifier gets of them.")
      .def_property_readonly("class_codes",
                             [](const std::shared_ptr<GpuSearch>& s) {
                               return view_of(s, s->class_codes(),
                                              {s->plan().images, s->engine().config().code_dim},
                                              s->queue());
                             })
      .def("set_inputs", &set_inputs, py::arg("images"), py::arg("wanted"), py::arg("reachable"),
           py::arg("left_out"), py::arg("paths") = py::none(), py::kw_only(), py::arg("stream") = 0,
           "Copies images [N, C, S, S], wanted [N] int32 (class, -1 any, -2 runner-up), reachable\n"
           "[K] int32, left_out [N] int32 and paths [N, V, D], whose first vertex is replaced.")
      .def("begin", &begin, py::arg("logits"), py::arg("given") = false, py::kw_only(),
           py::arg("stream") = 0, "Encodes and starts, from the images' logits [N, K] float32.")
      .def("round_points", &GpuSearch::round_points, py::arg("round"),
           "Points that a round decodes at most.")
      .def("decode", &decode, py::arg("round"), py::arg("points") = py::none(), py::kw_only(),
           py::arg("stream") = 0,
           "Images [M, C, S, S] of a round, in the search's own memory; where a form for the "
           "classifier\n"
           "was asked for, in that: [M, S, S, C] for channels_last. points: M, all where it is "
           "None; of\n"
           "a packed search as few as remaining() says.")
      .def("place", &place, py::arg("round"), py::arg("points") = py::none(), py::kw_only(),
           py::arg("stream") = 0,
           "Class codes [M, D] and image_index [M] of a round's points, and where the caller "
           "writes\n"
           "their images [M, C, S, S] and whether all pixels are finite, int32 [M].")
      .def("step", &step, py::arg("round"), py::arg("logits"), py::kw_only(), py::arg("stream") = 0,
           "Takes their logits [M, K] float32, M as last decoded or placed.")
      .def(
          "finish", [](GpuSearch& s, const py::object& t) { s.finish(read_stream(t)); },
          py::kw_only(), py::arg("stream") = 0, "Differences and saliency maps.")
      .def("remaining", &remaining, py::kw_only(), py::arg("stream") = 0,
           "Points that the next round needs; waits for the stream.")
      .def("result", &result, py::kw_only(), py::arg("stream") = 0,
           "Outcomes as NumPy arrays and images as views of device memory; waits for the stream.");
}
