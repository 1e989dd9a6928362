# SPDX-License-Identifier: Apache-2.0
"""Memory that runs out: smaller groups with the same results, then one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explain_cases import TARGET, World, assert_same
from PIL import Image

import cae_fast as cf
from cae_fast.backends import native
from cae_fast.cli import failures
from cae_fast.memory import allocate, in_groups, is_out_of_memory, try_halves

# -- the function ---------------------------------------------------------------------------------


def test_halves_until_it_fits() -> None:
    tried = []

    def attempt(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise MemoryError
        return f"fits {size}"

    assert try_halves(attempt, 50, what="pictures") == "fits 3"
    assert tried == [50, 25, 12, 6, 3]


def test_one_that_does_not_fit() -> None:
    def attempt(size: int) -> None:
        raise MemoryError(f"Unable to allocate {size} GiB\nof memory")

    expected = (
        r"^out of memory: pictures do not fit: max_batch=9 was tried and halved down to 1 \(Unable "
        r"to allocate 1 GiB\); give .* smaller images$"
    )
    with pytest.raises(cf.OutOfMemory, match=expected) as caught:
        try_halves(attempt, 9, what="pictures")
    assert caught.value.__context__ is None
    with pytest.raises(cf.OutOfMemory, match=r"max_batch=1 was tried \(Unable"):
        try_halves(attempt, 1, what="pictures")


def test_what_failed_is_free_before_the_next_attempt() -> None:
    alive: list[int] = []

    class Large:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    def attempt(size: int) -> None:
        assert not alive
        held = Large()
        raise MemoryError(str(type(held)))

    with pytest.raises(cf.OutOfMemory):
        try_halves(attempt, 8, what="pictures")
    assert not alive


def test_groups_stay_small_once_halved() -> None:
    calls = []

    def work(rows: slice, in_flight: int) -> None:
        calls.append((rows.start, rows.stop, in_flight))
        if rows.start >= 4 and in_flight > 2:
            raise MemoryError

    in_groups(work, 9, 4, what="rows")
    assert calls == [(0, 4, 4), (4, 8, 4), (4, 6, 2), (6, 8, 2), (8, 9, 2)]
    calls.clear()
    in_groups(work, 0, 4, what="rows")
    assert calls == []


def test_other_errors_pass() -> None:
    def attempt(size: int) -> None:
        raise ValueError(f"not {size}")

    with pytest.raises(ValueError, match="not 8"):
        try_halves(attempt, 8, what="pictures")
    with pytest.raises(ValueError, match="not 8"):
        allocate(lambda: attempt(8), what="pictures")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (np.exceptions.AxisError(3), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), True),
        (
            type("RuntimeException", (Exception,), {"__module__": "onnxruntime.capi"})(
                "bfc_arena.cc: Failed to allocate memory for requested buffer of size 1"
            ),
            True,
        ),
        (RuntimeError("shapes differ"), False),
        (ValueError("std::bad_alloc"), False),
    ],
    ids=repr,
)
def test_errors_that_mean_it(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
    wrapped = cf.ClassifierError("it raised")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) == expected


# -- whoever works through groups -----------------------------------------------------------------


class Narrow:
    """A callable that runs out of memory with more than `most` rows in its first argument."""

    def __init__(self, inner: Callable[..., Any], most: int, error: Exception) -> None:
        self.inner, self.most, self.error = inner, most, error
        self.sizes: list[int] = []

    def __call__(self, first: Any, *others: Any) -> Any:
        rows = others[-1] if others else first  # the last argument of decode has a row per image
        self.sizes.append(len(rows))
        if len(rows) > self.most:
            raise self.error
        return self.inner(first, *others)


ERRORS = (MemoryError("Unable to allocate"), RuntimeError("DefaultCPUAllocator: not enough memory"))


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("part", ["classifier", "encode", "decode"])
def test_an_explanation_in_smaller_groups_is_the_same(part: str, error: Exception) -> None:
    world = World()
    whole = world.explainer(max_batch=8).explain(world.images, TARGET, world.ends, frames=3)
    narrow = Narrow(world.classifier, 2, error)
    explainer = world.explainer(narrow if part == "classifier" else None, max_batch=8)
    if part == "encode":
        narrow.inner = explainer.backend.encode
        explainer.backend.encode = narrow  # type: ignore[method-assign]
    elif part == "decode":
        session = explainer.backend.session

        def narrow_session(*arguments: Any) -> Any:
            made = session(*arguments)
            narrow.inner = made.decode
            return type("Session", (), {"decode": staticmethod(narrow)})

        explainer.backend.session = narrow_session  # type: ignore[method-assign]
    seen: list[tuple[int, int]] = []
    found = explainer.explain(
        world.images, TARGET, world.ends, frames=3, on_progress=lambda *at: seen.append(at)
    )
    assert_same(found, whole)
    np.testing.assert_array_equal(found.path_images, whole.path_images)
    assert seen == [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)]
    assert 8 in narrow.sizes
    assert max(narrow.sizes[narrow.sizes.index(4) + 1 :]) == 2


def test_codes_images_and_paths_in_smaller_groups_are_the_same() -> None:
    world = World()
    plain, halved = world.explainer(max_batch=8), world.explainer(max_batch=8)
    for name in ("encode", "encode_class", "decode"):
        narrow = Narrow(getattr(halved.backend, name), 3, MemoryError())
        setattr(halved.backend, name, narrow)
    one, other = plain.encode(world.images), halved.encode(world.images)
    np.testing.assert_array_equal(one.individual, other.individual)
    np.testing.assert_array_equal(one.class_code, other.class_code)
    for individual, codes in (
        (one.individual, world.ends),
        (one.individual[:1], world.ends),
        (one.individual, world.ends[:1]),
    ):
        expected = plain.decode(individual, codes)
        np.testing.assert_array_equal(halved.decode(individual, codes), expected)
    t = np.linspace(0, 1, 11)
    expected = plain.path(world.images, world.images[::-1], t)
    np.testing.assert_array_equal(halved.path(world.images, world.images[::-1], t), expected)


def test_a_bank_in_smaller_groups_is_the_same(tmp_path: Path) -> None:
    world = World()
    for i, image in enumerate(world.images):
        folder = tmp_path / f"{i % 3}"
        folder.mkdir(exist_ok=True)
        pixels = np.uint8(np.round((image[0] + 1) * 127.5))
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "1" / "broken.png").write_bytes(b"no image")

    def build(classifier: Any) -> tuple[cf.CodeBank, list[tuple[int, int]]]:
        seen: list[tuple[int, int]] = []
        data = cf.ImageDataset.from_folder(tmp_path)
        options: dict[str, Any] = {"thumbnails": True, "batch": 8, "on_error": "collect"}
        made = cf.CodeBank.build(
            world.model,
            data,
            classifier=classifier,
            on_progress=lambda *at: seen.append(at),
            **options,
        )
        return made, seen

    whole, _ = build(world.classifier)
    found, seen = build(Narrow(world.classifier, 2, MemoryError()))
    assert found.sha256 == whole.sha256
    assert (found.names, found.thumbnails, found.skipped) == (
        whole.names,
        whole.thumbnails,
        whole.skipped,
    )
    np.testing.assert_array_equal(found.predicted, whole.predicted)
    assert list(found.skipped) == ["1/broken.png"]
    assert seen[-1] == (10, 10)
    with pytest.raises(cf.OutOfMemory, match="images to encode do not fit: max_batch=8"):
        build(Narrow(world.classifier, 0, MemoryError()))


def test_an_engine_with_smaller_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = native._backend.Engine

    def small_machine(config: Any, weights: Any, *, max_batch: int, **options: Any) -> Any:
        if max_batch > 5:
            raise MemoryError("std::bad_alloc")
        return real(config, weights, max_batch=max_batch, **options)

    monkeypatch.setattr(native._backend, "Engine", small_machine)
    world = World()
    explainer = world.explainer(max_batch=16)
    assert explainer.backend.max_batch == 4
    found = explainer.explain(world.images, TARGET, world.ends)
    assert found.meta["max_batch"] == 4
    monkeypatch.undo()
    assert_same(found, world.explainer(max_batch=16).explain(world.images, TARGET, world.ends))


def test_results_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(2)
    explainer = world.explainer()
    many = np.broadcast_to(world.images[:1], (2**42, *world.images.shape[1:]))
    monkeypatch.setattr("cae_fast.codec.finite_images", lambda images, shape: images)
    with pytest.raises(cf.OutOfMemory, match=rf"^out of memory: codes of {2**42} images do not"):
        explainer.encode(many)


def test_one_line_of_the_command_line() -> None:
    error = cf.OutOfMemory("out of memory: images to explain do not fit")
    assert failures.describe(error) == (1, "out of memory: images to explain do not fit")
    code, text = failures.describe(MemoryError()) or (0, "")
    assert (code, text.split(":")[0]) == (1, "out of memory")
