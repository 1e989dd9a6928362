# SPDX-License-Identifier: Apache-2.0
"""Backends by name, and that they compute the same at awkward sizes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import cae_fast as cf
from cae_fast.arrays import to_numpy
from cae_fast.backends import default_max_batch, select_backend
from cae_fast.testing import TOLERANCE, random_images, relative_error, toy_model


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Threads of torch that wait for each other take seconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"image_size": 20, "in_channels": 3, "num_blocks": 2, "code_dim": 1, "num_classes": 2},
        {"image_size": 36, "in_channels": 4, "channels": 3, "modulation_width": 5},
    ],
    ids=["toy", "20px", "36px"],
)
def test_cpu_and_torch_agree(config: dict[str, Any]) -> None:
    model = toy_model(**config)
    images = random_images(model.config, 5)
    exact = select_backend("torch", model, precision="fp64", max_batch=2)
    individual, codes = exact.encode(images)
    ends = codes[::-1] + 0.5
    vertices = np.stack([codes, ends], axis=1)
    index, step = np.array([4, 0, 4, 2, 1], np.int32), np.array([0, 16, 7, 1, 15], np.int32)
    expected = to_numpy(exact.session(individual, vertices, 16).decode(index, step))
    for name in ("cpu", "torch"):
        backend = select_backend(name, model, max_batch=2)
        own, own_codes = backend.encode(images)
        assert relative_error(to_numpy(own), to_numpy(individual)) < TOLERANCE[name]
        assert relative_error(own_codes, codes) < TOLERANCE[name]
        np.testing.assert_array_equal(backend.encode_class(images), own_codes)
        decoded = backend.session(own, vertices, 16).decode(index, step)
        assert relative_error(to_numpy(decoded), expected) < TOLERANCE[name]
        again = backend.decode(own, vertices[index[[0, 1]], [0, 1]], index[[0, 1]])
        assert relative_error(to_numpy(again), expected[[0, 1]]) < TOLERANCE[name]


def test_attributes() -> None:
    model = toy_model()
    cpu = select_backend("auto", model, device="cpu", max_batch=3)
    assert (cpu.name, cpu.device, cpu.dtype, cpu.max_batch) == ("cpu", "cpu", "float32", 3)
    exact = select_backend("torch", model, precision="float64")
    assert (exact.name, exact.device, exact.dtype) == ("torch", "cpu", "float64")
    assert exact.max_batch == default_max_batch(model.config) == 64
    # A CPU decodes nothing that it need not; what has no time of its own per decode takes it all.
    assert cpu.coarse_batch == exact.coarse_batch == 1
    assert select_backend("torch", model, device="meta").coarse_batch is None
    assert default_max_batch(cf.CAEConfig()) == 8
    assert default_max_batch(cf.CAEConfig(image_size=4096)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "gpu"}, "backend must be one of auto, cpu"),
        ({"name": "cpu", "precision": "fp8"}, "precision must be one of"),
        (
            {"name": "cpu", "precision": "fp16"},
            "'fp16' needs backend='cuda' or 'tensorrt'; 'cpu' computes in fp32",
        ),
        ({"name": "torch", "precision": "fp16"}, "'fp16' needs backend='cuda'"),
        ({"name": "cuda", "precision": "fp32"}, "'fp32' needs backend='cpu' or 'torch'; 'cuda'"),
        ({"name": "cuda", "precision": "exact"}, "'exact' needs backend='cpu' or 'torch'; 'cuda'"),
        ({"name": "cuda", "precision": "fp64", "device": "emu"}, "'fp64' needs backend='torch'"),
        ({"name": "cuda", "device": "cpu"}, "device must be 'cuda', 'cuda:N' or N"),
        ({"name": "cuda", "device": "cuda:-1"}, "device must be 'cuda', 'cuda:N' or N"),
        ({"name": "cuda", "device": "cuda:1x"}, "device must be 'cuda', 'cuda:N' or N"),
        ({"name": "auto", "device": "cuda:99999"}, "device must be 'cuda', 'cuda:N' or N"),
        ({"name": "cpu", "device": "emu"}, "device must be 'cpu' for backend 'cpu'"),
        ({"name": "tensorrt", "precision": "fp64"}, "'tensorrt' computes in fp16 and fp32"),
        ({"name": "tensorrt", "device": "emu"}, "device must be 'cuda', 'cuda:N' or N"),
        ({"name": "cpu", "precision": "fp64"}, "needs backend='torch'"),
        ({"name": "cpu", "device": "cuda:0"}, "device must be 'cpu'"),
        ({"name": "auto", "device": "mps"}, "device must be 'cpu'"),
        ({"name": "cpu", "max_batch": 0}, "max_batch must be"),
        ({"name": "cpu", "max_batch": True}, "max_batch must be"),
        ({"name": "cpu", "max_batch": 2.0}, "max_batch must be"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_backend(model=toy_model(), **options)


def test_device_that_torch_cannot_use() -> None:
    with pytest.raises(cf.BackendUnavailable, match="torch cannot use device 'nonsense'"):
        select_backend("torch", toy_model(), device="nonsense")


def test_missing_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cae_fast.backends.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(cf.MissingExtra, match=r"cae_fast\[torch\]"):
        select_backend("torch", toy_model())
