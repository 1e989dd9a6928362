# SPDX-License-Identifier: Apache-2.0
"""The native engine against the torch network in float64, at awkward sizes and batches."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cae_fast import _backend, ops
from cae_fast.model import CAE, CAEConfig
from cae_fast.testing import TOLERANCE, random_images, relative_error, toy_model

FloatArray = np.ndarray

AWKWARD: list[dict[str, int]] = [
    {"image_size": 16, "in_channels": 1, "channels": 1, "num_blocks": 1, "code_dim": 1},
    {"image_size": 16, "in_channels": 4, "channels": 16, "num_blocks": 1, "code_dim": 9},
    {"image_size": 20, "in_channels": 2, "channels": 3, "num_blocks": 2, "code_dim": 8},
    {"image_size": 36, "in_channels": 3, "channels": 5, "num_blocks": 3, "code_dim": 3},
    {"image_size": 52, "in_channels": 3, "channels": 24, "num_blocks": 1, "code_dim": 8},
    {"image_size": 100, "in_channels": 1, "channels": 2, "num_blocks": 1, "code_dim": 2},
]


def name(fields: dict[str, int]) -> str:
    return "-".join(f"{key}{value}" for key, value in fields.items())


@lru_cache(maxsize=4)
def cached_model(items: tuple[tuple[str, int], ...]) -> CAE:
    return toy_model(seed=1, **dict(items))


def make_engine(model: CAE, max_batch: int = 16, exact: bool = False) -> _backend.Engine:
    config, weights = model.config.to_dict(), dict(model.weights)
    return _backend.Engine(config, weights, max_batch=max_batch, exact=exact)


def make_codes(config: CAEConfig, count: int, seed: int = 0) -> FloatArray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, config.code_dim)).astype(np.float32)


def check_against_float64(model: CAE, exact: bool = False) -> None:
    """Every output against the specification; differences too, as a saliency map is one."""
    import torch

    network = model.module().double().eval()
    engine = make_engine(model, exact=exact)
    images = random_images(model.config, 2)
    codes = make_codes(model.config, 3)
    index = np.array([1, 0, 1], np.int32)
    individual, class_code = engine.encode(images)
    decoded = engine.decode(individual, codes, index)
    with torch.inference_mode():
        expected = [part.numpy() for part in network.encode(torch.from_numpy(images).double())]
        expected_images = network.decode(
            torch.from_numpy(individual[index]).double(), torch.from_numpy(codes).double()
        ).numpy()
    assert relative_error(individual, expected[0]) < TOLERANCE["cpu"]
    assert relative_error(class_code, expected[1]) < TOLERANCE["cpu"]
    assert relative_error(decoded, expected_images) < TOLERANCE["cpu"]
    difference = (decoded[0] - decoded[2]).astype(np.float64)
    error = np.linalg.norm(difference - (expected_images[0] - expected_images[2]))
    assert error / np.linalg.norm(expected_images[0]) < TOLERANCE["cpu"]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("fields", AWKWARD, ids=name)
def test_agrees_with_float64(fields: dict[str, int], exact: bool) -> None:
    pytest.importorskip("torch")
    check_against_float64(cached_model(tuple(fields.items())), exact)


@pytest.mark.parametrize("exact", [False, True])
def test_outputs_larger_than_caches(exact: bool) -> None:
    """Stored past the caches where the instruction set can; the same for 1 thread and for 3."""
    model = toy_model(image_size=256, in_channels=3, channels=16, num_blocks=1)
    engine = make_engine(model, exact=exact)
    images, codes = random_images(model.config, 1), make_codes(model.config, 1)
    index = np.zeros(1, np.int32)
    threads = _backend.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            _backend.set_num_threads(count)
            individual, class_code = engine.encode(images)
            results.append((individual, class_code, engine.decode(individual, codes, index)))
    finally:
        _backend.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    if not exact:
        direct = make_engine(model, exact=True)
        expected = direct.decode(results[0][0], codes, index)
        assert 0 < relative_error(results[0][2], expected) < TOLERANCE["cpu"]


@pytest.mark.parametrize("isa", _backend.cpu_isas()[:-1])
def test_slower_instruction_sets_agree_with_float64(isa: str) -> None:
    """In a child, as the choice is made once per process; the fastest set runs above."""
    pytest.importorskip("torch")
    script = (
        "import test_engine as t\n"
        f"assert t._backend.cpu_isa() == {isa!r}\n"
        "for i in (0, 2, 3, 4):\n"
        "    t.check_against_float64(t.cached_model(tuple(t.AWKWARD[i].items())))\n"
    )
    result = run_child(script, CAE_CPU_ISA=isa)
    assert result.returncode == 0, result.stderr


def test_unknown_instruction_set_is_an_error() -> None:
    script = "from cae_fast import _backend\nprint(_backend.cpu_isas())\n_backend.cpu_isa()\n"
    result = run_child(script, CAE_CPU_ISA="mmx")
    assert result.returncode != 0
    assert "ValueError: CAE_CPU_ISA must be one of" in result.stderr
    assert '"mmx"' in result.stderr
    assert "portable" in result.stdout


def test_missing_extension_says_how_to_build_it() -> None:
    script = (
        "import sys\n"
        "sys.modules['cae_fast._C'] = None\n"
        "import cae_fast\n"
        "try:\n    cae_fast.build_config()\nexcept ImportError as error:\n    print(error)\n"
    )
    result = run_child(script)
    assert result.returncode == 0, result.stderr
    assert "the compiled extension cae_fast._C cannot be imported" in result.stdout
    assert "pip install ." in result.stdout


def run_child(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parent)])
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# -- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_batch_does_not_change_a_result(count: int, max_batch: int) -> None:
    model = toy_model(channels=5, image_size=20, num_blocks=2)
    engine = make_engine(model, max_batch)
    images = random_images(model.config, count)
    individual, class_code = engine.encode(images)
    assert individual.shape == (count, *model.config.individual_shape)
    assert class_code.shape == (count, model.config.code_dim)
    index = np.arange(count, dtype=np.int32)[::-1].copy()
    decoded = engine.decode(individual, class_code, index)
    assert decoded.shape == images.shape
    for i in range(count):
        alone = make_engine(model, 1) if i == 0 else engine
        one_individual, one_code = alone.encode(images[i : i + 1])
        np.testing.assert_array_equal(one_individual[0], individual[i])
        np.testing.assert_array_equal(one_code[0], class_code[i])
        zero = np.zeros(1, np.int32)
        j = int(index[i])
        one = alone.decode(individual[j : j + 1], class_code[i : i + 1], zero)
        np.testing.assert_array_equal(one[0], decoded[i])


def test_class_codes_alone_are_the_same() -> None:
    model = toy_model(channels=3)
    engine = make_engine(model, 2)
    images = random_images(model.config, 3)
    np.testing.assert_array_equal(engine.encode_class(images), engine.encode(images)[1])


def test_large_images_go_one_by_one_with_the_same_result() -> None:
    """A model whose images do not fit a wave together, beside one image alone."""
    model = toy_model(image_size=256, channels=8, in_channels=3)
    images = random_images(model.config, 3)
    together = make_engine(model, 16).encode(images)
    alone = make_engine(model, 1).encode(images[2:])
    np.testing.assert_array_equal(together[0][2], alone[0][0])
    np.testing.assert_array_equal(together[1][2], alone[1][0])


def test_nan_stays_in_its_image() -> None:
    model = toy_model()
    engine = make_engine(model)
    images = random_images(model.config, 3)
    clean = engine.encode(images)
    images[1, 0, 5, 5] = np.nan
    broken = engine.encode(images)
    for one, other in zip(clean, broken, strict=True):
        assert np.isnan(other[1]).any()
        np.testing.assert_array_equal(one[[0, 2]], other[[0, 2]])
    decoded = engine.decode(broken[0], clean[1], np.arange(3, dtype=np.int32))
    assert np.isnan(decoded[1]).any()
    assert np.isfinite(decoded[[0, 2]]).all()


# -- sessions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vertex_count", [1, 2, 4])
def test_session_equals_decode_of_the_path_codes(vertex_count: int) -> None:
    model = toy_model(num_blocks=2)
    engine = make_engine(model, 2)
    individual, _ = engine.encode(random_images(model.config, 3))
    vertices = make_codes(model.config, 3 * vertex_count).reshape(3, vertex_count, -1)
    session = engine.session(individual, vertices, 8)
    index = np.array([2, 0, 1, 2, 2], np.int32)
    step = np.array([8, 0, 3, 5, 1], np.int32)
    decoded = session.decode(index, step)
    codes = ops.path_codes(vertices, index, step, grid=8)
    np.testing.assert_array_equal(decoded, engine.decode(individual, codes, index))
    np.testing.assert_array_equal(session.decode(index[3:4], step[3:4])[0], decoded[3])
    assert session.decode(index[:0], step[:0]).shape == (0, *decoded.shape[1:])


def test_session_outlives_its_engine_and_its_arrays() -> None:
    model = toy_model()
    engine = make_engine(model)
    individual, codes = engine.encode(random_images(model.config, 1))
    vertices = np.stack([codes, codes + 1], axis=1)
    session = engine.session(individual, vertices, 4)
    zero = np.zeros(1, np.int32)
    expected = engine.decode(individual, codes, zero)
    individual[:] = 0
    vertices[:] = 0
    del engine
    np.testing.assert_array_equal(session.decode(zero, zero), expected)


def test_session_of_no_images() -> None:
    model = toy_model()
    engine = make_engine(model)
    shape = (0, *model.config.individual_shape)
    vertices = np.zeros((0, 2, model.config.code_dim), np.float32)
    session = engine.session(np.zeros(shape, np.float32), vertices, 4)
    none = np.zeros(0, np.int32)
    assert session.decode(none, none).shape[0] == 0
    with pytest.raises(ValueError, match="image_index must be in"):
        session.decode(np.zeros(1, np.int32), np.zeros(1, np.int32))


# -- errors -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy() -> tuple[CAE, _backend.Engine]:
    model = toy_model()
    return model, make_engine(model)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 12, r"image_size must be in 16\.\.65536, got 12"),
        ("image_size", 18, "image_size must be a multiple of 4, got 18"),
        ("image_size", True, "image_size must be an integer, got True"),
        ("image_size", 10**30, "image_size is out of range"),
        ("in_channels", 5, r"in_channels must be in 1\.\.4, got 5"),
        ("channels", 0, "channels must be in"),
        ("num_blocks", 0, "num_blocks must be in"),
        ("code_dim", -1, "code_dim must be in"),
        ("modulation_width", 1.5, "modulation_width must be an integer, got 1.5"),
        ("channels", np.True_, "channels must be an integer, got True"),
        ("channels", "4", "channels must be an integer, got 4"),
    ],
)
def test_bad_config(toy: tuple[CAE, Any], field: str, value: object, message: str) -> None:
    config = {**toy[0].config.to_dict(), field: value}
    with pytest.raises(ValueError, match=message):
        _backend.Engine(config, dict(toy[0].weights))


def test_integers_of_numpy_are_integers(toy: tuple[CAE, Any]) -> None:
    config = {
        field: np.int64(value) if isinstance(value, int) else value
        for field, value in toy[0].config.to_dict().items()
    }
    engine = _backend.Engine(config, dict(toy[0].weights), max_batch=np.int32(2))
    individual, codes = engine.encode(random_images(toy[0].config, 1))
    session = engine.session(individual, codes[None], np.uint8(4))
    assert session.decode(np.zeros(1, np.int32), np.zeros(1, np.int32)).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("value", [2**70, -(2**70)])
def test_integers_of_any_size_are_answered(toy: tuple[CAE, Any], value: int) -> None:
    model, engine = toy
    individual, codes = engine.encode(random_images(model.config, 1))
    index = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match=f"max_batch is out of range: {value}$"):
        _backend.Engine(model.config.to_dict(), dict(model.weights), max_batch=value)
    with pytest.raises(ValueError, match=f"grid is out of range: {value}$"):
        engine.session(individual, codes[None], value)
    with pytest.raises(ValueError, match=f"grid is out of range: {value}$"):
        ops.path_codes(codes[None], index, index, grid=value)


def test_config_without_a_field(toy: tuple[CAE, Any]) -> None:
    config = toy[0].config.to_dict()
    del config["channels"]
    with pytest.raises(ValueError, match="config lacks the field channels"):
        _backend.Engine(config, dict(toy[0].weights))


def test_all_faults_of_the_weights_are_listed(toy: tuple[CAE, Any]) -> None:
    weights = dict(toy[0].weights)
    del weights["decoder.out.bias"]
    weights["class_encoder.conv0.weight"] = np.zeros((4, 1, 3, 3), np.float32)
    weights["extra"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        _backend.Engine(toy[0].config.to_dict(), weights)
    message = str(caught.value)
    assert "decoder.out.bias is missing" in message
    assert "class_encoder.conv0.weight must be [4, 1, 7, 7], got [4, 1, 3, 3]" in message
    assert "extra is unknown" in message


def test_weights_are_refused_before_any_is_copied(toy: tuple[CAE, Any]) -> None:
    """A broadcast view of 2^40 elements costs nothing until somebody copies it."""
    huge = np.broadcast_to(np.float32(0), (2**20, 2**20))
    for name in ("decoder.out.bias", "extra"):
        with pytest.raises(ValueError, match=f"{name} (is unknown|must be)"):
            _backend.Engine(toy[0].config.to_dict(), {**toy[0].weights, name: huge})


@pytest.mark.parametrize("max_batch", [0, -1])
def test_bad_max_batch(toy: tuple[CAE, Any], max_batch: int) -> None:
    with pytest.raises(ValueError, match=f"max_batch must be at least 1, got {max_batch}"):
        _backend.Engine(toy[0].config.to_dict(), dict(toy[0].weights), max_batch=max_batch)


def test_bad_calls(toy: tuple[CAE, _backend.Engine]) -> None:
    model, engine = toy
    images = random_images(model.config, 2)
    individual, codes = engine.encode(images)
    index = np.zeros(2, np.int32)
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 16, 16\], got \[1, 16, 16\]"):
        engine.encode(images[0])
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 16, 16\], got \[2, 16, 16, 1\]"):
        engine.encode_class(images.transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match=r"class_code must be \[M, 4\], got \[2, 3\]"):
        engine.decode(individual, codes[:, :3], index)
    with pytest.raises(ValueError, match=r"individual must be \[N, 16, 4, 4\], got \[2, 16, 4, 3"):
        engine.decode(individual[..., :3], codes, index)
    with pytest.raises(ValueError, match=r"image_index must be \[2\], got \[1\]"):
        engine.decode(individual, codes, index[:1])
    with pytest.raises(ValueError, match=r"image_index must be in \[0, 2\), got 2"):
        engine.decode(individual, codes, index + 2)
    with pytest.raises(ValueError, match=r"image_index must be in \[0, 0\), got 0"):
        engine.decode(individual[:0], codes, index)
    vertices = np.stack([codes, codes], axis=1)
    with pytest.raises(ValueError, match=r"vertices must be \[2, V, 4\], got \[1, 2, 4\]"):
        engine.session(individual, vertices[:1], 4)
    with pytest.raises(ValueError, match="at least one vertex"):
        engine.session(individual, vertices[:, :0], 4)
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        engine.session(individual, vertices, 0)
    session = engine.session(individual, vertices, 4)
    with pytest.raises(ValueError, match=r"step must be in \[0, 4\], got 5"):
        session.decode(index, index + 5)
    with pytest.raises(ValueError, match=r"step must be \[2\], got \[1\]"):
        session.decode(index, index[:1])
    with pytest.raises(ValueError, match=r"image_index must be in \[0, 2\), got -1"):
        session.decode(index - 1, index)


def test_a_session_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError):
        _backend.DecodeSession()
