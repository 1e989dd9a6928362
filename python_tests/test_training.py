# SPDX-License-Identifier: Apache-2.0
"""Training as a whole: what a run leaves, the promises it keeps, bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_cases import CLASSES, tiny_folder, tiny_options, write_classes

import cae_fast as cf
from cae_fast.errors import BackendUnavailable, CAEError, ClassifierError, ImageDecodeError
from cae_fast.training import TrainOptions

torch = pytest.importorskip("torch")

# These need torch.
from cae_fast.training import train, trainer  # noqa: E402
from cae_fast.training.devices import choose_device  # noqa: E402
from cae_fast.training.state import TrainingState  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def quiet_train(*args: Any, **overrides: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three steps keep no promise
        return train(tiny_options(*args, **overrides))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "data")


# The run as a whole


def test_run_leaves_model_log_samples_and_what_was_measured(data: Path, tmp_path: Path) -> None:
    path = quiet_train(data, tmp_path / "run", sample_every=2)
    assert path == tmp_path / "run" / "model.safetensors"
    model = cf.CAE.load(path)
    assert model.config.class_names == CLASSES
    assert model.config.in_channels == 1
    said = model.provenance
    assert (said["steps"], said["seed"], said["data"]["name"]) == (3, 0, "data")
    assert said["data"]["train"] == dict.fromkeys(CLASSES, 9)
    promises = said["promises"]["validation"]
    assert promises["judge"] == "discriminator"
    assert 0 <= promises["swap_success"] <= 1
    with open(tmp_path / "run" / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    total = sum(
        weight * float(rows[0][name])
        for name, weight in (
            ("reconstruction", 10), ("cycle", 10), ("class_code", 1), ("individual_code", 1),
            ("adversarial", 1), ("swap_class", 1), ("code_class", 1),
        )
    )  # fmt: skip
    assert float(rows[0]["generator"]) == pytest.approx(total, rel=1e-5)
    assert "critic" not in rows[0]
    with Image.open(tmp_path / "run" / "samples" / "step_0000002.png") as grid:
        assert grid.height > 4 * 16
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["channels"] == 4
    assert config["options"]["weights"]["reconstruction"] == 10.0
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
    assert (tmp_path / "run" / "checkpoints" / "best.pt").is_file()


def test_a_run_learns_to_reconstruct_and_to_swap_classes(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "data", {"dark": 12, "light": 12})
    overrides: dict[str, Any] = {"channels": 8, "code_dim": 8, "learning_rate": 2e-3}
    path = quiet_train(
        data, tmp_path / "run", steps=60, batch_size=4, sample_every=1000,
        checkpoint_every=1000, classifier=brightness, **overrides,
    )  # fmt: skip
    measured = cf.CAE.load(path).provenance["promises"]["validation"]
    assert measured["judge"] == "brightness"
    assert measured["swap_success"] >= 0.9
    assert measured["class_kept"] >= 0.9
    assert measured["knn_accuracy"] == 1.0
    assert measured["reconstruction_l1"] < 0.25


def test_a_run_that_collapses_ends_with_its_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured at steps 2 and 4; in between all class codes become equal, as by dead ReLUs."""
    data = write_classes(tmp_path / "data", {"dark": 12, "light": 12})
    follow = TrainingState.update_generator
    kept: dict[str, torch.Tensor] = {}

    def update(state: TrainingState, loss: torch.Tensor) -> None:
        follow(state, loss)
        if state.step == 1:
            kept.update({k: v.clone() for k, v in state.mean.state_dict().items()})
        else:
            with torch.no_grad():
                for network in (state.generator, state.mean):
                    network.class_encoder.head.weight.zero_()

    monkeypatch.setattr(TrainingState, "update_generator", update)
    monkeypatch.setattr(trainer, "score_of", lambda measured: measured["knn_accuracy"])
    options = tiny_options(
        data, tmp_path / "run", steps=4, sample_every=2, classifier=brightness, quiet=False
    )
    path = train(options)
    assert "the run was at its best after 2 of 4 steps" in capsys.readouterr().out
    model = cf.CAE.load(path)
    assert model.provenance["steps"] == 2
    for name, value in kept.items():
        np.testing.assert_array_equal(model.weights[name], value.numpy())


def test_a_gradient_far_longer_than_usual_is_shortened() -> None:
    config = cf.CAEConfig(
        image_size=16, in_channels=1, channels=4, num_blocks=1, num_classes=2, modulation_width=8
    )
    torch.manual_seed(0)
    state = TrainingState(config, TrainOptions(data="d", out="o"), torch.device("cpu"))
    part = list(state.generator.class_encoder.parameters())
    others = [p for p in state.generator.parameters() if not any(p is q for q in part)]

    def length_after(scale: float) -> float:
        """Of one part's gradient; that of the others, far longer, stays as it is."""
        loss = scale * sum(p.square().sum() for p in part)
        state.update_generator(loss + 100 * sum(p.square().sum() for p in others))
        return float(torch.stack([p.grad.norm() for p in part if p.grad is not None]).norm())

    usual = length_after(1.0)
    assert length_after(3.0) == pytest.approx(3 * usual, rel=0.05)  # within four times: as it is
    long = length_after(1000.0)
    assert long == pytest.approx(4 * usual * (1 + 0.02 * 2), rel=0.05)
    saved = state.to_dict()
    other = TrainingState(config, TrainOptions(data="d", out="o"), torch.device("cpu"))
    other.restore(saved, "here")
    assert other.to_dict()["usual"] == saved["usual"]


@pytest.mark.parametrize(("warmup", "share"), [(1000, 0.1), (0, 1.0)])
def test_a_warmed_class_encoder_learns_slowly(warmup: int, share: float) -> None:
    config = cf.CAEConfig(
        image_size=16, in_channels=1, channels=4, num_blocks=1, num_classes=2, modulation_width=8
    )
    options = TrainOptions(data="d", out="o", warmup_steps=warmup, weight_decay=0.0)
    state = TrainingState(config, options, torch.device("cpu"))
    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    assert state.set_rate() == options.learning_rate
    state.update_generator(torch.stack([p.sum() for p in state.generator.parameters()]).sum())
    for name, value in state.generator.state_dict().items():
        moved = options.learning_rate * (share if name.startswith("class_encoder.") else 1.0)
        torch.testing.assert_close(before[name] - value, torch.full_like(value, moved))


def brightness(images: Any) -> Any:
    """A classifier of dark and light images."""
    mean = np.asarray(images).mean(axis=(1, 2, 3))
    return np.stack([-mean * 20, mean * 20], axis=1).astype(np.float32)


def test_same_seed_same_model_other_seed_another(data: Path, tmp_path: Path) -> None:
    hashes = [
        cf.CAE.load(quiet_train(data, tmp_path / str(i), steps=2, seed=seed)).sha256
        for i, seed in enumerate((3, 3, 4))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_training_leaves_the_callers_random_numbers_alone(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quiet_train(data, tmp_path / "run", steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_bf16_trains_with_float32_weights(data: Path, tmp_path: Path) -> None:
    path = quiet_train(data, tmp_path / "run", steps=2, precision="bf16")
    assert all(w.dtype == np.float32 for w in cf.CAE.load(path).weights.values())


def test_labels_of_a_classifier_replace_those_of_the_folder(data: Path, tmp_path: Path) -> None:
    asked = []

    def classifier(images: Any) -> Any:
        asked.append(len(images))
        logits = np.zeros((len(images), 3), np.float32)
        logits[np.arange(len(images)), (np.asarray(images).mean(axis=(1, 2, 3)) > 0) * 1] = 1
        return logits

    quiet_train(data, tmp_path / "run", steps=1, labels="classifier", classifier=classifier)
    assert asked[0] == 27  # all training images before the first step
    for constant in (0, 2):

        def one_class(images: Any, constant: int = constant) -> Any:
            return np.eye(3, dtype=np.float32)[[constant] * len(images)]

        with pytest.raises(CAEError, match="puts all images into one class"):
            quiet_train(
                data, tmp_path / f"one{constant}", labels="classifier", classifier=one_class
            )


def test_streamed_images_train_the_same_model_as_cached_ones(data: Path, tmp_path: Path) -> None:
    cached = quiet_train(data, tmp_path / "cached")
    streamed = quiet_train(data, tmp_path / "streamed", cache_bytes=0)
    assert cf.CAE.load(cached).sha256 == cf.CAE.load(streamed).sha256


def test_progress_is_called_with_losses_and_rates(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = tiny_options(data, tmp_path / "run", log_every=2)
        train(options, lambda *values: seen.append(values))
    assert [(step, steps) for step, steps, _ in seen] == [(2, 3), (3, 3)]
    assert {"generator", "discriminator", "learning_rate", "steps_per_s"} <= set(seen[0][2])


def test_broken_promise_is_a_warning(data: Path, tmp_path: Path) -> None:
    def contrary(images: Any) -> Any:
        logits = brightness(images)
        return np.concatenate([logits[:, ::-1], logits[:, :1] - 99], axis=1)

    with pytest.warns(UserWarning, match="swapped images show the donor's class in"):
        train(tiny_options(data, tmp_path / "run", steps=1, classifier=contrary))


def test_two_processes_train_one_model(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import os, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from training_cases import tiny_options
from cae_fast.training import train
torch.set_num_threads(1)
train(tiny_options(Path({str(data)!r}), Path({str(tmp_path / "run")!r}), steps=2))
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = cf.CAE.load(tmp_path / "run" / "model.safetensors")
    one = cf.CAE.load(quiet_train(data, tmp_path / "one", steps=2))
    assert two.config == one.config
    assert two.sha256 != one.sha256  # both processes' images counted
    lines = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2"]


# Bad input


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CAEError, match="nowhere"):
        quiet_train(tmp_path / "nowhere", tmp_path / "run")
    write_classes(tmp_path / "one", {"dark": 4})
    with pytest.raises(CAEError, match="dark"):
        quiet_train(tmp_path / "one", tmp_path / "run")
    write_classes(tmp_path / "few", {"dark": 4, "light": 1})
    with pytest.raises(CAEError, match="fewer than two training images of class light"):
        quiet_train(tmp_path / "few", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_named(data: Path, tmp_path: Path) -> None:
    for name in ("3.png", "4.png"):
        (data / "train" / "light" / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ImageDecodeError, match=r"light.*\.png"):
        quiet_train(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overwriting_removes_nothing_before_the_data_proved_good(
    data: Path, tmp_path: Path
) -> None:
    before = quiet_train(data, tmp_path / "run", steps=1).read_bytes()
    (data / "train" / "light" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ImageDecodeError):
        quiet_train(data, tmp_path / "run", steps=2, overwrite=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_grey_images_train_a_colour_model_by_repetition(data: Path, tmp_path: Path) -> None:
    path = quiet_train(data, tmp_path / "run", steps=1, in_channels=3)
    assert cf.CAE.load(path).config.in_channels == 3


def test_classifier_of_other_classes_or_shape_is_refused(data: Path, tmp_path: Path) -> None:
    named = cf.Classifier(brightness, labels=["cat", "dog"])
    with pytest.raises(ClassifierError, match="cat"):
        quiet_train(data, tmp_path / "named", classifier=named)
    with pytest.raises(ClassifierError, match=r"logits \[27, 3\], got \[27, 2\]"):
        quiet_train(data, tmp_path / "two", classifier=brightness, labels="classifier")
    with pytest.raises(ClassifierError, match=r"critic must be an existing \.pt2 file or"):
        quiet_train(data, tmp_path / "critic", critic=tmp_path / "none.pt2")


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(CAEError, match="device must be auto, cpu or cuda, got 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(BackendUnavailable, match="torch sees 0 GPUs"):
            choose_device("cuda:1")


# Real images


def test_real_blood_cells_train_for_a_few_steps(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "data" / "blood_cells" / "train"
    for folder in sorted(source.iterdir()):
        target = tmp_path / "data" / "train" / folder.name
        target.mkdir(parents=True)
        for file in sorted(folder.glob("*.png"))[:6]:
            shutil.copyfile(file, target / file.name)
    path = quiet_train(
        tmp_path / "data", tmp_path / "run", image_size=32, steps=8, augment="dihedral"
    )
    model = cf.CAE.load(path)
    assert model.config.in_channels == 3
    assert model.config.class_names == ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
    with open(tmp_path / "run" / "log.csv", newline="", encoding="utf-8") as file:
        losses = [float(row["reconstruction"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
