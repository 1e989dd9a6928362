# SPDX-License-Identifier: Apache-2.0
"""Explaining with the cuda backend, on a GPU and in the emulator, beside the CPU."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explain_cases import World, assert_same, constant

import cae_fast as cf
from cae_fast.testing import TOLERANCE, relative_error

torch = pytest.importorskip("torch")

LIMIT = TOLERANCE["cuda-fp16"]
GRID = 16


@pytest.fixture(scope="module")
def world() -> World:
    return World(count=3)


def options(gpu: str) -> dict[str, Any]:
    return {"backend": "cuda", "device": gpu}


def check_alike(one: cf.Explanation, other: cf.Explanation) -> None:
    """Same statuses and classes, flips within a step of the grid, pictures within the table."""
    for name in ("status", "source_class", "target_class", "reached_class", "exemplar"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_allclose(one.t_flip, other.t_flip, rtol=0, atol=1 / GRID)
    np.testing.assert_allclose(one.bracket, other.bracket, rtol=0, atol=1 / GRID)
    drawn = np.isfinite(other.reconstruction).all(axis=(1, 2, 3))
    assert relative_error(one.reconstruction[drawn], other.reconstruction[drawn]) < LIMIT
    same = drawn & (one.t_flip == other.t_flip)
    assert relative_error(one.counterfactual[same], other.counterfactual[same]) < LIMIT
    if other.path_images is not None and one.path_images is not None:
        assert relative_error(one.path_images[drawn], other.path_images[drawn]) < LIMIT


def test_flips_as_on_the_cpu(world: World, gpu: str) -> None:
    """Codes as exemplars, frames, names, a NaN image, reports."""
    images = world.images.copy()
    images[1, 0, 3, 3] = np.nan
    asked: dict[str, Any] = {
        "target": 1,
        "exemplars": world.ends,
        "tolerance": 1 / GRID,
        "frames": 2,
        "names": ["a", "b", "c"],
    }
    explainer = world.explainer(**options(gpu), max_batch=8)
    seen: list[tuple[int, int]] = []
    found = explainer.explain(images, **asked, on_progress=lambda *at: seen.append(at))
    check_alike(found, world.explainer(backend="cpu").explain(images, **asked))
    assert list(found.status) == ["flipped", "rejected", "flipped"]
    assert seen == [(3, 3)]
    assert np.isnan(found.counterfactual[1]).all()
    assert (found.saliency[[0, 2]].max(axis=(1, 2)) == 1).all()
    facts = {"backend": "cuda", "device": gpu, "dtype": "float16", "precision": "fp16"}
    assert facts.items() <= found.meta.items()
    assert all(isinstance(value, np.ndarray) for value in (found.counterfactual, found.saliency))


def test_margin_search_from_a_bank(world: World, gpu: str, tmp_path: Path) -> None:
    """Targets one by one, the bank's rows, the margin's search; the result can be saved."""
    images = world.images[:2]
    bank = world.bank()
    asked: dict[str, Any] = {"target": [1, 0], "tolerance": 1 / GRID, "search": "margin"}
    asked |= {"exemplars": "nearest", "k": 2}
    explainer = world.explainer(bank=bank, **options(gpu))
    found = explainer.explain(images, **asked)
    check_alike(found, world.explainer(bank=bank, backend="cpu").explain(images, **asked))
    assert found.status[1] == "already_target"
    assert (found.exemplar[0] >= 0).all()
    np.testing.assert_array_equal(found.counterfactual[1], images[1])
    assert relative_error(found.reconstruction[1], images[1]) < 2
    found.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 0


def test_torch_in_torch_out(world: World, gpu: str) -> None:
    """Tensors for a classifier that takes them: on the device, without a copy; results likewise."""
    kinds: list[tuple[str, str]] = []

    def classify(images: Any) -> Any:
        kinds.append((type(images).__name__, images.device.type))
        return torch.from_numpy(world.classifier(images.cpu().numpy()))

    where = "cpu" if gpu == "emu" else gpu
    images = torch.from_numpy(world.images[:1]).to(where)
    explainer = world.explainer(classify, **options(gpu))
    asked: dict[str, Any] = {"target": 1, "tolerance": 1 / 4, "exemplars": images.flip(3)}
    found = explainer.explain(images, **asked)
    assert set(kinds) == {("Tensor", images.device.type)}
    for value in (found.counterfactual, found.t_flip, found.saliency, found.logits_source):
        assert isinstance(value, torch.Tensor)
        assert value.device == images.device
    plain = world.explainer(**options(gpu)).explain(
        world.images[:1], **(asked | {"exemplars": world.images[:1, :, :, ::-1]})
    )
    np.testing.assert_array_equal(found.counterfactual.cpu().numpy(), plain.counterfactual)
    assert list(found.status) == list(plain.status)


def test_codes_and_paths_round_trip(world: World, gpu: str) -> None:
    explainer = world.explainer(**options(gpu), max_batch=2)
    tensor = torch.from_numpy(world.images[:1])
    codes = explainer.encode(tensor)
    assert isinstance(codes.individual, torch.Tensor)
    own = explainer.encode(world.images[:1])
    assert isinstance(own.individual, np.ndarray)
    np.testing.assert_array_equal(codes.individual.numpy(), own.individual)
    decoded = explainer.decode(own.individual, own.class_code)
    assert isinstance(explainer.decode(codes.individual, codes.class_code), torch.Tensor)
    frames = explainer.path(world.images[:1], world.ends[:1], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(frames[:, 0], decoded)
    # Of the same codes: where encoder and decoder both round to halves, networks as small as this
    # err by 2.9e-3 to 3.1e-3, depending on the order of sums. Encoders are held to it elsewhere.
    start, end = own.class_code, world.ends[:1]
    exact = world.explainer(backend="cpu")
    for i, t in enumerate((0.0, 0.5, 1.0)):
        code = np.float32(1 - t) * start + np.float32(t) * end
        assert relative_error(frames[:, i], exact.decode(own.individual, code)) < LIMIT


def test_other_statuses(world: World, gpu: str) -> None:
    """Nothing flips, everything does, and logits that are no numbers; then no images at all."""
    image, end = world.images[:1], world.ends[:1]
    asked: dict[str, Any] = {"exemplars": end, "tolerance": 1 / 4, "coarse": 1}
    results = {
        "not_flipped": constant([1.0, 0.0, 0.0]),
        "non_finite": constant([float("nan")] * 3),
    }
    for status, classifier in results.items():
        explainer = world.explainer(classifier, **options(gpu))
        assert list(explainer.explain(image, 1, **asked).status) == [status]
    none = explainer.explain(image[:0], 1, **asked)
    assert len(none.status) == 0
    assert explainer.encode(image[:0]).individual.shape == (0, 16, 4, 4)


def test_a_classifier_that_encodes(world: World, gpu: str) -> None:
    """It may use the explainer that asks it, in the middle of a search."""
    asked: dict[str, Any] = {"target": 1, "exemplars": world.ends[:1], "tolerance": 1 / 4}
    codes: list[Any] = []

    def classify(images: Any) -> Any:
        codes.append(explainer.encode(images).class_code)
        return world.classifier(images)

    explainer = world.explainer(classify, **options(gpu))
    found = explainer.explain(world.images[:1], **asked)
    assert_same(found, world.explainer(**options(gpu)).explain(world.images[:1], **asked))
    np.testing.assert_array_equal(codes[0], explainer.encode(world.images[:1]).class_code)


def test_callers_in_many_threads(world: World, gpu: str) -> None:
    """Two at a time with one explainer and one with another get what each gets alone."""
    explainers = [world.explainer(**options(gpu), max_batch=m) for m in (2, 1)]
    asked: dict[str, Any] = {"target": 1, "tolerance": 1 / 4, "coarse": 1}

    def job(i: int) -> dict[str, Any]:
        return {"images": world.images[i : i + 1], "exemplars": world.ends[i : i + 1], **asked}

    alone = [explainers[0].explain(**job(i)) for i in (0, 1)]

    async def together() -> list[cf.Explanation]:
        users = ((explainers[0], 0), (explainers[0], 1), (explainers[1], 0))
        return await asyncio.gather(*(one.explain_async(**job(i)) for one, i in users))

    for found, i in zip(asyncio.run(together()), (0, 1, 0), strict=True):
        assert_same(found, alone[i])
