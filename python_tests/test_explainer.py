# SPDX-License-Identifier: Apache-2.0
"""Explaining: every field, every status, every kind of exemplar, every batch."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from explain_cases import OTHER, SOURCE, TARGET, World, assert_same, constant

import cae_fast as cf
from cae_fast.testing import TOLERANCE, relative_error


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def flipped(world: World) -> cf.Explanation:
    return world.explainer().explain(world.images, target=TARGET, exemplars=world.ends)


def test_fields_of_flipped_images(world: World, flipped: cf.Explanation) -> None:
    n, shape = len(world.images), world.images.shape
    assert flipped.status.tolist() == ["flipped"] * n
    assert flipped.flipped.all()
    assert len(flipped) == n
    assert flipped.counterfactual.shape == flipped.reconstruction.shape == shape
    assert flipped.difference.shape == shape
    assert flipped.saliency.shape == (n, *shape[2:])
    assert flipped.bracket.shape == (n, 2)
    assert flipped.logits_source.shape == flipped.logits_counterfactual.shape == (n, 3)
    assert flipped.exemplar.tolist() == [[-1]] * n
    assert (flipped.source_class == SOURCE).all()
    assert (flipped.target_class == TARGET).all()
    assert (flipped.reached_class == TARGET).all()
    for name in ("counterfactual", "reconstruction", "difference", "saliency", "t_flip", "bracket"):
        assert getattr(flipped, name).dtype == np.float32
    assert flipped.names == [f"image {i}" for i in range(n)]
    assert flipped.class_names == ("0", "1", "2")


def test_flip_is_bracketed_on_the_grid(world: World, flipped: cf.Explanation) -> None:
    np.testing.assert_array_equal(flipped.t_flip, flipped.bracket[:, 1])
    np.testing.assert_array_equal(flipped.bracket[:, 1] - flipped.bracket[:, 0], 1 / 256)
    explainer = world.explainer()
    for i in range(len(flipped)):
        frames = explainer.path(world.images[i : i + 1], world.ends[i : i + 1], flipped.bracket[i])[
            0
        ]
        before, after = world.classifier(frames).argmax(axis=1)
        assert (before, after) == (SOURCE, TARGET)


def test_flip_is_what_trying_every_grid_point_finds(world: World, flipped: cf.Explanation) -> None:
    explainer = world.explainer()
    t = np.arange(257) / 256
    for i in range(3):
        frames = explainer.path(world.images[i : i + 1], world.ends[i : i + 1], t)[0]
        hits = world.classifier(frames).argmax(axis=1) == TARGET
        coarse = next(step for step in range(0, 257, 64) if hits[step])
        first = round(float(flipped.t_flip[i]) * 256)
        assert coarse - 64 < first <= coarse
        assert hits[first]
        assert not hits[first - 1]


def test_images_are_those_of_the_path(world: World, flipped: cf.Explanation) -> None:
    explainer = world.explainer()
    for i in range(len(flipped)):
        t = [0.0, float(flipped.t_flip[i])]
        start, end = explainer.path(world.images[i : i + 1], world.ends[i : i + 1], t)[0]
        assert relative_error(flipped.reconstruction[i], start) < 1e-6
        assert relative_error(flipped.counterfactual[i], end) < 1e-6
    logits = world.classifier(flipped.counterfactual)
    np.testing.assert_array_equal(flipped.logits_counterfactual, logits)
    np.testing.assert_array_equal(flipped.logits_source, world.classifier(world.images))


def test_difference_and_saliency(flipped: cf.Explanation) -> None:
    np.testing.assert_array_equal(
        flipped.difference, flipped.counterfactual - flipped.reconstruction
    )
    magnitude = np.abs(flipped.difference).sum(axis=1)
    expected = magnitude / magnitude.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(flipped.saliency, expected, atol=1e-6)
    assert (flipped.saliency.max(axis=(1, 2)) == 1).all()


def test_path_lists_every_point_classified(flipped: cf.Explanation) -> None:
    for i in range(len(flipped)):
        t, logits = flipped.path_t[i], flipped.path_logits[i]
        assert (np.diff(t) > 0).all()
        assert len(t) == len(logits) == flipped.evaluations[i]
        assert {0.0, 0.25, 0.5, 0.75, 1.0} <= set(t.tolist())
        at = int(np.flatnonzero(t == flipped.t_flip[i])[0])
        np.testing.assert_array_equal(logits[at], flipped.logits_counterfactual[i])
    assert (flipped.evaluations == 5 + 6).all()  # 64 steps between coarse points: six bisections


def test_meta(world: World, flipped: cf.Explanation) -> None:
    meta = flipped.meta
    assert meta["version"] == cf.__version__
    assert meta["model_sha256"] == world.model.sha256
    assert meta["bank_sha256"] is None
    assert (meta["backend"], meta["device"], meta["dtype"]) == ("cpu", "cpu", "float32")
    assert meta["parameters"]["grid"] == 256
    assert meta["rejected"] == {}
    assert {"encode", "decode", "classify", "saliency", "total"} <= set(meta["seconds"])
    assert "PathClassifier" in meta["classifier"]


@pytest.mark.parametrize(
    ("tolerance", "grid"), [(1, 1), (0.5, 2), (0.3, 4), (0.004, 256), (1 / 1000, 1024)]
)
def test_tolerance_is_the_width_of_the_bracket(world: World, tolerance: float, grid: int) -> None:
    found = world.explainer().explain(world.images[:2], TARGET, world.ends[:2], tolerance=tolerance)
    assert found.meta["parameters"]["grid"] == grid
    np.testing.assert_allclose(found.bracket[:, 1] - found.bracket[:, 0], 1 / grid)


def test_not_flipped_reports_the_nearest_point(world: World) -> None:
    def stubborn(images: Any) -> Any:
        logits = world.classifier(images)
        logits[:, SOURCE] += 100
        return logits

    found = world.explainer(stubborn).explain(world.images, TARGET, world.ends)
    assert set(found.status) == {"not_flipped"}
    assert not found.flipped.any()
    assert np.isnan(found.t_flip).all()
    assert np.isnan(found.bracket).all()
    assert (found.reached_class == SOURCE).all()
    for i in range(len(found)):
        best = found.path_logits[i][:, TARGET].argmax()
        np.testing.assert_array_equal(found.logits_counterfactual[i], found.path_logits[i][best])
    assert (found.saliency.max(axis=(1, 2)) == 1).all()


def test_constant_classifier_never_flips(world: World) -> None:
    found = world.explainer(constant([1, 0, 0])).explain(world.images, exemplars=world.ends)
    assert set(found.status) == {"not_flipped"}
    assert (found.target_class == 1).all()
    np.testing.assert_array_equal(found.counterfactual, found.reconstruction)  # lowest step on ties
    assert (found.saliency == 0).all()


def test_already_target(world: World) -> None:
    found = world.explainer().explain(world.images, SOURCE, world.ends)
    assert set(found.status) == {"already_target"}
    np.testing.assert_array_equal(found.counterfactual, world.images)
    np.testing.assert_array_equal(found.logits_counterfactual, found.logits_source)
    assert (found.reached_class == SOURCE).all()
    assert np.isfinite(found.reconstruction).all()
    assert (found.saliency == 0).all()
    assert (found.difference == 0).all()
    assert np.isnan(found.t_flip).all()
    assert all(len(t) == 0 for t in found.path_t)
    assert (found.evaluations == 1).all()


def test_reconstruction_flips(world: World) -> None:
    early = World(flip=-0.5)
    found = early.explainer().explain(early.images, TARGET, early.ends)
    assert set(found.status) == {"reconstruction_flips"}
    np.testing.assert_array_equal(found.counterfactual, found.reconstruction)
    np.testing.assert_array_equal(found.difference, found.reconstruction - early.images)
    assert (found.saliency.max(axis=(1, 2)) == 1).all()
    assert np.isnan(found.t_flip).all()
    assert (found.reached_class == TARGET).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_of_the_image(world: World, bad: float) -> None:
    def poisoned(images: Any) -> Any:
        logits = world.classifier(images)
        same = np.abs(images - world.images[3]).max(axis=(1, 2, 3)) == 0
        logits[same, 1] = bad
        return logits

    found = world.explainer(poisoned).explain(world.images, TARGET, world.ends)
    assert found.status[3] == "non_finite"
    assert (np.delete(found.status, 3) == "flipped").all()
    assert found.source_class[3] == found.reached_class[3] == -1
    assert np.isnan(found.counterfactual[3]).all()
    assert (found.saliency[3] == 0).all()
    assert found.evaluations[3] == 0


def test_non_finite_logits_on_the_path(world: World) -> None:
    def poisoned(images: Any) -> Any:
        logits = world.classifier(images)
        logits[(logits[:, 0] == 0) & (logits[:, 1] > 0)] = np.nan
        return logits

    found = world.explainer(poisoned).explain(world.images, TARGET, world.ends)
    assert set(found.status) == {"non_finite"}
    assert (found.source_class == SOURCE).all()
    assert (found.reached_class == -1).all()
    assert np.isfinite(found.reconstruction).all()
    assert np.isnan(found.counterfactual).all()
    assert (found.saliency == 0).all()
    json.loads(found.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -1.01])
def test_a_bad_image_is_rejected_alone(world: World, bad: float) -> None:
    images = world.images[:8].copy()
    images[5, 0, 3, 3] = bad
    explainer = world.explainer(max_batch=4)
    found = explainer.explain(images, TARGET, world.ends[:8])
    clean = explainer.explain(world.images[:8], TARGET, world.ends[:8])
    others = [0, 1, 2, 3, 4, 6, 7]
    assert_same(found[others], clean[others])
    row = found[5]
    assert row.status[0] == "rejected"
    assert row.source_class[0] == row.target_class[0] == row.reached_class[0] == -1
    assert (row.saliency == 0).all()
    assert np.isnan(row.logits_source).all()
    assert np.isnan(row.counterfactual).all()
    assert row.evaluations[0] == 0
    assert "pixels" in row.meta["rejected"][0]
    assert list(found.meta["rejected"]) == [5]


def test_images_refused_before(world: World) -> None:
    reasons = [None, "not an image", None]
    found = world.explainer().explain(world.images[:3], TARGET, world.ends[:3], rejected=reasons)
    assert found.status.tolist() == ["flipped", "rejected", "flipped"]
    assert found.meta["rejected"] == {1: "not an image"}
    nothing = world.explainer().explain(world.images[:1], TARGET, world.ends[:1], rejected=["x"])
    assert nothing.status.tolist() == ["rejected"]


def test_any_target_is_leaving_the_source_class(world: World) -> None:
    found = world.explainer().explain(world.images, "any", world.ends)
    assert set(found.status) == {"flipped"}
    assert (found.target_class == -1).all()
    assert (found.reached_class == TARGET).all()


def test_minimum_probability_moves_the_flip(world: World, flipped: cf.Explanation) -> None:
    sure = world.explainer().explain(world.images, TARGET, world.ends, min_probability=0.9)
    assert set(sure.status) == {"flipped"}
    assert (sure.t_flip > flipped.t_flip).all()
    z = sure.logits_counterfactual.astype(np.float64)
    probability = np.exp(z[:, TARGET]) / np.exp(z).sum(axis=1)
    assert (probability >= 0.9).all()


def test_default_target_is_the_runner_up(world: World) -> None:
    found = world.explainer(constant([0.5, 1.0, 0.7])).explain(world.images, exemplars=world.ends)
    assert (found.source_class == 1).all()
    assert (found.target_class == OTHER).all()
    tied = world.explainer(constant([0.5, 1.0, 0.5])).explain(world.images, exemplars=world.ends)
    assert (tied.target_class == 0).all()


def test_default_target_of_two_classes_is_the_other() -> None:
    two = World(2, num_classes=2)
    found = two.explainer().explain(two.images, exemplars=two.ends)
    assert (found.target_class == 1).all()


def test_targets_per_image(world: World) -> None:
    explainer = world.explainer()
    wish: list[Any] = [SOURCE, TARGET, None, "any", "1"]
    found = explainer.explain(world.images[:5], wish, world.ends[:5])
    assert found.target_class.tolist() == [0, 1, 1, -1, 1]
    assert found.status.tolist() == ["already_target"] + ["flipped"] * 4
    for kind in (np.array([0, 1]), torch.tensor([0, 1]), (0, np.int64(1))):
        found = explainer.explain(world.images[:2], kind, world.ends[:2])
        assert found.target_class.tolist() == [0, 1]


def test_exemplars_as_images_codes_and_codes_of_an_object(world: World) -> None:
    explainer = world.explainer(constant([1, 0, 0]))
    codes = explainer.encode(world.images)
    by_images = explainer.explain(world.images, 1, world.images[::-1])
    by_codes = explainer.explain(world.images, 1, codes.class_code[::-1])
    by_object = explainer.explain(world.images[:1], 1, explainer.encode(world.images[-1:]))
    assert_same(by_images, by_codes)
    assert_same(by_images[0], by_object)
    one = explainer.explain(world.images, 1, world.images[:1])
    assert_same(one, explainer.explain(world.images, 1, np.repeat(codes.class_code[:1], 9, 0)))
    # An image as its own exemplar is a path of one point.
    itself = explainer.explain(world.images, 1, world.images)
    np.testing.assert_array_equal(itself.counterfactual, itself.reconstruction)


def test_exemplars_from_the_bank(world: World) -> None:
    bank = world.bank()
    explainer = world.explainer(constant([1, 0.5, 0]), bank=bank)
    found = explainer.explain(world.images)
    codes = explainer.encode(world.images).class_code
    np.testing.assert_array_equal(found.exemplar, bank.nearest(codes, 1))
    assert set(bank.labels[found.exemplar[:, 0]]) == {1}
    assert found.exemplar_names[2] == (bank.names[found.exemplar[2, 0]],)
    assert found.meta["bank_sha256"] == bank.sha256
    assert_same(found[:1], explainer.explain(world.images[:1], exemplars=found.exemplar[:1]))
    flat = explainer.explain(world.images, exemplars=found.exemplar[:, 0])
    assert_same(found, flat)
    anything = explainer.explain(world.images, "any")
    assert 0 not in bank.labels[anything.exemplar]
    already = explainer.explain(world.images, 0)
    assert (already.exemplar == -1).all()


def test_several_exemplars_are_averaged(world: World) -> None:
    bank = world.bank()
    explainer = world.explainer(constant([1, 0.5, 0]), bank=bank)
    found = explainer.explain(world.images, k=3)
    assert found.exemplar.shape == (9, 3)
    mean = bank.codes[found.exemplar].mean(axis=1)
    given = explainer.explain(world.images, exemplars=mean)
    np.testing.assert_allclose(found.counterfactual, given.counterfactual, atol=1e-5)
    assert_same(found, explainer.explain(world.images, exemplars=found.exemplar))


@hypothesis.settings(max_examples=12)
@hypothesis.given(data=st.data())
def test_an_explanation_does_not_depend_on_its_batch(
    world: World, flipped: cf.Explanation, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=9))
    explainer = world.explainer(max_batch=data.draw(st.integers(1, 9)))
    found = explainer.explain(world.images[rows], TARGET, world.ends[rows])
    assert_same(found, flipped[rows])


def test_same_again_and_with_other_threads(world: World, flipped: cf.Explanation) -> None:
    from cae_fast import _backend

    before = _backend.get_num_threads()
    try:
        for threads in (1, 2, before):
            cf.set_num_threads(threads)
            found = world.explainer().explain(world.images, TARGET, world.ends)
            assert_same(found, flipped)
    finally:
        cf.set_num_threads(before)


def test_backends_agree(world: World, flipped: cf.Explanation) -> None:
    scale = np.linalg.norm(world.images.astype(np.float64).reshape(9, -1), axis=1)
    exact = world.explainer(backend="torch", precision="fp64")
    expected = exact.explain(world.images, TARGET, world.ends)
    torch32 = world.explainer(backend="torch").explain(world.images, TARGET, world.ends)
    for backend, found in (("cpu", flipped), ("torch", torch32)):
        assert relative_error(found.reconstruction, expected.reconstruction) < TOLERANCE[backend]
        assert (found.status == expected.status).all()
        assert np.abs(found.t_flip - expected.t_flip).max() <= 1 / 256
        same = found.t_flip == expected.t_flip
        assert same.mean() > 0.8
        error = (found.difference - expected.difference)[same].reshape(same.sum(), -1)
        assert (np.linalg.norm(error, axis=1) / scale[same]).max() < TOLERANCE[backend]


def test_torch_in_torch_out(world: World, flipped: cf.Explanation) -> None:
    found = world.explainer().explain(
        torch.from_numpy(world.images), TARGET, torch.from_numpy(world.ends)
    )
    for name in (
        "counterfactual",
        "saliency",
        "t_flip",
        "source_class",
        "exemplar",
        "flipped",
        "images",
    ):
        assert isinstance(getattr(found, name), torch.Tensor), name
    assert isinstance(found.path_t[0], torch.Tensor)
    assert_same(found.numpy(), flipped)
    codes = world.explainer().encode(torch.from_numpy(world.images))
    assert isinstance(codes.class_code, torch.Tensor)
    assert isinstance(world.explainer().decode(*vars(codes).values()), torch.Tensor)
    json.loads(found.to_json())


def test_plain_callables_get_the_kind_of_the_images(world: World) -> None:
    kinds = set()

    def watching(images: Any) -> Any:
        kinds.add(type(images).__name__)
        return [[1.0, 0.0, 0.0]] * len(images)

    for backend in ("cpu", "torch"):
        explainer = world.explainer(watching, backend=backend)
        explainer.explain(world.images[:2], exemplars=world.ends[:2])
        assert kinds == {"ndarray"}
        kinds.clear()
        explainer.explain(torch.from_numpy(world.images[:2]), exemplars=world.ends[:2])
        assert kinds == {"Tensor"}
        kinds.clear()


def test_anything_with_dlpack_goes_in(world: World, flipped: cf.Explanation) -> None:
    class Foreign:
        dtype, shape = "float32", world.images.shape

        def __dlpack__(self, **options: Any) -> Any:
            return world.images.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return world.images.__dlpack_device__()

    assert_same(world.explainer().explain(Foreign(), TARGET, world.ends), flipped)


def test_strided_reversed_and_read_only_images(world: World, flipped: cf.Explanation) -> None:
    wide = np.repeat(world.images, 2, axis=3)
    wide[:, :, :, 1::2] = 7
    read_only = world.images.copy()
    read_only.flags.writeable = False
    explainer = world.explainer()
    assert_same(explainer.explain(wide[:, :, :, ::2], TARGET, world.ends), flipped)
    assert_same(explainer.explain(world.images[::-1], TARGET, world.ends[::-1]), flipped[::-1])
    assert_same(explainer.explain(read_only, TARGET, world.ends), flipped)
    by_tensor = explainer.explain(torch.from_numpy(world.images), TARGET, world.ends)
    assert_same(by_tensor.numpy(), flipped)


def test_no_call_is_larger_than_max_batch(world: World) -> None:
    watched = World()
    watched.explainer(max_batch=4).explain(watched.images, TARGET, watched.ends)
    assert max(watched.classifier.calls) == 4


def test_saliency_against_the_image(world: World, flipped: cf.Explanation) -> None:
    found = world.explainer().explain(world.images, TARGET, world.ends, saliency_against="image")
    np.testing.assert_array_equal(found.difference, found.counterfactual - world.images)
    np.testing.assert_array_equal(found.counterfactual, flipped.counterfactual)


def test_frames_and_progress(world: World, flipped: cf.Explanation) -> None:
    seen: list[tuple[int, int]] = []
    explainer = world.explainer(max_batch=4)
    images = world.images.copy()
    images[4] = np.nan
    found = explainer.explain(
        images, TARGET, world.ends, frames=5, on_progress=lambda *at: seen.append(at)
    )
    assert seen == [(4, 9), (8, 9), (9, 9)]
    assert found.frame_t.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.path_images.shape == (9, 5, *world.images.shape[1:])
    assert np.isnan(found.path_images[4]).all()
    np.testing.assert_array_equal(found.path_images[0, 0], flipped.reconstruction[0])
    expected = explainer.path(world.images[:2], world.ends[:2], found.frame_t)
    np.testing.assert_allclose(found.path_images[:2], expected, atol=1e-6)
    assert flipped.path_images is None


def test_async(world: World, flipped: cf.Explanation) -> None:
    explainer = world.explainer()

    async def several() -> list[cf.Explanation]:
        calls = [
            explainer.explain_async(world.images, target=TARGET, exemplars=world.ends)
            for _ in range(4)
        ]
        return await asyncio.gather(*calls)

    for found in asyncio.run(several()):
        assert_same(found, flipped)


def test_encode_decode_and_path(world: World) -> None:
    explainer = world.explainer()
    codes = explainer.encode(world.images)
    assert codes.individual.shape == (9, *world.model.config.individual_shape)
    assert codes.class_code.shape == (9, 4)
    decoded = explainer.decode(codes.individual, codes.class_code)
    found = explainer.explain(world.images, TARGET, world.ends)
    np.testing.assert_array_equal(decoded, found.reconstruction)
    swapped = explainer.decode(codes.individual[:1], world.ends)
    assert swapped.shape == world.images.shape
    ends = explainer.path(world.images, world.ends, [0, 1])
    np.testing.assert_array_equal(ends[:, 0], decoded)
    np.testing.assert_array_equal(ends[:, 1], explainer.decode(codes.individual, world.ends))
    np.testing.assert_array_equal(ends[0, 1], swapped[0])


def test_explaining_with_numpy_and_onnx_never_imports_torch(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    world = World(2)
    world.model.save(tmp_path / "model.safetensors")
    world.bank().save(tmp_path / "bank.csv")
    size = int(np.prod(world.images.shape[1:]))
    weight = np.random.default_rng(0).standard_normal((size, 3)).astype(np.float32)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["x"]),
            helper.make_node("MatMul", ["x", "w"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("images", kind, ["N", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", kind, ["N", 3])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "c.onnx")
    code = f"""
import sys, numpy as np, cae_fast as cf
folder = {str(tmp_path)!r}
explainer = cf.Explainer(
    cf.CAE.load(folder + "/model.safetensors"), folder + "/c.onnx", bank=folder + "/bank.csv"
)
images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 16, 16)).astype(np.float32)
result = explainer.explain(images)
result.save(folder + "/out")
result.to_html(folder + "/out.html")
assert "rejected" not in result.status
assert explainer.classifier.sha256 == result.meta["classifier_sha256"]
print([name for name in ("torch", "matplotlib", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
