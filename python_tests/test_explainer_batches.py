# SPDX-License-Identifier: Apache-2.0
"""Explaining: every batch, thread count, backend and kind of array says the same."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from explain_cases import TARGET, World, assert_same

import cae_fast as cf
from cae_fast.testing import TOLERANCE, relative_error


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Threads of torch that wait for each other take seconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def flipped(world: World) -> cf.Explanation:
    return world.explainer().explain(world.images, target=TARGET, exemplars=world.ends)


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
    direct = world.explainer(precision="exact").explain(world.images, TARGET, world.ends)
    assert direct.meta["precision"] == "exact"
    for backend, found in (("cpu", flipped), ("cpu", direct), ("torch", torch32)):
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


def test_many_images_need_no_more_memory_than_their_results(world: World) -> None:
    def corner(images: Any) -> Any:
        return np.stack([images[:, 0, i, i] for i in range(3)], axis=1)

    explainer = world.explainer(corner, max_batch=8)

    def extra(count: int) -> int:
        images = np.resize(world.images, (count, *world.images.shape[1:]))
        tracemalloc.start()
        found = explainer.explain(images, "any", world.ends[:1])
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == count
        return peak - kept

    explainer.explain(world.images[:8], "any", world.ends[:1])
    few, many = extra(16), extra(400)
    images_bytes = 384 * world.images[0].nbytes
    assert many - few < images_bytes / 4


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_no_images_give_empty_results(backend: str, tmp_path: Path) -> None:
    world = World(2)
    explainer = world.explainer(bank=world.bank(), backend=backend)
    world.classifier.calls.clear()
    none, config = world.images[:0], world.model.config
    codes = explainer.encode(none)
    assert codes.individual.shape == (0, *config.individual_shape)
    assert codes.class_code.shape == (0, config.code_dim)
    for individual, code in (
        (codes.individual, codes.class_code),
        (codes.individual, world.ends[:1]),
        (explainer.encode(world.images[:1]).individual, codes.class_code),
    ):
        decoded = explainer.decode(individual, code)
        assert (decoded.shape, decoded.dtype) == (none.shape, np.float32)
    for ends in (world.ends[:0], world.ends[:1], none, [0], np.zeros(0, int)):
        assert explainer.path(none, ends, [0, 0.5, 1]).shape == (0, 3, *config.image_shape)
        found = explainer.explain(none, TARGET, ends, frames=2)
        assert len(found) == 0
        assert found.counterfactual.shape == none.shape
        assert found.saliency.shape == (0, 16, 16)
        assert found.logits_source.shape == (0, 3)
        assert found.path_images.shape == (0, 2, *config.image_shape)
        assert found.exemplar.shape == (0, 1)
    for target in (None, "any", [], np.zeros(0, int)):
        assert len(explainer.explain(none, target, k=2, names=[], rejected=[])) == 0
    assert world.classifier.calls == []
    found.save(tmp_path / "empty")
    assert len(cf.Explanation.load(tmp_path / "empty")) == 0
    with pytest.raises(ValueError, match="one for each of the 0 images, got 2"):
        explainer.explain(none, TARGET, world.ends)
    with pytest.raises(ValueError, match="individual has 2 rows, class_code 0"):
        explainer.decode(explainer.encode(world.images).individual, codes.class_code)
