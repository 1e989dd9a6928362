// SPDX-License-Identifier: Apache-2.0
// Bindings of the stand-alone operations.
#include "bindings/bind.h"
#include "bindings/dlpack_view.h"
#include "bindings/integers.h"
#include "bindings/without_gil.h"
#include "ops/difference_saliency.h"
#include "ops/lerp_codes.h"
#include "ops/path_codes.h"

namespace py = pybind11;

namespace {

using namespace cae;            // the operations
using namespace cae::bindings;  // their arguments

py::array_t<float> lerp_codes_array(const py::object& start, const py::object& end,
                                    const py::object& t) {
  FloatArray start_array(start, "start");
  FloatArray end_array(end, "end");
  FloatArray t_array(t, "t");
  check_shape(start_array.shape(), "start", {"N", "D"});
  const std::vector<int64_t> shape = start_array.shape();
  check_shape(end_array.shape(), "end", {shape[0], shape[1]});
  check_shape(t_array.shape(), "t", {shape[0]});
  const auto start_view = start_array.view();
  const auto end_view = end_array.view();
  const auto t_view = t_array.view();
  const OutputArray<float> out(shape);
  without_gil([&] { lerp_codes(start_view, end_view, t_view, out.view()); });
  return out.array();
}

py::array_t<float> path_codes_array(const py::object& vertices, const py::object& image_index,
                                    const py::object& step, const py::object& grid) {
  const auto steps = read_integer<int64_t>(grid, "grid");
  FloatArray vertices_array(vertices, "vertices");
  IndexArray index_array(image_index, "image_index");
  IndexArray step_array(step, "step");
  check_shape(vertices_array.shape(), "vertices", {"N", "V", "D"});
  check_shape(index_array.shape(), "image_index", {"M"});
  check_shape(step_array.shape(), "step", {index_array.shape()[0]});
  const auto vertices_view = vertices_array.view();
  const auto index_view = index_array.view();
  const auto step_view = step_array.view();
  const OutputArray<float> out({index_view.dim(0), vertices_view.dim(2)});
  without_gil([&] { path_codes(vertices_view, index_view, step_view, steps, out.view()); });
  return out.array();
}

py::tuple difference_saliency_arrays(const py::object& a, const py::object& b) {
  FloatArray a_array(a, "a");
  FloatArray b_array(b, "b");
  check_shape(a_array.shape(), "a", {"N", "C", "H", "W"});
  const std::vector<int64_t> shape = a_array.shape();
  check_shape(b_array.shape(), "b", {shape[0], shape[1], shape[2], shape[3]});
  const auto a_view = a_array.view();
  const auto b_view = b_array.view();
  const OutputArray<float> difference(shape);
  const OutputArray<float> saliency({shape[0], shape[2], shape[3]});
  without_gil([&] { difference_saliency(a_view, b_view, difference.view(), saliency.view()); });
  return py::make_tuple(difference.array(), saliency.array());
}

}  // namespace

void bind_ops(py::module_& m) {
  m.def("lerp_codes", &lerp_codes_array, py::arg("start"), py::arg("end"), py::arg("t"));
  m.def("path_codes", &path_codes_array, py::arg("vertices"), py::arg("image_index"),
        py::arg("step"), py::arg("grid"));
  m.def("difference_saliency", &difference_saliency_arrays, py::arg("a"), py::arg("b"));
}
