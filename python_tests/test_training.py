# SPDX-License-Identifier: Apache-2.0
"""Training: data, losses, measured promises, the run folder, bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_cases import CLASSES, tiny_folder, tiny_options, write_classes

import cae_fast as cf
from cae_fast.data import ImageDataset
from cae_fast.errors import BackendUnavailable, CAEError, ClassifierError, ImageDecodeError
from cae_fast.training import LossWeights, TrainOptions

torch = pytest.importorskip("torch")

# These need torch.
from cae_fast.model import CAEConfig  # noqa: E402
from cae_fast.networks import CAEModule, Discriminator  # noqa: E402
from cae_fast.training import train  # noqa: E402
from cae_fast.training.devices import choose_device  # noqa: E402
from cae_fast.training.losses import (  # noqa: E402
    discriminator_losses,
    generator_losses,
    swap_classes,
    weighted_sum,
)
from cae_fast.training.pipeline import ImageStore, PairSampler, augmented  # noqa: E402
from cae_fast.training.promises import measure_promises, nearest_classes, warn_of  # noqa: E402
from cae_fast.training.state import schedule_factor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Networks this small lose time to a second thread, much of it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
            ("adversarial", 1), ("swap_class", 1),
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


# Parts


@pytest.fixture
def networks() -> tuple[CAEModule, Discriminator]:
    torch.manual_seed(0)
    config = CAEConfig(
        image_size=16, in_channels=1, channels=4, num_blocks=1, code_dim=4, num_classes=3,
        modulation_width=8,
    )  # fmt: skip
    return CAEModule(config), Discriminator(config).eval()


def test_swap_exchanges_codes_between_partners(
    networks: tuple[CAEModule, Discriminator],
) -> None:
    generator, _ = networks
    images = torch.rand(6, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        swap = swap_classes(generator, images, torch.arange(6) % 3)
        individual, codes = generator.encode(images)
        expected = generator.decode(individual[4:5], codes[1:2])
        own = generator.decode(individual[4:5], codes[4:5])
    torch.testing.assert_close(swap.swapped[4:5], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swap.reconstruction[4:5], own, atol=1e-5, rtol=1e-5)


def test_losses_are_those_of_the_method(networks: tuple[CAEModule, Discriminator]) -> None:
    generator, discriminator = networks
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        swap = swap_classes(generator, images, labels)
        losses = generator_losses(generator, discriminator, swap, LossWeights())
        individual, codes = generator.encode(images)
        crossed = generator.decode(individual, codes.flip(0))
        again = generator.encode(crossed)
        cycled = generator.decode(again[0], codes)
        real, classes = discriminator(crossed)
    expected = {
        "reconstruction": (generator.decode(individual, codes) - images).abs().mean(),
        "class_code": (again[1] - codes.flip(0)).abs().mean(),
        "individual_code": (again[0] - individual).abs().mean(),
        "cycle": (cycled - images).abs().mean(),
        "adversarial": -real.log_softmax(dim=1)[:, 1].mean(),
        "swap_class": -(classes.log_softmax(dim=1)[0, 0] + classes.log_softmax(dim=1)[1, 2]) / 2,
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-4, msg=name)
    weights = LossWeights(class_code=0, individual_code=0, cycle=0, swap_class=0, adversarial=3)
    some = generator_losses(generator, discriminator, swap, weights)
    assert set(some) == {"reconstruction", "adversarial"}
    total = 10 * float(losses["reconstruction"]) + 3 * float(losses["adversarial"])
    assert float(weighted_sum(some, weights)) == pytest.approx(total, rel=1e-5)


def test_discriminator_step_builds_no_graph_of_the_generator(
    networks: tuple[CAEModule, Discriminator],
) -> None:
    generator, discriminator = networks
    swap = swap_classes(generator, torch.rand(2, 1, 16, 16), torch.tensor([0, 1]))
    losses = discriminator_losses(discriminator, swap)
    weighted_sum(losses, LossWeights()).backward()
    assert all(p.grad is None for p in generator.parameters())
    assert any(p.grad is not None for p in discriminator.parameters())
    real, classes = discriminator(torch.cat([swap.images, swap.swapped]))
    truth = real.log_softmax(dim=1)
    wanted = -(truth[0, 1] + truth[1, 1] + truth[2, 0] + truth[3, 0]) / 4
    torch.testing.assert_close(losses["discriminator_real"], wanted)
    own = classes.log_softmax(dim=1)
    torch.testing.assert_close(losses["discriminator_class"], -(own[0, 0] + own[1, 1]) / 2)


def test_all_ordered_class_pairs_come_equally_often() -> None:
    labels = np.repeat([0, 1, 3], [20, 2, 10])
    sampler = PairSampler(labels, 4, 5, seed=0)
    counts: dict[tuple[int, int], int] = {}
    seen = set()
    for step in range(60):
        drawn = sampler.draw(step, sampler.rng(step))
        seen |= set(drawn.tolist())
        for a, b in zip(labels[drawn[:5]], labels[drawn[5:]], strict=True):
            counts[int(a), int(b)] = counts.get((int(a), int(b)), 0) + 1
    assert counts == dict.fromkeys([(0, 1), (0, 3), (1, 0), (1, 3), (3, 0), (3, 1)], 50)
    assert len(seen) == len(labels)


def test_processes_draw_different_pairs_and_steps_are_reproducible() -> None:
    labels = np.arange(40) % 4
    first, second = (PairSampler(labels, 4, 3, 0, rank=r, world=2) for r in (0, 1))
    draws = [s.draw(7, s.rng(7)).tolist() for s in (first, second, first)]
    assert draws[0] == draws[2] != draws[1]


def test_mirroring_keeps_pixels_and_turns_only_where_asked() -> None:
    images = torch.arange(32 * 9.0).reshape(32, 1, 3, 3)
    rng = np.random.default_rng(0)
    assert augmented(images, "none", rng) is images
    flipped = augmented(images, "flip", rng)
    mirrored = (flipped == images.flip(3)).all(dim=(1, 2, 3))
    assert bool((mirrored | (flipped == images).all(dim=(1, 2, 3))).all())
    assert 0 < int(mirrored.sum()) < 32
    turned = augmented(images, "dihedral", rng)
    assert torch.equal(turned.flatten(1).sort().values, images.flatten(1).sort().values)
    assert bool((turned == images.transpose(2, 3)).all(dim=(1, 2, 3)).any())


def test_store_keeps_the_levels_of_16_bit_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) + 30_000
        Image.fromarray(ramp).save(tmp_path / name / "ramp.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = ImageDataset.from_folder(tmp_path)
    image = ImageStore(dataset, 16, 1).images([0])
    assert len(image.unique()) == 256
    assert float((image - torch.from_numpy(dataset.load([0]))).abs().max()) <= 1 / 32767


def test_promises_of_a_perfect_and_of_a_useless_model() -> None:
    class Perfect(torch.nn.Module):
        """The mean is the class code, the rest the individual code."""

        def encode(self, images: Any) -> Any:
            mean = images.mean(dim=(1, 2, 3))
            return images - mean[:, None, None, None], mean[:, None]

        def decode(self, individual: Any, codes: Any) -> Any:
            return individual + codes[:, :, None, None]

    class Useless(Perfect):
        """The class code changes nothing."""

        def decode(self, individual: Any, codes: Any) -> Any:
            return individual

    torch.manual_seed(0)
    labels = np.arange(40) % 2
    images = (
        torch.randn(40, 1, 8, 8) * 0.01
        + torch.from_numpy(labels * 0.8 - 0.4)[:, None, None, None].float()
    )

    def classify(batch: Any) -> Any:
        mean = batch.mean(dim=(1, 2, 3))
        return torch.stack([-20 * mean, 20 * mean], dim=1)

    good = measure_promises(Perfect(), images, labels, classify, judge="rule")
    assert good["swap_success"] == good["class_kept"] == good["knn_accuracy"] == 1.0
    assert good["reconstruction_l1"] < 1e-4
    assert good["class_code_error"] < 1e-3
    assert 1 / 16 < good["path_largest_step"] < 0.5
    assert warn_of(good) == []
    bad = measure_promises(Useless(), images, labels, classify, judge="rule")
    assert bad["swap_success"] < 0.75
    assert any("swapped images" in sentence for sentence in warn_of(bad))


def test_nearest_classes_leaves_out_the_image_itself() -> None:
    codes = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [5.3], [0.05]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    assert nearest_classes(codes, codes, labels, leave_out=True)[7] == 0
    assert nearest_classes(codes[:1], codes[3:], labels[3:])[0] == 1


def test_schedules() -> None:
    assert [schedule_factor("halving", s, 100) for s in (0, 9, 10, 95)] == [1, 1, 0.5, 0.5**9]
    cosine = [schedule_factor("cosine", s, 100) for s in (0, 50, 75, 100)]
    assert cosine == pytest.approx([1, 1, 0.51, 0.02])
    assert schedule_factor("constant", 99, 100) == 1


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of 4, got 18"),
        ({"image_size": 12}, r"image_size must be in \[16, 4096\], got 12"),
        ({"batch_size": 0}, "batch_size must be in"),
        ({"steps": 0}, "steps must be in"),
        ({"steps": 2.5}, "steps must be an integer, got 2.5"),
        ({"steps": True}, "steps must be an integer, got True"),
        ({"learning_rate": 0.0}, "learning_rate must be in"),
        ({"learning_rate": float("nan")}, "learning_rate must be in"),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16, got 'fp16'"),
        ({"labels": "files"}, "labels must be one of folder, classifier"),
        ({"labels": "classifier"}, "needs classifier"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"in_channels": 5}, "in_channels must be in"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"weights": {"cycle": 1}}, "weights must be LossWeights"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CAEError, match=message):
        TrainOptions(data="data", out="out", **options)


def test_wrong_loss_weights_are_refused() -> None:
    with pytest.raises(CAEError, match=r"weights\.cycle must be in"):
        LossWeights(cycle=-1)
    with pytest.raises(CAEError, match="reconstruction or cycle must be above 0"):
        LossWeights(cycle=0, reconstruction=0)
    with pytest.raises(CAEError, match="unknown loss weight 'cycel', did you mean 'cycle'"):
        LossWeights.from_dict({"cycel": 1})


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


def test_grey_images_train_a_colour_model_by_repetition(data: Path, tmp_path: Path) -> None:
    path = quiet_train(data, tmp_path / "run", steps=1, in_channels=3)
    assert cf.CAE.load(path).config.in_channels == 3


def test_classifier_of_other_classes_or_shape_is_refused(data: Path, tmp_path: Path) -> None:
    named = cf.Classifier(brightness, labels=["cat", "dog"])
    with pytest.raises(ClassifierError, match="cat"):
        quiet_train(data, tmp_path / "named", classifier=named)
    with pytest.raises(ClassifierError, match=r"logits \[27, 3\], got \[27, 2\]"):
        quiet_train(data, tmp_path / "two", classifier=brightness, labels="classifier")
    with pytest.raises(ClassifierError, match=r"critic must be an existing \.pt2 file"):
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
