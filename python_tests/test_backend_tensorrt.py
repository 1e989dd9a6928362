# SPDX-License-Identifier: Apache-2.0
"""Backend "tensorrt": all of it but TensorRT's own execution.

The search is the native one, its kernels in the emulator; where an engine would run, ONNX Runtime
runs the ONNX file that the engine is built from, in the same memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from conftest import skip_without
from explain_cases import World

import cae_fast as cf
from cae_fast.backends.tensorrt import TensorRTBackend
from cae_fast.export import build_onnx, serialized
from cae_fast.testing import random_images, relative_error, toy_classifier, toy_model

onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")


class StandIn:
    """An engine's place: contexts of one batch size, which insist on it."""

    def __init__(self, model: cf.CAE, part: str, max_batch: int, precision: str) -> None:
        self.max_batch = max_batch
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        built = serialized(build_onnx(model, part, precision=precision))
        self.session = onnxruntime.InferenceSession(built, sess_options=options)
        self.batches: list[int] = []

    def context(self, batch: int, stream: int) -> StandInContext:
        assert 1 <= batch <= self.max_batch
        return StandInContext(self, batch)


class StandInContext:
    def __init__(self, engine: StandIn, batch: int) -> None:
        self.engine, self.batch = engine, batch

    def run(self, tensors: Mapping[str, Any], stream: int) -> None:
        session = self.engine.session
        names = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]
        assert {*names, *outputs} == set(tensors)
        for tensor in tensors.values():
            assert len(tensor) == self.batch
            assert tensor.is_contiguous()
            assert tensor.dtype is torch.float32
        found = session.run(outputs, {name: tensors[name].numpy() for name in names})
        for name, value in zip(outputs, found, strict=True):
            tensors[name].copy_(torch.from_numpy(value))
        self.engine.batches.append(self.batch)


@pytest.fixture
def explainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes explainers whose backend is "tensorrt", with stand-ins for its engines."""
    if importlib.util.find_spec("cae_fast._C_emu") is None:
        skip_without("emu", "the emulator is not built: CAE_CMAKE_ARGS=-DCAE_EMU=ON")

    def make(
        model: cf.CAE,
        classifier: Any,
        *,
        max_batch: int = 4,
        precision: str = "fp32",
        **options: Any,
    ) -> cf.Explainer:
        parts = ("encoder", "decoder")
        encoder, decoder = (StandIn(model, part, max_batch, precision) for part in parts)
        backend = TensorRTBackend(
            model,
            index=None,
            max_batch=max_batch,
            precision=precision,
            networks=(encoder, decoder),
        )
        monkeypatch.setattr("cae_fast.explainer.select_backend", lambda *_, **__: backend)
        explainer = cf.Explainer(model, classifier, backend="tensorrt", **options)
        monkeypatch.undo()
        return explainer

    return make


@pytest.mark.parametrize("search", ["bisection", "margin"])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_finds_what_the_cpu_finds(explainer: Any, count: int, search: str) -> None:
    """Whole groups, a rest of another batch size, and one image, whose rounds shrink."""
    world = World(count, flip=0.37)
    found = explainer(world.model, world.classifier).explain(
        world.images, target=1, exemplars=world.ends, search=search
    )
    expected = world.explainer(backend="cpu").explain(
        world.images, target=1, exemplars=world.ends, search=search
    )
    assert set(found.status) == {"flipped"}
    assert found.meta["backend"] == "tensorrt"
    np.testing.assert_array_equal(found.status, expected.status)
    assert np.abs(found.t_flip - expected.t_flip).max() <= 1 / 256
    for name in ("counterfactual", "reconstruction"):
        assert relative_error(getattr(found, name), getattr(expected, name)) < 1e-2  # a step apart
    same = found.t_flip == expected.t_flip
    assert same.mean() > 0.5
    assert relative_error(found.counterfactual[same], expected.counterfactual[same]) < 1e-5
    off = np.linalg.norm(found.difference[same] - expected.difference[same])
    assert off / np.linalg.norm(expected.counterfactual[same]) < 1e-5


def test_half_precision_is_within_the_table(explainer: Any) -> None:
    world = World(4, flip=0.5)
    half = explainer(world.model, world.classifier, precision="fp16")
    codes, exact = half.encode(world.images), world.explainer(backend="cpu").encode(world.images)
    assert 1e-6 < relative_error(codes.individual, exact.individual) < 3e-3
    path = half.path(world.images, world.ends, [0, 0.3, 1])
    expected = world.explainer(backend="cpu").path(world.images, world.ends, [0, 0.3, 1])
    assert 1e-6 < relative_error(path, expected) < 3e-3
    assert half.backend.dtype == "float16"


def test_exemplars_of_a_bank_frames_and_rejected_images(explainer: Any) -> None:
    world = World(5)
    images = world.images.copy()
    images[2, 0, 0, 0] = np.nan
    bank = world.bank()
    options: dict[str, Any] = {"k": 2, "frames": 3}
    found = explainer(world.model, world.classifier, bank=bank).explain(images, **options)
    expected = world.explainer(bank=bank, backend="cpu").explain(images, **options)
    assert found.status[2] == "rejected"
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.exemplar, expected.exemplar)
    good = [0, 1, 3, 4]
    assert relative_error(found.path_images[good], expected.path_images[good]) < 1e-5


def test_engines_run_in_batches_no_larger_than_they_are_for(explainer: Any) -> None:
    model = toy_model()
    made = explainer(model, toy_classifier(model.config), max_batch=3)
    codes = made.encode(random_images(model.config, 7))
    assert made.backend._encoder.batches == [3, 3, 1]
    decoded = made.decode(codes.individual, codes.class_code)
    assert made.backend._decoder.batches == [3, 3, 1]
    plain = cf.Explainer(model, toy_classifier(model.config), backend="cpu")
    assert relative_error(decoded, plain.decode(codes.individual, codes.class_code)) < 1e-5


def test_pictures_that_are_not_finite_are_found_out(explainer: Any) -> None:
    """What the native decoder reports of its pixels is asked of the engine's pictures here."""
    world = World(3)
    made = explainer(world.model, world.classifier)
    run = made.backend._decoder.session.run

    class Poisoned:
        get_inputs = made.backend._decoder.session.get_inputs
        get_outputs = made.backend._decoder.session.get_outputs

        @staticmethod
        def run(names: list[str], feed: dict[str, Any]) -> list[Any]:
            (images,) = run(names, feed)
            images[0, 0, 3, 3] = np.inf
            return [images]

    made.backend._decoder.session = Poisoned
    result = made.explain(world.images, target=1, exemplars=world.ends)
    assert result.meta["computed_in_float32"]  # searched once more on the CPU, as it overflowed
    assert set(result.status) == {"flipped"}


def test_native_decoder_is_refused_where_networks_are_elsewhere(explainer: Any) -> None:
    model = toy_model()
    backend = explainer(model, toy_classifier(model.config)).backend
    options = {"images": 2, "num_classes": 3, "grid": 4}
    search = backend.module.GpuSearch(backend.engine, None, **options, elsewhere=True)
    with pytest.raises(ValueError, match="place"):
        search.decode(0)
    with pytest.raises(ValueError, match="round must be in"):
        search.place(search.rounds)
    own = backend.module.GpuSearch(backend.engine, None, **options)
    with pytest.raises(ValueError, match="decode"):
        own.place(0)
