# SPDX-License-Identifier: Apache-2.0
"""A run that was killed goes on exactly as if it had not been."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_cases import tiny_folder, tiny_options

import cae_fast as cf
from cae_fast.errors import CAEError, ModelFileError

torch = pytest.importorskip("torch")

# These need torch.
from cae_fast.training import train, trainer  # noqa: E402
from cae_fast.training.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from cae_fast.training.losses import generator_losses  # noqa: E402
from cae_fast.training.state import TrainingState  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
torch.set_num_threads(1)  # as in this process: sums are the same only in the same order
from training_cases import tiny_options
from cae_fast.training import train

def progress(step, steps, values):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)

train(tiny_options(Path({data!r}), Path({out!r}), steps=6, checkpoint_every=3), progress)
"""


def rows(run: Path) -> list[list[str]]:
    with open(run / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def quiet_train(*args: Any, **overrides: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three steps keep no promise
        return train(tiny_options(*args, **overrides))


def test_killed_and_resumed_run_has_the_losses_and_weights_of_an_unbroken_one(
    tmp_path: Path,
) -> None:
    data = tiny_folder(tmp_path / "data")
    whole = quiet_train(data, tmp_path / "whole", steps=6, checkpoint_every=3)
    code = KILLED.format(
        tests=str(Path(__file__).parent), data=str(data), out=str(tmp_path / "broken")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    assert [row[0] for row in rows(tmp_path / "broken")] == ["step", "1", "2", "3", "4"]
    resumed = quiet_train(data, tmp_path / "broken", steps=6, checkpoint_every=3, resume=True)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")  # to the last digit
    assert cf.CAE.load(resumed).sha256 == cf.CAE.load(whole).sha256
    assert not [p for p in (tmp_path / "broken").rglob("*") if ".tmp" in p.name]


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    path = quiet_train(data, tmp_path / "run", steps=1, resume=True)
    assert cf.CAE.load(path).provenance["steps"] == 1


def test_resume_refuses_other_options_and_other_data_and_lists_them(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    quiet_train(data, tmp_path / "run", steps=1)
    with pytest.raises(CAEError, match=r"batch_size was 2, is 1; seed was 0, is 7"):
        quiet_train(data, tmp_path / "run", steps=1, seed=7, batch_size=1, resume=True)
    (data / "train" / "dark" / "0.png").unlink()
    with pytest.raises(CAEError, match="the images or labels of the data changed"):
        quiet_train(data, tmp_path / "run", steps=1, resume=True)


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    quiet_train(data, tmp_path / "run", steps=2, schedule="constant")
    longer = quiet_train(data, tmp_path / "run", steps=4, schedule="constant", resume=True)
    whole = quiet_train(data, tmp_path / "whole", steps=4, schedule="constant")
    assert cf.CAE.load(longer).sha256 == cf.CAE.load(whole).sha256


def test_a_run_is_not_cut_short_by_what_is_not_given(tmp_path: Path) -> None:
    """What follows the size where it is not given is as the run was begun, when it is resumed."""
    data = tiny_folder(tmp_path / "data")
    quiet_train(data, tmp_path / "run", steps=2, learning_rate=1e-3)
    free: dict[str, Any] = dict.fromkeys(("steps", "channels", "num_blocks", "learning_rate"))
    resumed = tiny_options(data, tmp_path / "run", resume=True, **free)
    assert (resumed.steps, resumed.channels, resumed.learning_rate) == (2, 4, 1e-3)
    assert tiny_options(data, tmp_path / "run", **free).steps == 2000
    with pytest.raises(CAEError, match=r"last\.pt is at step 2, beyond steps 1; give as many"):
        quiet_train(data, tmp_path / "run", steps=1, resume=True)


def test_existing_run_is_refused_and_replaced_on_request(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    quiet_train(data, tmp_path / "run", steps=2)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(CAEError, match="not empty"):
        quiet_train(data, tmp_path / "run", steps=1)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    path = quiet_train(data, tmp_path / "run", steps=1, overwrite=True)
    assert cf.CAE.load(path).provenance["steps"] == 1
    assert [row[0] for row in rows(tmp_path / "run")] == ["step", "1"]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    (tmp_path / "run").write_text("")
    with pytest.raises(CAEError, match="is a file"):
        quiet_train(data, tmp_path / "run")


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    quiet_train(data, tmp_path / "run", steps=1)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-2000])
    with pytest.raises(ModelFileError, match=r"last\.pt: not a readable checkpoint"):
        quiet_train(data, tmp_path / "run", steps=1, resume=True)


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"format": 1, "generator": _Malicious(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(ModelFileError, match=r"bad\.pt"):
        load_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "new.pt")
    with pytest.raises(ModelFileError, match="format 99, this version reads 1"):
        load_checkpoint(tmp_path / "new.pt")


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    code = f"""
import resource, signal
from pathlib import Path
import torch
from cae_fast.training.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_checkpoint(Path({str(path)!r}), {{"step": 2, "weights": torch.zeros(100_000)}})
except OSError as error:
    print("OSError", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OSError"), done.stdout + done.stderr
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_full_disk_ends_classifier_training_with_an_os_error(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    (tmp_path / "out").mkdir()
    code = f"""
import resource, signal, torch
from cae_fast.training import ClassifierOptions, train_classifier
torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
options = ClassifierOptions(
    data={str(data)!r}, out={str(tmp_path / "out" / "c.pt2")!r}, image_size=16, width=4, epochs=1,
    quiet=True,
)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    train_classifier(options)
except OSError as error:
    print("OSError", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OSError"), done.stdout + done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_folder(tmp_path / "data")
    steps_seen = []

    def poisoned(*args: Any) -> dict[str, Any]:
        steps_seen.append(len(steps_seen) + 1)
        losses = generator_losses(*args)
        if len(steps_seen) == 3:
            losses["cycle"] = losses["cycle"] * float("nan")
        return losses

    monkeypatch.setattr(trainer, "generator_losses", poisoned)
    with pytest.raises(CAEError, match=r"step 3: the loss generator is nan; the last good"):
        quiet_train(data, tmp_path / "run", steps=6, log_every=1)
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert last["step"] == 2
    assert all(bool(torch.isfinite(v).all()) for v in last["generator"].values())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_weights_broken_by_a_step_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_folder(tmp_path / "data")
    update = TrainingState.update_generator

    def poisoned(state: TrainingState, loss: Any) -> None:
        update(state, loss)
        if state.step == 1:
            with torch.no_grad():
                next(state.generator.parameters()).fill_(np.nan)

    monkeypatch.setattr(TrainingState, "update_generator", poisoned)
    with pytest.raises(CAEError, match="step 2: the weights became NaN or infinite"):
        quiet_train(data, tmp_path / "run", steps=6, log_every=100)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 1
