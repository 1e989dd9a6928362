# SPDX-License-Identifier: Apache-2.0
"""The model file: what goes in comes out, and damage is always noticed."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import cae_fast as cf
from cae_fast.model import METADATA_KEY
from cae_fast.testing import toy_model


@pytest.fixture
def saved(tmp_path: Path) -> tuple[cf.CAE, Path]:
    """A toy model and its file."""
    model = toy_model()
    model.provenance["note"] = "toy"
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


def test_file_round_trip(saved: tuple[cf.CAE, Path]) -> None:
    """Configuration, weights, provenance and hash come back."""
    model, path = saved
    read = cf.CAE.load(path)
    assert read.config == model.config
    assert read.provenance == model.provenance
    assert read.sha256 == model.sha256
    assert list(read.weights) == list(model.config.tensor_shapes())
    for name, array in model.weights.items():
        np.testing.assert_array_equal(read.weights[name], array)


def test_hash_covers_configuration_and_bytes() -> None:
    """Another class name or one changed bit is another model."""
    model = toy_model()
    renamed = cf.CAEConfig.from_dict(model.config.to_dict() | {"class_names": ["a", "b", "c"]})
    assert cf.CAE(renamed, model.weights).sha256 != model.sha256
    weights = {name: array.copy() for name, array in model.weights.items()}
    weights["decoder.out.bias"].view(np.uint32)[0] ^= 1
    assert cf.CAE(model.config, weights).sha256 != model.sha256
    assert cf.CAE(model.config, dict(reversed(model.weights.items()))).sha256 == model.sha256


def test_a_model_can_be_sent_to_another_process() -> None:
    """Pickling, as multiprocessing does, keeps weights, configuration and provenance."""
    model = toy_model()
    sent = pickle.loads(pickle.dumps(model))
    assert sent.sha256 == model.sha256
    assert sent.provenance == model.provenance
    with pytest.raises(ValueError, match="read-only"):
        sent.weights["decoder.out.bias"][0] = 1


def test_weights_are_read_only() -> None:
    """A model's weights cannot be changed behind its hash."""
    model = toy_model()
    with pytest.raises(ValueError, match="read-only"):
        model.weights["decoder.out.bias"][0] = 1
    with pytest.raises(TypeError):
        model.weights["decoder.out.bias"] = np.zeros(1)  # type: ignore[index]


def test_module_round_trip_keeps_every_bit() -> None:
    """NumPy weights -> torch network -> NumPy weights."""
    pytest.importorskip("torch")
    model = toy_model(in_channels=3, code_dim=7)
    assert cf.CAE.from_module(model.module()).sha256 == model.sha256


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of 4, got 18"),
        ({"image_size": 12}, r"image_size must be in \[16, 4096\], got 12"),
        ({"in_channels": 5}, "in_channels must be in"),
        ({"channels": 0}, "channels must be in"),
        ({"num_blocks": True}, "num_blocks must be an integer, got True"),
        ({"code_dim": 2.5}, "code_dim must be an integer"),
        ({"num_classes": 1}, "num_classes must be in"),
        ({"class_names": ["a"]}, "class_names must be 2 distinct names"),
        ({"class_names": ["a", "a"]}, "class_names must be 2 distinct names"),
        ({"class_names": ["a", ""]}, "non-empty"),
        ({"class_names": "ab"}, "list of names"),
        ({"chanels": 3}, "unknown configuration key 'chanels', did you mean 'channels'"),
        ({"zzz": 3}, "known: image_size"),
    ],
)
def test_configuration_errors(fields: dict[str, object], message: str) -> None:
    """Every wrong field is named with what was seen."""
    with pytest.raises(cf.CAEError, match=message):
        cf.CAEConfig.from_dict(fields)


def test_all_differences_in_one_message() -> None:
    """Missing, extra, mis-shaped, non-floating and non-finite tensors are listed together."""
    model = toy_model()
    weights = dict(model.weights)
    del weights["modulation.linear0.bias"]
    weights["extra"] = np.zeros(1, np.float32)
    weights["decoder.out.bias"] = np.zeros(9, np.float32)
    weights["decoder.norm0.gamma"] = np.full(8, np.inf, np.float32)
    weights["decoder.norm0.beta"] = np.zeros(8, np.int32)
    with pytest.raises(cf.ModelFileError) as caught:
        cf.CAE(model.config, weights)
    for part in (
        "missing modulation.linear0.bias [16]",
        "unexpected extra",
        "decoder.out.bias must be [1], got [9]",
        "decoder.norm0.gamma holds NaN or Inf",
        "decoder.norm0.beta must be floating, got int32",
    ):
        assert part in str(caught.value)


def test_one_flipped_bit_is_noticed(saved: tuple[cf.CAE, Path], tmp_path: Path) -> None:
    """A flipped bit anywhere, header or data, never gives another model silently."""
    model, path = saved
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = tmp_path / "damaged.safetensors"
    noticed = 0
    for offset in generator.integers(0, len(data), 100):
        broken = bytearray(data)
        broken[offset] ^= 1 << int(generator.integers(8))
        damaged.write_bytes(broken)
        try:
            read = cf.CAE.load(damaged)
        except cf.ModelFileError:
            noticed += 1
        else:  # provenance is outside the hash, and JSON has equivalent spellings
            assert read.sha256 == model.sha256
    assert noticed >= 95


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        (2**40).to_bytes(8, "little") + b"{}",
        (50).to_bytes(8, "little") + b'{"x":{"dtype":"F32","shape":[4294967296,4294967296]',
        (8).to_bytes(8, "little") + b"not json",
        b"PK\x03\x04 a zip file",
    ],
)
def test_garbage_files(tmp_path: Path, content: bytes) -> None:
    """Garbage gives one clear error and no large allocation."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(cf.ModelFileError, match=r"model\.safetensors: not a readable"):
        cf.CAE.load(path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "BF16"])
def test_dtypes_that_numpy_has_not(tmp_path: Path, dtype: str) -> None:
    """Other frameworks write them; they are refused."""
    size = 2 if dtype == "BF16" else 1
    tensor = {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}
    header = json.dumps({"x": tensor}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(cf.ModelFileError, match=r"model\.safetensors: "):
        cf.CAE.load(path)


def test_every_truncation_is_refused(saved: tuple[cf.CAE, Path], tmp_path: Path) -> None:
    """A file cut short anywhere is refused."""
    data = saved[1].read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [*range(0, 64), *range(64, len(data), len(data) // 50)]:
        cut.write_bytes(data[:length])
        with pytest.raises(cf.ModelFileError):
            cf.CAE.load(cut)


def test_foreign_files(tmp_path: Path) -> None:
    """Missing files, folders, foreign safetensors and other format versions are told apart."""
    with pytest.raises(cf.ModelFileError, match="no such model file"):
        cf.CAE.load(tmp_path / "none.safetensors")
    with pytest.raises(cf.ModelFileError, match="no such model file"):
        cf.CAE.load(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, foreign)
    with pytest.raises(cf.ModelFileError, match="without cae_fast's metadata"):
        cf.CAE.load(foreign)
    for text, message in (
        ('{"format": 99}', "format version 99"),
        ("[1]", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"format": 1}', "lacks the configuration"),
        ('{"format": 1, "config": {"image_siz": 16}}', "did you mean 'image_size'"),
    ):
        safetensors.numpy.save_file(
            {"x": np.zeros(1, np.float32)}, foreign, metadata={METADATA_KEY: text}
        )
        with pytest.raises(cf.ModelFileError, match=message):
            cf.CAE.load(foreign)


def test_provenance_must_be_json(tmp_path: Path) -> None:
    """NaN and objects are refused before anything is written."""
    for value in (float("nan"), object()):
        model = toy_model()
        model.provenance["bad"] = value
        with pytest.raises(cf.CAEError, match="provenance"):
            model.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_old_file(saved: tuple[cf.CAE, Path]) -> None:
    """When writing fails midway the old file stays whole and no temporary file is left."""
    model, path = saved
    before = path.read_bytes()
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from cae_fast.testing import toy_model
        model = toy_model(seed=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            model.save(sys.argv[1])
        except OSError as error:
            print("OSError", error.errno)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("OSError"), result.stderr
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert cf.CAE.load(path).sha256 == model.sha256


def test_import_is_light() -> None:
    """Importing the package and loading a model brings in none of the heavy libraries."""
    script = (
        "import sys, cae_fast, cae_fast.model\n"
        "heavy = 'torch onnxruntime pyarrow matplotlib sklearn pydantic typer rich'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
