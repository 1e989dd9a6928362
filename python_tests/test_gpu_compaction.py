# SPDX-License-Identifier: Apache-2.0
"""Rounds of many images on the device that leave out those that are done (CAE_GPU_COMPACT=1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from explain_cases import World, assert_same
from flip_module import Flip

import cae_fast as cf
from cae_fast.backends.cuda import CudaBackend

torch = pytest.importorskip("torch")
COUNT = 40


class Counting(Flip):
    """Keeps how many images each call got."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: Any) -> Any:
        self.sizes.append(len(images))
        return super().forward(images)


@pytest.fixture(scope="module")
def world() -> World:
    return World(count=COUNT)


def explained(
    world: World, compact: str, gpu: str, monkeypatch: pytest.MonkeyPatch, **asked: Any
) -> tuple[cf.Explanation, list[int]]:
    """What is found, and the sizes of the rounds."""
    monkeypatch.setenv("CAE_GPU_COMPACT", compact)
    module = Counting().to("cpu" if gpu == "emu" else gpu)
    explainer = world.explainer(module, backend="cuda", device=gpu, max_batch=COUNT)
    found = explainer.explain(world.images, exemplars=world.ends, target="any", **asked)
    return found, module.sizes


@pytest.mark.parametrize("search", ["bisection", "margin"])
def test_images_that_are_done_are_left_out(
    world: World, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the same, in rounds of three sizes at most."""
    asked: dict[str, Any] = {"search": search, "tolerance": 1 / 256}
    all_of_them, full = explained(world, "0", "emu", monkeypatch, **asked)
    found, sizes = explained(world, "1", "emu", monkeypatch, **asked)
    assert_same(found, all_of_them)
    assert {"flipped"} < set(found.status)
    assert set(full) == {COUNT}
    # The images themselves, then rounds that are never larger again.
    assert sizes[0] == COUNT
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == len(full)
    assert {COUNT} < set(sizes) <= {COUNT, COUNT // 2, COUNT // 4}


@pytest.mark.parametrize("count", [3, 4, 8, 9])
def test_few_images_stay_together(
    world: World, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to three are searched several points at a time; rounds of up to eight do not shrink."""
    monkeypatch.setenv("CAE_GPU_COMPACT", "1")
    module = Counting()
    explainer = world.explainer(module, backend="cuda", device="emu", max_batch=COUNT)
    asked: dict[str, Any] = {"target": "any", "tolerance": 1 / 256, "search": "margin"}
    explainer.explain(world.images[:count], exemplars=world.ends[:count], **asked)
    if count > 3:
        assert set(module.sizes) == ({9, 5} if count == 9 else {count})
    else:
        assert max(module.sizes) == 5 * count


def search_of(world: World, *, packed: bool) -> Any:
    """A search of four images that all flip at the end of their paths, at its beginning."""
    explainer = world.explainer(backend="cuda", device="emu")
    assert isinstance(explainer.backend, CudaBackend)
    module: Any = explainer.backend.module
    sizes = {"images": 4, "num_classes": 2, "grid": 8, "coarse_batch": 1}
    search = module.GpuSearch(explainer.backend.engine, None, **sizes, packed=packed)
    nobody = np.zeros(4, np.int32)
    left_out = np.array([0, 1, 0, 1], np.int32)
    paths = np.stack([world.ends[:4], world.ends[:4]], axis=1)
    search.set_inputs(world.images[:4], nobody + 1, np.ones(2, np.int32), left_out, paths)
    search.begin(np.array([[1, 0]] * 4, np.float32), True)
    return search


def test_needed_points_come_first(world: World) -> None:
    """Those of images 0 and 2: their logits are enough, and one more would be no harm."""
    search = search_of(world, packed=True)
    assert search.remaining() == 2
    assert search.round_points(0) == 4
    for i in range(search.rounds):
        points = search.remaining() + (i == 1)
        if points == 0:
            break
        assert len(search.decode(i, points)) == points
        last = 1 if i >= 4 else 0  # the fifth coarse point is the end
        search.step(i, np.tile(np.array([1 - last, last], np.float32), (points, 1)))
    search.finish()
    found = search.result()
    assert found["path_count"].tolist() == [6, 0, 6, 0]
    assert (found["status"][[0, 2]] == found["status"][0]).all()
    assert np.isfinite(found["counterfactual"].numpy()[[0, 2]]).all()


def test_fewer_points_than_a_round_has_are_refused(world: World) -> None:
    spread = search_of(world, packed=False)
    with pytest.raises(ValueError, match="points of round 0 must be 4, got 2"):
        spread.decode(0, 2)
    with pytest.raises(ValueError, match=r"decode\(\) or place\(\) the points"):
        spread.step(0, np.zeros((4, 2), np.float32))
    packed = search_of(world, packed=True)
    for wrong in (0, 5, -1):
        with pytest.raises(ValueError, match=f"must be at most 4, got {wrong}"):
            packed.decode(0, wrong)
    packed.decode(0, 2)
    for rows in (1, 3, 4):  # one more than were decoded would be made up, one less not be there
        with pytest.raises(ValueError, match=r"logits must be \[2, 2\]"):
            packed.step(0, np.zeros((rows, 2), np.float32))
    with pytest.raises(ValueError, match="round must be in"):
        packed.round_points(99)


@pytest.mark.cuda
@pytest.mark.parametrize("search", ["bisection", "margin"])
def test_on_a_gpu_from_the_host_and_in_a_graph(
    world: World, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same flips; a product of another size may round logits otherwise."""
    asked: dict[str, Any] = {"target": "any", "tolerance": 1 / 256, "search": search}
    all_of_them, _ = explained(world, "0", "cuda:0", monkeypatch, search=search, tolerance=1 / 256)
    monkeypatch.setenv("CAE_GPU_COMPACT", "1")
    explainer = world.explainer(Flip().cuda(), backend="cuda", device="cuda:0", max_batch=COUNT)
    for stepping in ("host", "graph", "graph"):
        found = explainer.explain(world.images, exemplars=world.ends, **asked)
        assert found.meta["stepping"] == stepping
        np.testing.assert_array_equal(found.status, all_of_them.status)
        np.testing.assert_allclose(found.t_flip, all_of_them.t_flip, atol=1 / 128, equal_nan=True)
