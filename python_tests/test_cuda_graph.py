# SPDX-License-Identifier: Apache-2.0
"""Explanations captured in a CUDA graph, and what is done where that cannot be."""

from __future__ import annotations

from operator import itemgetter
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from explain_cases import FIELDS, World, assert_same
from flip_module import Flip

import cae_fast as cf
from cae_fast import device_search
from cae_fast.backends import cuda_graph
from cae_fast.backends.cuda import CudaBackend
from cae_fast.classifier_calls import ClassifierCalls

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def world() -> World:
    return World(count=4)


def on_host(
    explainer: cf.Explainer, monkeypatch: pytest.MonkeyPatch, *args: Any, **asked: Any
) -> Any:
    """The same explanation with the search stepped from the host, point after point."""
    with monkeypatch.context() as patch:
        patch.setattr(explainer, "_on_device", lambda *_: None)
        patch.setattr(explainer.backend, "coarse_batch", 1)
        return explainer.explain(*args, **asked)


def try_to_capture(explainer: cf.Explainer) -> None:
    """Has an explainer of the emulator capture its searches, as one of a GPU does."""
    assert isinstance(explainer.backend, CudaBackend)
    searcher = explainer._searcher = device_search.DeviceSearcher(explainer.backend, None)
    real = searcher.run
    searcher.run = lambda *args: real(*args[:2], ("a state",), *args[3:])  # type: ignore[method-assign]


def test_without_capture_the_host_steps_and_says_why(world: World) -> None:
    """The emulator has no graphs: asked for one, it goes on from the host."""
    explainer = world.explainer(Flip(), backend="cuda", device="emu", max_batch=4)
    assert isinstance(explainer.backend, CudaBackend)
    try_to_capture(explainer)
    asked = {"exemplars": world.ends[:2], "target": "any", "tolerance": 1 / 4}
    said, results = [], []
    for _ in range(4):
        results.append(explainer.explain(world.images[:2], **asked))
        said.append(results[-1].meta["stepping"])
    assert said == ["host", *["host: the emulator has no graphs"] * 3]
    for result in results[1:]:
        assert_same(results[0], result)


class Replayed:
    """Stands for a graph where there are none: what was captured is done again, eagerly."""

    def __init__(self, run: Any, index: int | None) -> None:
        run(0)
        run(0)
        self.replay = lambda: run(0)

    def __call__(self, queue: int) -> None:
        self.replay()


class Empty(Replayed):
    """A graph in which nothing was captured."""

    def __init__(self, run: Any, index: int | None) -> None:
        super().__init__(run, index)
        self.replay = lambda: None


class Row:
    """Stands for a `GraphSequence`: what was captured is done again, what may be left out is."""

    ran: ClassVar[list[list[int]]] = []  # of each launch the parts that ran
    sizes: ClassVar[list[list[int]]] = []  # of each launch what the rounds were for

    def __init__(self, engine: Any) -> None:
        self.parts: list[tuple[list[tuple[int, Any]], Any]] = []

    def append(self, part: Any) -> None:
        self.parts.append(([(0, part)], None))

    def append_one_of(self, parts: list[tuple[int, Any]], search: Any) -> None:
        self.parts.append((parts, search))

    def launch(self, *, stream: int) -> None:
        ran, sizes = [], []
        for i, (parts, search) in enumerate(self.parts):
            needed = 0 if search is None else search.remaining(stream=stream)
            if search is None or needed > 0:
                size, part = min((pair for pair in parts if pair[0] >= needed), key=itemgetter(0))
                part(stream)
                ran.append(i)
                sizes += [] if search is None else [size]
        self.ran.append(ran)
        self.sizes.append(sizes)


def with_rows(world: World, monkeypatch: pytest.MonkeyPatch, **options: Any) -> cf.Explainer:
    """An explainer whose searches are captured in a `Row`."""

    def captured(parts: list[Any], index: int | None, *, kept: bool) -> list[Any]:
        for part in parts:
            part(0)
        assert kept
        return [SimpleNamespace(raw_cuda_graph=lambda part=part: part) for part in parts]

    fixed = cf.Classifier(lambda x: torch.from_numpy(world.classifier(x)), capture=True)
    explainer = world.explainer(fixed, backend="cuda", device="emu", **options)
    assert isinstance(explainer.backend, CudaBackend)
    real_module = explainer.backend.module
    try_to_capture(explainer)
    monkeypatch.setattr(cuda_graph, "_captured", captured)
    names = {name: getattr(real_module, name) for name in dir(real_module)}
    explainer.backend.module = SimpleNamespace(**{**names, "GraphSequence": Row})
    Row.ran.clear()
    Row.sizes.clear()
    return explainer


def steppings(
    world: World, fn: Any, monkeypatch: pytest.MonkeyPatch, capture: Any, calls: int = 3
) -> list[str]:
    """How three calls were stepped, with a stand-in for capturing; what they find is compared."""
    explainer = world.explainer(fn, backend="cuda", device="emu", max_batch=4)
    assert isinstance(explainer.backend, CudaBackend)
    try_to_capture(explainer)
    monkeypatch.setattr(device_search, "capture", capture)
    said = []
    for first in range(calls):
        images, ends = world.images[first : first + 2], world.ends[first : first + 2]
        asked = {"exemplars": ends, "target": "any", "tolerance": 1 / 8}
        found = explainer.explain(images, **asked)
        stepped = on_host(explainer, monkeypatch, images, **asked)
        for name in set(FIELDS) - {"evaluations"}:
            np.testing.assert_array_equal(getattr(found, name), getattr(stepped, name), name)
        said.append(found.meta["stepping"])
    return said


def test_what_is_captured_must_find_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that was promised to stay as it is, one that does not, and an empty graph."""
    module = Flip()
    fixed = cf.Classifier(lambda images: module(images), capture=True)
    assert steppings(world, fixed, monkeypatch, Replayed) == ["host", *["graph"] * 2]

    said = steppings(world, fixed, monkeypatch, Empty)
    assert said == ["host", *["host: nothing of it was captured"] * 2]

    class Fickle(Replayed):
        """What is replayed has another model."""

        def __init__(self, run: Any, index: int | None) -> None:
            super().__init__(run, index)

            def replay() -> None:
                module.weight.mul_(-1)
                run(0)
                module.weight.mul_(-1)

            self.replay = replay

    said = steppings(world, fixed, monkeypatch, Fickle)
    assert said == ["host", *["host: what was captured finds something else"] * 2]


@pytest.mark.parametrize("search", ["bisection", "margin"])
def test_rounds_that_are_not_needed_are_left_out_of_a_graph(
    world: World, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the graph: the order of its parts, and which of them ask."""
    monkeypatch.setenv("CAE_GPU_EARLY_EXIT", "1")
    explainer = with_rows(world, monkeypatch, max_batch=4)
    asked: dict[str, Any] = {"target": 1, "tolerance": 1 / 64, "search": search}
    said = []
    for first in range(3):
        images, ends = world.images[first : first + 2], world.ends[first : first + 2]
        found = explainer.explain(images, exemplars=ends, **asked)
        stepped = on_host(explainer, monkeypatch, images, exemplars=ends, **asked)
        for name in set(FIELDS) - {"evaluations"}:
            np.testing.assert_array_equal(getattr(found, name), getattr(stepped, name), name)
        said.append(found.meta["stepping"])
    assert said == ["host", "graph", "graph"]
    nothing, *real_runs = Row.ran  # the first launch of a capture has all images left out
    assert nothing[:2] == [0, 1]
    assert len(nothing) == 3  # beginning, first round, end
    for ran in real_runs:
        assert ran == [*range(len(ran) - 1), nothing[-1]]  # from the first one on, and the end
    sizes = {len(ran) for ran in real_runs}
    assert max(sizes) > 3
    if search == "margin":
        assert min(sizes) <= nothing[-1]  # some are left out; bisection needs all


@pytest.mark.parametrize("search", ["bisection", "margin"])
def test_rounds_of_a_graph_shrink(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many images only those that are not done, in one of three sizes; by the stand-in."""
    monkeypatch.setenv("CAE_GPU_COMPACT", "1")
    many = World(count=26)
    # Paths that flip at another place each: some searches end early.
    many.classifier.ways *= np.linspace(0.6, 40, 26)[:, None, None, None] ** 0.5
    explainer = with_rows(many, monkeypatch, max_batch=64)
    asked: dict[str, Any] = {"target": 1, "tolerance": 1 / 32, "search": search}
    said = []
    for first in (0, 1, 2):
        images, ends = many.images[first : first + 24], many.ends[first : first + 24]
        found = explainer.explain(images, exemplars=ends, **asked)
        assert_same(found, on_host(explainer, monkeypatch, images, exemplars=ends, **asked))
        said.append(found.meta["stepping"])
    assert said == ["host", "graph", "graph"]
    nothing, *real_runs = Row.sizes
    assert nothing == []
    for sizes in real_runs:
        assert sizes == sorted(sizes, reverse=True)
        assert {24} < set(sizes) <= {24, 12, 6}


@pytest.mark.parametrize("name", ["CAE_GPU_EARLY_EXIT", "CAE_GPU_COMPACT"])
def test_wrong_words_about_a_choice(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "yes")
    with pytest.raises(ValueError, match=f"{name} must be 0 or 1, got yes"):
        world.explainer(backend="cuda", device="emu")


def test_the_emulator_has_no_graphs_to_put_in_a_row(world: World) -> None:
    backend = world.explainer(backend="cuda", device="emu").backend
    assert isinstance(backend, CudaBackend)
    with pytest.raises(RuntimeError, match="the emulator has no graphs"):
        backend.module.GraphSequence(backend.engine)


def test_a_promised_function_gets_tensors_of_the_gpu(world: World, gpu: str) -> None:
    """Also for NumPy images, and on the CPU for those that overflow halves."""
    device = "cpu" if gpu == "emu" else gpu
    module, seen = Flip().to(device), set()

    def call(images: Any) -> Any:
        seen.add((type(images), str(images.device)))
        return module(images)

    weights = dict(world.model.weights)
    weights["modulation.linear2.bias"] = weights["modulation.linear2.bias"] + np.float32(1e6)
    model = cf.CAE(world.model.config, weights)
    asked = {"exemplars": world.ends[:2], "target": "any", "tolerance": 1 / 4}
    for one in (world.model, model):
        classifier = cf.Classifier(call, capture=True)
        found = cf.Explainer(one, classifier, backend="cuda", device=gpu).explain(
            world.images[:2], **asked
        )
        assert found.meta["computed_in_float32"] == ([] if one is world.model else [0, 1])
    assert seen == {(torch.Tensor, device)}


def test_which_calls_may_be_captured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: modules, and functions by promise; each in a state of its own."""
    backend = object.__new__(CudaBackend)
    backend.index, backend.device = 0, "cuda:0"

    def state(fn: Any, on: Any = backend, **options: Any) -> Any:
        classifier = cf.Classifier(fn, **options)
        return ClassifierCalls(classifier, world.model.config, on, world.images).state()

    assert state(lambda x: x) is None
    assert state(lambda x: x, capture=True) is not None
    assert state(Flip()) is not None
    assert state(Flip(), world.explainer(backend="cuda", device="emu").backend) is None
    assert state(lambda x: x, world.explainer(backend="cpu").backend, capture=True) is None
    with pytest.raises(cf.ClassifierError, match="capture=True is for tensors"):
        cf.Classifier(lambda x: x, capture=True, arrays="numpy")


@pytest.mark.cuda
def test_a_promised_function_is_captured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """For NumPy images too; without the promise it is called."""
    module = Flip().cuda()
    for promise in (True, False):
        classifier = cf.Classifier(lambda x: module(x), capture=promise)
        explainer = world.explainer(classifier, backend="cuda", device="cuda:0", max_batch=2)
        for stepping in ("host", "graph", "graph"):
            images: Any = world.images[:2] if promise else torch.from_numpy(world.images[:2]).cuda()
            asked = {"exemplars": world.ends[:2], "target": "any", "tolerance": 1 / 16}
            found = explainer.explain(images, **asked)
            assert found.meta["stepping"] == (stepping if promise else "host")


@pytest.mark.cuda
@pytest.mark.parametrize("early_exit", ["0", "1"])
def test_a_graph_says_the_same(
    world: World, early_exit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other images each time, other weights, another dtype, another stream."""
    monkeypatch.setenv("CAE_GPU_EARLY_EXIT", early_exit)
    module = Flip().cuda()
    explainer = world.explainer(module, backend="cuda", device="cuda:0", max_batch=2)

    def check(first: int, stepping: str) -> None:
        images = world.images[first : first + 2]
        asked = {"exemplars": world.ends[first : first + 2], "target": "any", "tolerance": 1 / 16}
        found = explainer.explain(images, **asked)
        assert found.meta["stepping"] == stepping
        stepped = on_host(explainer, monkeypatch, images, **asked)
        for name in set(FIELDS) - {"evaluations"}:
            np.testing.assert_array_equal(getattr(found, name), getattr(stepped, name), name)

    for first, stepping in enumerate(["host", "graph", "graph", "graph"]):
        check(first, stepping)
    with torch.cuda.stream(torch.cuda.Stream()):
        check(0, "graph")
    module.weight.mul_(-1)  # in place: the graph reads it
    check(1, "graph")
    module.weight = module.weight * -0.5  # elsewhere: another graph is needed
    check(2, "host")
    check(3, "graph")


@pytest.mark.cuda
def test_what_cannot_be_captured_leaves_torch_as_it_was(world: World) -> None:
    class Asking(Flip):
        """Looks at its input from the host."""

        def forward(self, images: Any) -> Any:
            return super().forward(images) * (1 if float(images.sum()) < 1e9 else 2)

    explainer = world.explainer(Asking().cuda(), backend="cuda", device="cuda:0", max_batch=2)
    asked = {"exemplars": world.ends[:2], "target": "any", "tolerance": 1 / 4}
    stream = torch.cuda.current_stream()
    results = [explainer.explain(world.images[:2], **asked) for _ in range(4)]
    assert torch.cuda.current_stream() == stream
    assert torch.isfinite(torch.rand(8, device="cuda")).all()
    assert all(result.meta["stepping"].startswith("host: ") for result in results[1:])
    for result in results[1:]:
        assert_same(results[0], result)
