// SPDX-License-Identifier: Apache-2.0
// Python face of the flip search (search/flip_search_host.h).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "bindings/bind.h"
#include "bindings/flip_method.h"
#include "bindings/integers.h"
#include "core/check.h"
#include "search/flip_search_host.h"

namespace py = pybind11;

namespace {

using cae::bindings::read_integer;
using cae::search::FlipRules;
using cae::search::FlipSearch;
using cae::search::FlipState;

constexpr const char* kClassDoc =
    R"(Flip search along guided paths, for a batch of images stepped together.

Points of a path are the integer steps 0 .. grid (t = step / grid). A point hits when its top class
(highest logit, lowest index on ties) is the target class with softmax probability >=
min_probability; for the target -1 ("any") when its top class is another than the source class.

First the steps 0, grid / coarse, .., grid are asked for, coarse_batch of them per round, until one
hits: it brackets the flip. Then the bracket is narrowed to one step: it hits at hi, not at lo =
hi - 1. Where no coarse point hits, the one of highest target probability is reported (target -1: of
lowest source probability; the lowest step on ties). The outcome is the same for every coarse_batch.

Method "bisection" looks at 2^depth - 1 points of the next `depth` levels per round; the outcome is
the same for every depth. Method "margin" looks at one point per round, where the margins of the
ends put the flip, and spends at most one evaluation more than bisection at depth 1, on smooth paths
far fewer. Both find the same flip on a path that hits from some step on; on other paths each finds
a boundary inside the first coarse bracket, perhaps another one.

Typical use::

    search = FlipSearch(source_class, target_class, num_classes, grid=256)
    while not search.done:
        image_index, step = search.points()
        keep = search.update(classify(decode(image_index, step)))
    outcome = search.result()

An object is to be used from one thread at a time.)";

constexpr const char* kInitDoc =
    R"(Start the searches of N images.

Args:
    source_class: Top class of each image itself, integers [N] in [-1, num_classes); -1 for an image
        with non-finite logits (status non_finite, no points).
    target_class: Class to reach, integers [N] in [-1, num_classes); -1 for any other than the
        source class. Where it equals the source class: status already_target, no points.
    num_classes: K, at least 1.
    grid: Steps of a path, a power of two.
    coarse: Intervals of the coarse scan, a power of two, at most grid and 4096.
    depth: Bisection levels per round inside the bracket, 1 .. 4; 1 for the method "margin".
    min_probability: In [0, 1].
    coarse_batch: Points of the coarse scan per round, at least 1; None, or more than there are, is
        all of them.
    method: "bisection" or "margin".

Raises:
    ValueError: An argument has another shape, dtype or range.)";

constexpr const char* kPointsDoc =
    R"(Points to decode and classify in the next round.

Returns:
    image_index [M], step [M], int32: image by image in ascending steps; only unfinished images have
    points. Both are empty when done. The same points until update() is called.)";

constexpr const char* kUpdateDoc =
    R"(Take the logits of the points and advance every search.

Args:
    logits: [M, K] float32, row i for point i of points(). NaN or Inf in a row that is needed ends
        that image's search as non_finite; in a row that is not needed it has no influence.

Returns:
    keep [M], bool: True where a point becomes the reported one of its image, so that its decoded
    image is to be kept; at most one per image and round.

Raises:
    ValueError: logits has another shape or dtype.
    RuntimeError: The search is done, or points() was not called since the last update.)";

constexpr const char* kResultDoc =
    R"(Outcome of the searches.

Returns:
    dict of int32 arrays [N], -1 where undefined:
    status: 0 flipped, 1 not_flipped, 2 already_target, 3 reconstruction_flips, 4 non_finite;
    step: the reported point: hi of a flip, 0 where the reconstruction flips, the best coarse point
    where nothing does; undefined for already_target and non_finite;
    lo, hi: the bracket, of flipped images only;
    reached_class: top class at the reported point (already_target: the source class);
    evaluations: points asked for, needed or not; and rounds (int), the update() calls.

Raises:
    RuntimeError: The search is not done.)";

template <class Wide>
std::vector<int32_t> narrow(const py::array& array, const char* name) {
  const auto values = py::array_t<Wide, py::array::c_style | py::array::forcecast>(array);
  std::vector<int32_t> out;
  out.reserve(static_cast<size_t>(values.size()));
  for (py::ssize_t i = 0; i < values.size(); ++i) {
    const Wide value = values.at(i);
    const bool fits = value <= static_cast<Wide>(std::numeric_limits<int32_t>::max()) &&
                      (std::is_unsigned_v<Wide> ||
                       static_cast<int64_t>(value) >= std::numeric_limits<int32_t>::min());
    CAE_CHECK(fits, name, "[", i, "] is out of range: ", value);
    out.push_back(static_cast<int32_t>(value));
  }
  return out;
}

/// Copies an integer array [N]; any integer dtype but bool.
std::vector<int32_t> read_classes(const py::handle& value, const char* name) {
  const py::array array = py::array::ensure(value);
  if (!array) {
    PyErr_Clear();
    throw std::invalid_argument(std::string(name) + " must be an integer array [N]");
  }
  const char kind = array.dtype().kind();
  // An empty list arrives as float64; without elements the dtype says nothing.
  CAE_CHECK(kind == 'i' || kind == 'u' || array.size() == 0, name,
            " must be an integer array [N], got dtype ", std::string(py::str(array.dtype())));
  CAE_CHECK(array.ndim() == 1, name, " must be [N], got ", array.ndim(), " dimensions");
  return kind == 'u' ? narrow<uint64_t>(array, name) : narrow<int64_t>(array, name);
}

FlipSearch make_search(const py::object& source_class, const py::object& target_class,
                       const py::object& num_classes, const py::object& grid,
                       const py::object& coarse, const py::object& depth, double min_probability,
                       const py::object& coarse_batch, const std::string& method) {
  const FlipRules rules{read_integer<int32_t>(num_classes, "num_classes"),
                        read_integer<int32_t>(grid, "grid"),
                        read_integer<int32_t>(coarse, "coarse"),
                        read_integer<int32_t>(depth, "depth"),
                        min_probability,
                        coarse_batch.is_none()
                            ? cae::search::kWholeScan
                            : read_integer<int32_t>(coarse_batch, "coarse_batch"),
                        cae::bindings::read_method(method)};
  return {read_classes(source_class, "source_class"), read_classes(target_class, "target_class"),
          rules};
}

py::array_t<int32_t> to_array(const std::vector<int32_t>& values) {
  return py::array_t<int32_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple points(FlipSearch& search) {
  const cae::search::PathPoints& points = search.points();
  return py::make_tuple(to_array(points.image_index), to_array(points.step));
}

py::array_t<bool> update(FlipSearch& search, const py::array& logits) {
  CAE_CHECK(logits.dtype().equal(py::dtype::of<float>()), "logits must be float32, got ",
            std::string(py::str(logits.dtype())));
  CAE_CHECK(logits.ndim() == 2, "logits must be [M, K], got ", logits.ndim(), " dimensions");
  const auto rows = py::array_t<float, py::array::c_style | py::array::forcecast>(logits);
  const std::vector<uint8_t> keep = search.update(rows.data(), rows.shape(0), rows.shape(1));
  py::array_t<bool> out(static_cast<py::ssize_t>(keep.size()));
  for (size_t i = 0; i < keep.size(); ++i) {
    out.mutable_at(i) = keep[i] != 0;
  }
  return out;
}

py::dict result(const FlipSearch& search) {
  if (!search.done()) {
    throw std::runtime_error("result() of a search that is not done");
  }
  const auto field = [&search](auto&& read) {
    std::vector<int32_t> values;
    values.reserve(search.states().size());
    for (const FlipState& state : search.states()) {
      values.push_back(read(state));
    }
    return to_array(values);
  };
  py::dict out;
  out["status"] = field([](const FlipState& s) { return static_cast<int32_t>(s.status); });
  out["step"] = field([](const FlipState& s) { return s.reported_step; });
  out["lo"] = field([](const FlipState& s) { return s.lo; });
  out["hi"] = field([](const FlipState& s) { return s.hi; });
  out["reached_class"] = field([](const FlipState& s) { return s.reached_class; });
  out["evaluations"] = field([](const FlipState& s) { return s.evaluations; });
  out["rounds"] = search.rounds();
  return out;
}

}  // namespace

void bind_search(py::module_& m) {
  py::class_<FlipSearch>(m, "FlipSearch", kClassDoc)
      .def(py::init(&make_search), py::arg("source_class"), py::arg("target_class"),
           py::arg("num_classes"), py::kw_only(), py::arg("grid"), py::arg("coarse") = 4,
           py::arg("depth") = 1, py::arg("min_probability") = 0.0,
           py::arg("coarse_batch") = py::none(), py::arg("method") = "bisection", kInitDoc)
      .def_property_readonly("done", &FlipSearch::done, "True when no image has points left.")
      .def("points", &points, kPointsDoc)
      .def("update", &update, py::arg("logits"), kUpdateDoc)
      .def("result", &result, kResultDoc);
}
