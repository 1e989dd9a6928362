# SPDX-License-Identifier: Apache-2.0
"""What the extension takes as an array: kinds, layouts, dtypes, devices; it keeps none of them."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cae_fast import _backend, ops
from cae_fast.testing import random_images, toy_model

MODEL = toy_model(in_channels=3)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def engine() -> _backend.Engine:
    return _backend.Engine(MODEL.config.to_dict(), dict(MODEL.weights), max_batch=2)


class WithInterface:
    """Carries the array interface and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = array.__array_interface__
        self.kept = array


class WithDLPack:
    """Carries DLPack and nothing else; device and capsule can be set."""

    def __init__(self, array: np.ndarray, *, device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        return self.array.__dlpack__()


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(np.float32).reshape(array.shape)
    view[...] = array
    return view


LAYOUTS = {
    "as it is": lambda a: a,
    "read-only": read_only,
    "Fortran order": np.asfortranarray,
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "negative strides": lambda a: a[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1],
    "channels last": lambda a: a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "unaligned": unaligned,
    "array interface": WithInterface,
    "array interface, strided": lambda a: WithInterface(np.asfortranarray(a)),
    "DLPack": WithDLPack,
    "DLPack, strided": lambda a: WithDLPack(np.asfortranarray(a)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_change_a_result(engine: _backend.Engine, layout: str) -> None:
    images = random_images(MODEL.config, 2)
    before = images.copy()
    expected = engine.encode(images)
    value = engine.encode(LAYOUTS[layout](images))
    np.testing.assert_array_equal(value[0], expected[0])
    np.testing.assert_array_equal(value[1], expected[1])
    np.testing.assert_array_equal(images, before)


@given(
    shape=st.tuples(*[st.integers(0, 4)] * 4),
    axes=st.permutations(range(4)),
    steps=st.tuples(*[st.sampled_from([1, 2, -1, -3])] * 4),
)
def test_any_strides(shape: tuple[int, ...], axes: list[int], steps: tuple[int, ...]) -> None:
    big = normal(tuple(3 * size for size in shape)).transpose(axes)
    view = big[tuple(slice(None, None, step) for step in steps)]
    zeros = np.zeros(view.shape, np.float32)
    for kind in (np.asarray, WithInterface, WithDLPack):
        difference, _ = ops.difference_saliency(kind(view), zeros)
        np.testing.assert_array_equal(difference, view)


def test_broadcast_array() -> None:
    code = np.broadcast_to(normal((1, 4)), (3, 4))
    value = ops.lerp_codes(code, code, np.zeros(3, np.float32))
    np.testing.assert_array_equal(value, code)


def test_huge_shape_is_refused_before_it_is_copied(engine: _backend.Engine) -> None:
    """A broadcast view of 2^40 elements costs nothing until somebody copies it."""
    huge = np.broadcast_to(np.float32(0), (2**20, 2**20))
    with pytest.raises(ValueError, match=r"images must be \[N, 3, 16, 16\], got \[1048576, 1048"):
        engine.encode(huge)
    with pytest.raises(ValueError, match="start must be"):
        ops.lerp_codes(huge[None], huge, np.zeros(1, np.float32))


def test_memory_that_cannot_be_had_is_a_memory_error(engine: _backend.Engine) -> None:
    individual = np.zeros((1, *MODEL.config.individual_shape), np.float32)
    count = 2**44
    codes = np.broadcast_to(np.float32(0), (count, MODEL.config.code_dim))
    index = np.broadcast_to(np.int32(0), (count,))
    with pytest.raises(MemoryError):
        engine.decode(individual, codes, index)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for left, right in [(a, b), (a.to(memory_format=torch.channels_last), b), (a[:, 1:], b[:, 1:])]:
        difference, _ = ops.difference_saliency(left, right)
        assert isinstance(difference, np.ndarray)
        np.testing.assert_array_equal(difference, (left - right).numpy())
    with pytest.raises(ValueError, match="a must be float32"):
        ops.difference_saliency(a.double(), b)
    with pytest.raises(ValueError, match="a must be float32"):
        ops.difference_saliency(a.to(torch.bfloat16), b)
    with pytest.raises(ValueError, match="a cannot be exported by DLPack"):
        ops.difference_saliency(a.clone().requires_grad_(), b)
    with pytest.raises(ValueError, match="b cannot be exported by DLPack"):
        ops.difference_saliency(a, b.to("meta"))


@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "int32", "uint8", "bool", ">f4", "complex64"]
)
def test_other_dtypes_are_refused(engine: _backend.Engine, dtype: str) -> None:
    images = np.zeros((1, 3, 16, 16), dtype)
    with pytest.raises(ValueError, match=f"images must be float32, got {np.dtype(dtype)}"):
        engine.encode(images)
    with pytest.raises(ValueError, match="images must be float32, got"):
        engine.encode(WithInterface(images))


@pytest.mark.parametrize("dtype", ["int64", "uint32", "float32", "bool"])
def test_indices_are_int32(dtype: str) -> None:
    vertices = normal((1, 2, 3))
    step = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match=f"image_index must be int32, got {dtype}"):
        ops.path_codes(vertices, np.zeros(1, dtype), step, grid=4)
    with pytest.raises(ValueError, match="step must be int32"):
        ops.path_codes(vertices, step, WithDLPack(np.zeros(1, np.int64)), grid=4)


@pytest.mark.parametrize("value", [None, 1.0, "images", [[1.0]], object()], ids=str)
def test_what_is_no_array_is_refused(engine: _backend.Engine, value: object) -> None:
    with pytest.raises(ValueError, match="images must be an array .* got " + type(value).__name__):
        engine.encode(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [(2, 0), (8, 0), (10, 1)])
def test_other_devices_are_refused(engine: _backend.Engine, device: tuple[int, int]) -> None:
    images = WithDLPack(random_images(MODEL.config, 1), device=device)
    with pytest.raises(ValueError, match=f"images must be in CPU memory, .* type {device[0]}"):
        engine.encode(images)


def test_dlpack_that_returns_no_capsule(engine: _backend.Engine) -> None:
    class Broken(WithDLPack):
        def __dlpack__(self, **_: Any) -> Any:
            return 5

    with pytest.raises(ValueError, match="images: __dlpack__ must return"):
        engine.encode(Broken(normal((1, 3, 16, 16))))


class DLTensor(ctypes.Structure):
    """DLManagedTensor of the DLPack interface, as far as it is read."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": -1}, r"rank must be in 0\.\.32, got -1"),
        ({"rank": 2**31 - 1}, r"rank must be in 0\.\.32, got 2147483647"),
        ({"shape": None}, "without a shape"),
        ({"shape": [-1, 4]}, "size of dimension 0 must not be negative, got -1"),
        ({"shape": [2**32, 2**32]}, "more elements than memory"),
        ({"shape": [2**62, 1]}, "more elements than memory"),
        ({"data": None}, "without data"),
        ({"device_type": 2}, "must be in CPU memory"),
        ({"type_bits": 64}, "must be float32, got DLPack type code 2 with 64 bits"),
        ({"type_lanes": 4}, "must be float32"),
    ],
    ids=repr,
)
def test_dlpack_tensors_that_lie(change: dict[str, Any], message: str) -> None:
    memory = normal((2, 4))
    fields = {"device_type": 1, "rank": 2, "type_code": 2, "type_bits": 32, "type_lanes": 1}
    sizes = change.get("shape", [2, 4])
    tensor = DLTensor(
        data=change.get("data", memory.ctypes.data),
        shape=None if sizes is None else (ctypes.c_int64 * 2)(*sizes),
        **{name: change.get(name, value) for name, value in fields.items()},
    )
    make_capsule = ctypes.pythonapi.PyCapsule_New
    make_capsule.restype = ctypes.py_object
    make_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    class Liar:
        def __dlpack__(self, **_: Any) -> Any:
            return make_capsule(ctypes.addressof(tensor), b"dltensor", None)

    with pytest.raises(ValueError, match=f"start.*{message}"):
        ops.lerp_codes(Liar(), memory, np.zeros(2, np.float32))


def test_errors_of_dlpack_itself_pass_through(engine: _backend.Engine) -> None:
    class Broken(WithDLPack):
        def __dlpack__(self, **_: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.encode(Broken(normal((1, 3, 16, 16))))


def test_indices_may_change_during_the_call() -> None:
    """What has been checked is what is used: no later value is an address."""
    vertices = normal((1, 2, 3))
    index = np.zeros(200_000, np.int32)
    step = index.copy()
    stop = threading.Event()

    def change() -> None:
        while not stop.wait(0.0005):  # sound most of the time, or each call would be refused
            index.fill(2**30)
            index.fill(0)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(60):
            try:
                codes = ops.path_codes(vertices, index, step, grid=4)
            except ValueError:
                continue
            assert (codes == vertices[0, 0]).all()
    finally:
        stop.set()
        changer.join()


def test_arguments_may_be_the_same_memory() -> None:
    images = normal((2, 3, 4, 4))
    assert not ops.difference_saliency(images, images)[0].any()
    codes = normal((3, 4))
    np.testing.assert_array_equal(ops.lerp_codes(codes, codes, np.ones(3, np.float32)), codes)


def test_results_are_new_memory(engine: _backend.Engine) -> None:
    images = random_images(MODEL.config, 1)
    first = engine.encode(images)
    second = engine.encode(images)
    assert not np.shares_memory(first[0], second[0])
    assert first[0].flags.writeable
    assert first[0].flags.c_contiguous


@pytest.mark.parametrize("fails", [False, True])
def test_arguments_are_not_kept(engine: _backend.Engine, fails: bool) -> None:
    class Tracked(np.ndarray):
        pass

    for make in (lambda a: a, WithDLPack, WithInterface):
        array = random_images(MODEL.config, 1)[:, : 2 if fails else 3].view(Tracked)
        alive = weakref.ref(array)
        argument = make(array)
        if fails:
            with pytest.raises(ValueError, match="images must be"):
                engine.encode(argument)
        else:
            engine.encode(argument)
        del array, argument
        gc.collect()
        assert alive() is None


def test_no_memory_is_lost_over_many_calls(engine: _backend.Engine) -> None:
    """Refused and accepted arguments alike, through all three protocols."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    good = random_images(MODEL.config, 64)
    bad = np.zeros((64, 3, 16, 16))

    def calls(count: int) -> int:
        for _ in range(count):
            for make in (np.asfortranarray, WithDLPack, WithInterface):
                ops.difference_saliency(make(good), good)
                with pytest.raises(ValueError, match="a must be float32"):
                    ops.difference_saliency(make(bad), good)
        return int(process.memory_info().rss)

    before = calls(20)
    grown = calls(200) - before
    assert grown < 200 * good.nbytes / 4
