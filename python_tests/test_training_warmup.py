# SPDX-License-Identifier: Apache-2.0
"""The class encoder's warm-up: norms fold exactly, a small thing is learned, files are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cae_fast.errors import CAEError
from cae_fast.evaluation.planted import write_planted
from cae_fast.model import CAEConfig

torch = pytest.importorskip("torch")

# These need torch.
from training_cases import tiny_folder, tiny_options  # noqa: E402

from cae_fast.networks import CAEModule, ClassEncoder  # noqa: E402
from cae_fast.training import train, warmup  # noqa: E402
from cae_fast.training.pipeline import ImageStore, LabelledImages, read_splits  # noqa: E402
from cae_fast.training.warmup import (  # noqa: E402
    NormedEncoder,
    restore_class_encoder,
    train_class_encoder,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def encoder(width: int = 4, size: int = 16) -> ClassEncoder:
    config = CAEConfig(
        image_size=size, in_channels=1, channels=width, num_blocks=1, num_classes=2,
        modulation_width=8,
    )  # fmt: skip
    return CAEModule(config).class_encoder


def test_norms_fold_into_the_convolutions() -> None:
    torch.manual_seed(0)
    network = NormedEncoder(encoder())
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(5):  # norms that are not the identity
        loss = network(torch.rand(8, 1, 16, 16)).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        before = network(images)
        plain = network.encoder(images)
        folded = network.fold()(images)
    assert (plain - before).abs().max() > 1e-2
    torch.testing.assert_close(folded, before, atol=1e-5, rtol=1e-4)


def test_learns_a_small_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_TURNS", 1)
    write_planted(tmp_path / "planted", "digits", kind="texture", size=32, seed=0)
    splits = read_splits(tmp_path / "planted", 0.1, 0)
    train_images = LabelledImages(ImageStore(splits.train, 32, 1), splits.train.labels)
    held = LabelledImages(ImageStore(splits.validation, 32, 1), splits.validation.labels)
    options = tiny_options(
        tmp_path / "planted", tmp_path / "run", image_size=32, warmup_steps=700, augment="none"
    )
    torch.manual_seed(0)
    said: list[str] = []
    path = tmp_path / "class_encoder.pt"
    train_class_encoder(path, encoder(16, 32), options, train_images, held, 2, said.append)
    share = float(said[0].split("accuracy ")[1].split()[0])
    assert share >= 0.8, said  # chance is 0.5; without norms it stays at 0.53
    restored = encoder(16, 32)
    restore_class_encoder(path, restored)
    with pytest.raises(CAEError, match="does not fit this run"):
        restore_class_encoder(path, encoder(4, 32))


@pytest.mark.parametrize(
    ("shares", "steps", "best"),
    [
        ([0.98], 2, 0),  # enough
        ([0.95, 0.99], 4, 1),  # not yet
        ([0.6, 0.7, 0.8], 6, 2),  # never enough, always better
        ([0.6, 0.604], 4, 1),  # not worth another turn
        ([0.7, 0.6], 4, 0),  # the first was better
    ],
)
def test_goes_on_while_it_helps_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: list[float], steps: int, best: int
) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    left = iter(shares)

    def share(network: NormedEncoder, *_: object) -> float:
        weights.append({name: value.clone() for name, value in network.state_dict().items()})
        return next(left)

    monkeypatch.setattr(warmup, "_share", share)
    data = tiny_folder(tmp_path / "data")
    splits = read_splits(data, 0.2, 0)
    images, held = (
        LabelledImages(ImageStore(part, 16, 1), part.labels)
        for part in (splits.train, splits.validation)
    )
    said: list[str] = []
    options = tiny_options(data, tmp_path / "run", warmup_steps=2)
    train_class_encoder(
        tmp_path / "encoder.pt", encoder(4, 16), options, images, held, 3, said.append
    )
    doubt = " (chance is 0.33): what it does not know, swaps will hardly show"
    assert said == [
        f"warmed up the class encoder in {steps} steps: balanced accuracy {shares[best]:.2f} on "
        f"{len(held.store)} held-out images{doubt if shares[best] < 2 / 3 else ''}"
    ]
    wanted = NormedEncoder(encoder(4, 16))
    wanted.load_state_dict(weights[best])
    kept = encoder(4, 16)
    restore_class_encoder(tmp_path / "encoder.pt", kept)
    for name, value in wanted.eval().fold().state_dict().items():
        torch.testing.assert_close(kept.state_dict()[name], value, rtol=0, atol=0)


def test_runs_begin_with_the_warmed_encoder_and_repeat(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    for name in ("one", "two"):
        train(tiny_options(data, tmp_path / name, warmup_steps=4, steps=1))
        assert (tmp_path / name / "class_encoder.pt").is_file()
    assert _same_weights(tmp_path)
    train(tiny_options(data, tmp_path / "cold", warmup_steps=0, steps=1))
    assert not (tmp_path / "cold" / "class_encoder.pt").exists()
    assert not _same_weights(tmp_path, "one", "cold")


def _same_weights(root: Path, first: str = "one", second: str = "two") -> bool:
    from safetensors.numpy import load_file

    a, b = (load_file(root / name / "model.safetensors") for name in (first, second))
    return all(np.array_equal(a[name], b[name]) for name in a)
