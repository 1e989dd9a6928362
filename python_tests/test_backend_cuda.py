# SPDX-License-Identifier: Apache-2.0
"""The cuda backend's numbers, on a GPU and in the emulator of its kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_authors import fixture_state

import cae_fast as cf
from cae_fast import ops
from cae_fast.arrays import as_kind, is_device_array, kind_of, like, to_numpy
from cae_fast.backends import Backend, select_backend
from cae_fast.backends.cuda import CudaBackend
from cae_fast.model import CAE
from cae_fast.testing import TOLERANCE, random_images, relative_error, toy_model

torch = pytest.importorskip("torch")

CASES: list[dict[str, int]] = [
    {"in_channels": 2, "channels": 4, "code_dim": 8},
    {"image_size": 20, "in_channels": 3, "channels": 3, "code_dim": 1},
    {"in_channels": 1, "channels": 8, "num_blocks": 2, "code_dim": 9, "modulation_width": 5},
    {"in_channels": 4, "channels": 16, "code_dim": 3},
    {"image_size": 28, "channels": 1, "code_dim": 2},
    {"image_size": 36, "in_channels": 3, "channels": 5, "code_dim": 8},
    {"image_size": 52, "in_channels": 2, "channels": 12, "code_dim": 3},
]
LIMIT = TOLERANCE["cuda-fp16"]


def name(fields: dict[str, int]) -> str:
    return "-".join(f"{key}{value}" for key, value in fields.items())


def make(model: CAE, device: str, max_batch: int = 4) -> Backend:
    return select_backend("cuda", model, device=device, max_batch=max_batch)


def exact_network(model: CAE) -> Backend:
    return select_backend("torch", model, precision="fp64", max_batch=4)


def difference_error(one: Any, other: Any, exact_one: Any, exact_other: Any) -> float:
    """Error of the difference of two images, relative to the norm of the first."""
    error = (one.astype(np.float64) - other) - (exact_one - exact_other)
    return float(np.linalg.norm(error) / np.linalg.norm(exact_one))


@pytest.mark.parametrize("fields", CASES, ids=name)
def test_agrees_with_float64(fields: dict[str, int], gpu: str) -> None:
    """Codes and images of the whole network, and the differences that decoding makes."""
    model = toy_model(**fields)
    backend, exact = make(model, gpu), exact_network(model)
    images = random_images(model.config, 2)
    individual, codes = backend.encode(images)
    expected_individual, expected_codes = exact.encode(images)
    assert relative_error(to_numpy(individual), to_numpy(expected_individual)) < LIMIT
    assert relative_error(codes, expected_codes) < LIMIT
    np.testing.assert_array_equal(backend.encode_class(images[1:]), codes[1:])

    ends = codes[::-1] + np.float32(0.5)
    index, step = np.array([1, 1, 0], np.int32), np.array([0, 16, 7], np.int32)
    lines = np.stack([codes, ends], axis=1)
    decoded = to_numpy(backend.session(individual, lines, 16).decode(index, step))
    exact_lines = np.stack([expected_codes, ends], axis=1)
    whole = exact.session(expected_individual, exact_lines, 16).decode(index, step)
    assert relative_error(decoded, to_numpy(whole)) < LIMIT
    # Differences lie between images of the same codes: what encoding got wrong is in both.
    own = to_numpy(exact.session(to_numpy(individual), lines, 16).decode(index, step))
    assert relative_error(decoded, own) < LIMIT
    assert difference_error(decoded[0], decoded[1], own[0], own[1]) < LIMIT


@pytest.mark.shared
@pytest.mark.slow
def test_authors_checkpoint(shared_dir: Path, tmp_path: Path, gpu: str) -> None:
    """The decoder with the fixture's weights: image and difference image."""
    keys = shared_dir / "fixtures" / "authors_checkpoint" / "keys.csv"
    torch.save({"ab": fixture_state(keys, 1000)}, tmp_path / "gen.pt")
    size = 16 if gpu == "emu" else 256
    model = cf.CAE.from_authors(tmp_path / "gen.pt", image_size=size)
    exact = exact_network(model)
    individual, start = exact.encode(random_images(model.config, 1))
    end = start + np.random.default_rng(0).normal(0, 1, start.shape)
    codes, index = np.concatenate([start, end]).astype(np.float32), np.zeros(2, np.int32)
    source = to_numpy(individual).astype(np.float32)
    decoded = to_numpy(make(model, gpu, max_batch=2).decode(source, codes, index))
    expected = to_numpy(exact.decode(source, codes, index))
    assert relative_error(decoded, expected) < LIMIT
    assert difference_error(decoded[0], decoded[1], expected[0], expected[1]) < LIMIT


@pytest.mark.parametrize("max_batch", [1, 2])
def test_results_depend_on_no_batch(max_batch: int, gpu: str) -> None:
    """Bit for bit the same in batches of one, in others' company, and at the end of a batch."""
    model = toy_model(channels=3)
    images = random_images(model.config, 3)
    whole, parts = make(model, gpu, max_batch=8), make(model, gpu, max_batch)
    individual, codes = whole.encode(images)
    some, some_codes = parts.encode(images[1:])
    np.testing.assert_array_equal(to_numpy(some), to_numpy(individual)[1:])
    np.testing.assert_array_equal(some_codes, codes[1:])
    index, step = np.array([2, 0, 2, 1], np.int32), np.array([3, 0, 8, 5], np.int32)
    lines = np.stack([codes, codes + 1], axis=1)
    decoded = to_numpy(whole.session(individual, lines, 8).decode(index, step))
    session = parts.session(some, lines[1:], 8)
    again = to_numpy(session.decode(index[[3, 0]] - 1, step[[3, 0]]))
    np.testing.assert_array_equal(again, decoded[[3, 0]])
    points = ops.path_codes(lines, index, step, grid=8)
    same = parts.decode(individual, points[2:], index[2:])
    np.testing.assert_array_equal(to_numpy(same), decoded[2:])


def test_nothing_in_nothing_out(gpu: str) -> None:
    model = toy_model()
    backend = make(model, gpu)
    individual, codes = backend.encode(random_images(model.config, 0))
    assert (individual.shape, codes.shape) == ((0, *model.config.individual_shape), (0, 4))
    assert backend.encode_class(random_images(model.config, 0)).shape == (0, 4)
    none = np.zeros(0, np.int32)
    assert to_numpy(backend.decode(individual, codes, none)).shape == (0, 1, 16, 16)
    session = backend.session(individual, codes[:, None], 4)
    assert to_numpy(session.decode(none, none)).shape == (0, 1, 16, 16)


def test_attributes(gpu: str) -> None:
    backend = make(toy_model(), gpu, max_batch=3)
    assert (backend.name, backend.device, backend.max_batch) == ("cuda", gpu, 3)
    assert (backend.dtype, backend.precision, backend.coarse_batch) == ("float16", "fp16", None)
    assert select_backend("auto", toy_model(), device=gpu, precision="fp16").name == "cuda"
    codes = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(
        backend.lerp_codes(codes, codes + 1, np.array([0.25], np.float32)), codes + 0.25
    )


def test_arrays_of_the_device(gpu: str) -> None:
    """Into NumPy by a copy, into torch by sharing memory, where that is the device's."""
    model = toy_model()
    backend = make(model, gpu)
    individual, codes = backend.encode(random_images(model.config, 1))
    images = backend.decode(individual, codes, np.zeros(1, np.int32))
    assert is_device_array(images)
    assert kind_of(images) == "numpy"
    host = to_numpy(images)
    assert isinstance(host, np.ndarray)
    assert host.flags.writeable
    np.testing.assert_array_equal(as_kind(images, "numpy"), host)
    tensor = as_kind(images, "torch")
    assert tensor.device.type == ("cpu" if gpu == "emu" else "cuda")
    np.testing.assert_array_equal(tensor.cpu().numpy(), host)
    for stream in (None, -1, 1):
        assert torch.from_dlpack(images).equal(tensor)
        images.__dlpack__(stream=stream)
    for stream in (0, -2, "1", 1.5):
        with pytest.raises((ValueError, TypeError), match="stream"):
            images.__dlpack__(stream=stream)
    tensor[0] = 0.25
    assert (to_numpy(images) == 0.25).all()
    part = as_kind(images.rows(0, 1), "torch")
    moved = like(images, torch.zeros(1))
    assert moved.device.type == "cpu"
    assert isinstance(like(images, host), np.ndarray)
    assert not is_device_array(host)
    assert not is_device_array(tensor)
    del images, tensor, individual, backend
    assert (part == 0.25).all()  # memory lives as long as somebody looks at it


@pytest.mark.cuda
def test_who_takes_an_array_waits_for_it() -> None:
    """Codes queued on one stream and read on another, by DLPack, without a wait of the host."""
    model = toy_model(channels=16, image_size=64)
    backend = make(model, "cuda:0", 64)
    assert isinstance(backend, CudaBackend)
    images = torch.from_numpy(random_images(model.config, 64)).cuda()
    wanted = backend.encode(images)[1]
    torch.cuda.synchronize()
    writer, reader = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(5):
        codes = backend.engine.encode(images, stream=writer.cuda_stream)[1]
        with torch.cuda.stream(reader):
            taken = torch.from_dlpack(codes).clone()
        reader.synchronize()
        np.testing.assert_array_equal(taken.cpu().numpy(), wanted)


def test_any_layout_goes_in(gpu: str) -> None:
    """Torch tensors that are strided, misaligned, or carry gradients, wherever they are."""
    model = toy_model(in_channels=2)
    backend = make(model, gpu)
    images = random_images(model.config, 1)
    individual, codes = backend.encode(images)
    expected = to_numpy(individual)
    place = "cpu" if gpu == "emu" else gpu
    flat = torch.empty(images.size + 1, device=place)
    flat[1:] = torch.from_numpy(images).to(place).flatten()
    strided = torch.from_numpy(images.transpose(3, 2, 1, 0).copy()).to(place).permute(3, 2, 1, 0)
    layouts = (flat[1:].reshape(images.shape), strided.requires_grad_())
    for tensor in layouts:
        again, again_codes = backend.encode(tensor)
        np.testing.assert_array_equal(to_numpy(again), expected)
        np.testing.assert_array_equal(again_codes, codes)
    zero = np.zeros(1, np.int32)
    decoded = to_numpy(backend.decode(individual, codes, zero))
    for source in (expected, torch.from_numpy(expected).to(place), expected[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(to_numpy(backend.decode(source, codes, zero)), decoded)


@pytest.mark.parametrize("size", [1e-6, 1e-30, 1e-41])
def test_channels_that_are_nearly_dead_do_not_overflow(gpu: str, size: float) -> None:
    """Weights far below their bias, scaled to unit norm, would carry the bias beyond halves."""
    model = toy_model()
    weights = {name: value.copy() for name, value in model.weights.items()}
    weights["class_encoder.conv1.weight"][0] *= np.float32(size)
    weights["class_encoder.conv1.bias"][0] = 0.5
    weights["decoder.up0.weight"] *= np.float32(size)
    weights["decoder.up0.bias"][:] = np.linspace(-1, 1, len(weights["decoder.up0.bias"]))
    weights["decoder.block0.conv1.weight"][1] *= np.float32(size)
    model = cf.CAE(model.config, weights)
    images = random_images(model.config, 2)
    backend = select_backend("cuda", model, device=gpu, max_batch=2)
    exact = select_backend("cpu", model, max_batch=2)
    _, codes = backend.encode(images)
    individual, expected = exact.encode(images)
    assert relative_error(codes, expected) < LIMIT
    rows = np.arange(2, dtype=np.int32)
    decoded = to_numpy(backend.decode(individual, expected, rows))
    assert relative_error(decoded, exact.decode(individual, expected, rows)) < LIMIT


@pytest.mark.parametrize("conv", ["portable", "auto"])
def test_launches_may_overlap(conv: str, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, with the same bits; each kernel waits, or the emulator would say so."""
    model = toy_model(channels=24, in_channels=3)
    images = random_images(model.config, 3)
    index, step = np.array([2, 0, 1], np.int32), np.array([3, 0, 8], np.int32)
    monkeypatch.setenv("CAE_GPU_CONV", conv)
    results = []
    for overlap, arch in (("0", "90"), ("1", "90"), ("1", "80")):
        monkeypatch.setenv("CAE_GPU_OVERLAP", overlap)
        monkeypatch.setenv("CAE_EMU_ARCH", arch)
        backend = make(model, gpu)
        assert isinstance(backend, CudaBackend)
        module: Any = backend.module
        if gpu == "emu":
            module.reset_launch_counts()
        individual, codes = backend.encode(images)
        lines = np.stack([codes, codes + 1], axis=1)
        decoded = backend.session(individual, lines, 8).decode(index, step)
        again = backend.decode(individual, codes, index)
        results.append([to_numpy(individual), codes, to_numpy(decoded), to_numpy(again)])
        if gpu == "emu":
            overlapping = overlap == "1" and arch == "90"
            assert backend.engine.overlap == overlapping
            for name, count in module.launch_counts().items():
                assert count["overlapped"] == (count["launches"] if overlapping else 0), name
    same = results[1:] if conv == "portable" else results[1:2]  # the last has another path
    for result in same:
        for got, plain in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got, plain)
    monkeypatch.setenv("CAE_GPU_OVERLAP", "2")
    with pytest.raises(ValueError, match="CAE_GPU_OVERLAP must be 0 or 1, got 2"):
        make(model, gpu)


def test_every_kind_of_gpu_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the shared memory of each; blocks may be wider or narrower, what comes out is not.

    But for compute capability 9.0, where products are added in another order.
    """
    model = toy_model(channels=24, in_channels=3)
    images = random_images(model.config, 3)
    codes = np.random.default_rng(1).normal(0, 1, (3, 4)).astype(np.float32)
    index = np.arange(3, dtype=np.int32)
    results = []
    for arch, conv, kilobytes in (
        ("90", "portable", 227),
        ("80", "portable", 163),
        ("86", "portable", 99),
        ("120", "portable", 99),
        ("90", "wgmma", 227),
    ):
        monkeypatch.setenv("CAE_EMU_ARCH", arch)
        monkeypatch.setenv("CAE_GPU_CONV", "auto" if arch != "90" else conv)
        backend = make(model, "emu")
        assert isinstance(backend, CudaBackend)
        assert backend.engine.conv_path == conv
        module: Any = backend.module
        module.reset_launch_counts()
        individual, class_code = backend.encode(images)
        results.append((class_code, to_numpy(backend.decode(individual, codes, index))))
        asked = {name: count["shared_bytes"] for name, count in module.launch_counts().items()}
        assert 48 * 1024 < max(asked.values()) <= kilobytes * 1024, asked
    for got, portable in zip(results.pop(), results[0], strict=True):
        assert relative_error(got, portable) < LIMIT
        assert not np.array_equal(got, portable)
    for class_code, decoded in results[1:]:
        np.testing.assert_array_equal(class_code, results[0][0])
        np.testing.assert_array_equal(decoded, results[0][1])
    monkeypatch.setenv("CAE_EMU_ARCH", "75")
    with pytest.raises(ValueError, match="CAE_EMU_ARCH must be"):
        make(model, "emu")
