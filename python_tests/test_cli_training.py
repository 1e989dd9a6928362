# SPDX-License-Identifier: Apache-2.0
"""`cae-fast train` and `train-classifier`."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_workspace import cae_fast, write_images

import cae_fast as cf
from cae_fast.testing import random_images, toy_model

pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes that are easy to tell apart: dark and bright images."""
    noise = random_images(toy_model().config, 24) * 0.2
    write_images(tmp_path / "data" / "train" / "dark", noise[:12] - 0.5)
    write_images(tmp_path / "data" / "train" / "bright", noise[12:] + 0.5)
    return tmp_path / "data"


@pytest.mark.filterwarnings("ignore")
def test_train_writes_a_model_that_knows_its_classes(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ("--image-size", "16", "--channels", "4", "--num-blocks", "1", "--batch-size", "2")
    train = ("train", str(data), "--out", str(run), *small, "--steps", "2", "--warmup-steps", "3")
    done = cae_fast(*train, "--json")
    assert done.code == 0, done.err
    assert done.json["model"] == str(run / "model.safetensors")
    assert cf.CAE.load(run / "model.safetensors").config.class_names == ("bright", "dark")
    again = cae_fast(*train)
    assert again.code == 2
    assert "--overwrite" in again.err


@pytest.mark.filterwarnings("ignore")
def test_train_classifier_writes_both_files(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "classifier.onnx"
    options = ("--out", str(out), "--epochs", "1", "--width", "4", "--json")
    done = cae_fast("train-classifier", str(data), *options)
    assert done.code == 0, done.err
    assert done.json["class_names"] == ["bright", "dark"]
    for name in ("onnx", "pt2"):
        assert Path(done.json[name]).is_file()
        classifier = cf.Classifier.load(done.json[name])
        assert classifier(random_images(toy_model().config, 3)).shape == (3, 2)
    again = cae_fast("train-classifier", str(data), *options)
    assert again.code == 2
    assert "overwrite" in again.err
