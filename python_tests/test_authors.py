# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' public code: what they must give, and what is refused."""

from __future__ import annotations

import csv
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import cae_fast as cf
from cae_fast.authors import authors_names
from cae_fast.testing import FLOAT32_TOLERANCE, relative_error, toy_model

torch = pytest.importorskip("torch")


def fixture_state(keys_csv: Path, seed: int) -> dict[str, torch.Tensor]:
    """The fixture's known weights: tensor i is drawn from its own generator, seed + i."""
    state = {}
    with open(keys_csv) as lines:
        for i, row in enumerate(csv.DictReader(lines)):
            key, shape = row["key"], tuple(int(n) for n in row["shape"].split("x"))
            draw = torch.randn(shape, generator=torch.Generator().manual_seed(seed + i))
            scales = {"gamma": (1.0, 0.1), "beta": (0.0, 0.1), "bias": (0.0, 0.05)}
            kind = key.rsplit(".", 1)[1]
            if kind.startswith("running"):
                value = torch.zeros(shape) if kind == "running_mean" else torch.ones(shape)
            elif kind in scales:
                offset, scale = scales[kind]
                value = offset + scale * draw if offset else scale * draw
            else:
                value = draw * (2 / np.prod(shape[1:])) ** 0.5
            state[key] = value
    return state


def authors_state(model: cf.CAE) -> dict[str, torch.Tensor]:
    """A model's weights under the authors' names."""
    names = authors_names(model.config)
    return {names[ours]: torch.from_numpy(np.array(a)) for ours, a in model.weights.items()}


@pytest.fixture(scope="module")
def checkpoint(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with the fixture's weights, and the folder that holds what it must give."""
    folder = shared_dir / "fixtures" / "authors_checkpoint"
    path = tmp_path_factory.mktemp("authors") / "gen_00200000.pt"
    torch.save({"ab": fixture_state(folder / "keys.csv", 1000)}, path)
    return path, folder


@pytest.mark.shared
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_authors_checkpoint_gives_the_original_networks_values(
    checkpoint: tuple[Path, Path], backend: str
) -> None:
    """Codes and images agree with what the original network computed in float32."""
    path, folder = checkpoint
    expected = np.load(folder / "expected.npz")
    model = cf.CAE.from_authors(path)
    assert model.config == cf.CAEConfig()
    images = expected["images"].astype(np.float32)
    explainer = cf.Explainer(model, lambda x: np.zeros((len(x), 2), np.float32), backend=backend)
    codes = explainer.encode(images)
    individual = np.asarray(codes.individual)
    flat = individual.reshape(2, -1)[:, expected["individual_index"]]
    assert relative_error(codes.class_code, expected["class_code"]) < FLOAT32_TOLERANCE
    assert relative_error(flat, expected["individual_values"]) < FLOAT32_TOLERANCE
    own = np.asarray(explainer.decode(individual, codes.class_code)).reshape(2, -1)
    at = expected["image_index"]
    assert relative_error(own[:, at], expected["reconstruction_values"]) < FLOAT32_TOLERANCE
    shared = np.repeat(individual[:1], 4, axis=0)
    decoded = np.asarray(explainer.decode(shared, expected["codes"])).reshape(4, -1)[:, at]
    assert relative_error(decoded, expected["decoded_values"]) < FLOAT32_TOLERANCE
    difference = decoded[1:] - decoded[:1]
    exact = expected["decoded_values"][1:] - expected["decoded_values"][:1]
    error = np.linalg.norm(difference - exact) / np.linalg.norm(expected["decoded_values"])
    assert error < FLOAT32_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_width_and_dtype_round_trips(tmp_path: Path, dtype: torch.dtype) -> None:
    """Configuration is read from the shapes; a float32 checkpoint keeps every bit."""
    model = toy_model(num_classes=2, num_blocks=3, code_dim=5, channels=6, in_channels=3)
    state = {name: tensor.to(dtype) for name, tensor in authors_state(model).items()}
    state["dec.model.0.model.0.model.0.norm.running_mean"] = torch.zeros(24)
    torch.save({"ab": state}, tmp_path / "gen.pt")
    read = cf.CAE.from_authors(tmp_path / "gen.pt", image_size=16)
    assert read.config == model.config
    for name, array in model.weights.items():
        expected = torch.from_numpy(np.array(array)).to(dtype).float().numpy()
        np.testing.assert_array_equal(read.weights[name], expected)


def test_every_difference_is_listed_at_once(tmp_path: Path) -> None:
    """Missing, extra, mis-shaped, non-floating and non-finite tensors come in one message."""
    state = authors_state(toy_model(num_classes=2))
    del state["mlp.model.1.fc.bias"]
    state["surprise"] = torch.zeros(1)
    state["dec.model.5.conv.bias"] = torch.zeros(7)
    state["enc_style.model.5.bias"] = torch.full((4,), float("nan"))
    state["mlp.model.0.fc.bias"] = torch.zeros(16, dtype=torch.int64)
    torch.save({"ab": state}, tmp_path / "gen.pt")
    with pytest.raises(cf.ModelFileError) as caught:
        cf.CAE.from_authors(tmp_path / "gen.pt", image_size=16)
    message = str(caught.value)
    for part in (
        "missing mlp.model.1.fc.bias [16]",
        "unexpected surprise",
        "dec.model.5.conv.bias must be [1], got [7]",
        "enc_style.model.5.bias holds NaN or Inf",
        "mlp.model.0.fc.bias must be floating, got int64",
    ):
        assert part in message
    assert "\n" not in message


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.marker), os.O_CREAT)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_malicious_pickles_are_refused_without_running(tmp_path: Path, protocol: str) -> None:
    """A file that asks for code is refused, and no second loader runs it."""
    marker = tmp_path / "ran"
    path = tmp_path / "gen.pt"
    if protocol == "torch":
        torch.save({"ab": _Bomb(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"ab": _Bomb(marker)}))
    with pytest.raises(cf.ModelFileError, match=r"refused|not a readable"):
        cf.CAE.from_authors(path)
    assert not marker.exists()


def test_whole_module_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """torch.save(module) is refused; the message says what to save instead."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(cf.ModelFileError, match="state_dict"):
        cf.CAE.from_authors(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x80\x02.", b"\x00" * 100],
    ids=["empty", "zip", "pickle", "zeros"],
)
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty and garbage files give one clear error."""
    (tmp_path / "gen.pt").write_bytes(content)
    with pytest.raises(cf.ModelFileError, match=r"gen\.pt: not a readable"):
        cf.CAE.from_authors(tmp_path / "gen.pt")


def test_truncated_checkpoints_are_refused(tmp_path: Path) -> None:
    """A checkpoint cut at any tenth of its length is refused."""
    whole = tmp_path / "gen.pt"
    torch.save({"ab": authors_state(toy_model(num_classes=2))}, whole)
    data = whole.read_bytes()
    for tenth in range(10):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(cf.ModelFileError):
            cf.CAE.from_authors(cut, image_size=16)


@pytest.mark.parametrize("content", [{"a": {}}, [1, 2], {"ab": {}}, {"ab": [1]}])
def test_another_structure_is_refused(tmp_path: Path, content: object) -> None:
    """Something else than {'ab': state_dict} is refused, saying what was found."""
    torch.save(content, tmp_path / "gen.pt")
    with pytest.raises(cf.ModelFileError, match=r"expected \{'ab': state_dict\}"):
        cf.CAE.from_authors(tmp_path / "gen.pt")
