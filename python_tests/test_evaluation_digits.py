# SPDX-License-Identifier: Apache-2.0
"""Maps and sanity check of an evaluation on real digits: the bundled model, a small classifier."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cae_fast as cf
from cae_fast.counterfactual_maps import mean_over_exemplars, weighted_along_path
from cae_fast.data import ImageDataset
from cae_fast.demo import model_folder
from cae_fast.digits import load
from cae_fast.errors import BankError
from cae_fast.evaluation.baselines import OWN_METHODS
from cae_fast.evaluation.page import write_report
from cae_fast.evaluation.result import Evaluation, Settings
from cae_fast.evaluation.run import evaluate
from cae_fast.evaluation.sanity import cascade_depths, layer_count, randomised, recentred
from cae_fast.evaluation.timing import seconds_by_turns
from cae_fast.saliency import mean_saliency, path_saliency, smooth_saliency
from cae_fast.testing import toy_model

SIDE = 32


class SmallNetwork(torch.nn.Module):
    """Three convolutions and two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = torch.nn.Conv2d(1, 8, 3, 2, 1)
        self.conv1 = torch.nn.Conv2d(8, 16, 3, 2, 1)
        self.conv2 = torch.nn.Conv2d(16, 16, 3, 2, 1)
        self.hidden = torch.nn.Linear(16 * 4 * 4, 32)
        self.head = torch.nn.Linear(32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(torch.relu(self.conv0(images))))))
        result: torch.Tensor = self.head(torch.relu(self.hidden(x.flatten(1))))
        return result


@dataclasses.dataclass(frozen=True)
class Case:
    explainer: cf.Explainer
    images: np.ndarray
    dataset: ImageDataset


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    pixels, labels, test = load(SIDE)
    inputs = torch.from_numpy(pixels[~test, None]).float() / 127.5 - 1
    wanted = torch.from_numpy(labels[~test])
    torch.manual_seed(0)
    network = SmallNetwork()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        batch = torch.randint(len(inputs), (64,))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs[batch]), wanted[batch]).backward()
        optimiser.step()
    network.eval()
    folder = tmp_path_factory.mktemp("digits")
    for label in range(10):
        (folder / str(label)).mkdir()
        for row in np.flatnonzero(test & (labels == label))[:2]:
            Image.fromarray(pixels[row]).save(folder / str(label) / f"{row}.png")
    dataset = ImageDataset.from_folder(folder)
    demo = model_folder("digits")
    model = cf.CAE.load(demo / "model.safetensors")
    explainer = cf.Explainer(
        model, network, bank=cf.CodeBank.load(demo / "bank.csv"), backend="cpu", max_batch=8
    )
    images = dataset.load(size=SIDE, channels=1)
    return Case(explainer, images, dataset)


@pytest.fixture(scope="module")
def found(case: Case) -> Any:
    return case.explainer.explain(case.images, frames=9)


@pytest.fixture(scope="module")
def result(case: Case) -> Evaluation:
    methods = (*OWN_METHODS, "integrated_gradients", "uniform")
    settings = Settings(methods=methods, mean_k=3, smooth_sigma=2.0)
    return evaluate(case.explainer, case.dataset, settings)


def test_methods_are_timed_by_turns(case: Case) -> None:
    calls: list[str] = []

    def method(name: str, wait_s: float) -> Any:
        def attribute(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
            calls.append(name)
            assert len(images) == len(classes) <= 4
            time.sleep(wait_s)
            return images[:, 0]

        return attribute

    methods = {"slow": method("slow", 0.04), "quick": method("quick", 0.0)}
    settings = Settings(methods=("cae", "slow", "cae-weighted", "quick"))
    classes = case.explainer.classifier(case.images).argmax(axis=1)
    arguments = case.explainer, case.images[:18], classes[:18], settings, methods
    seconds = seconds_by_turns(*arguments)
    assert calls == ["slow", "quick"] * 5
    assert seconds.keys() == {"cae", "cae-weighted", "slow", "quick"}
    assert seconds["slow"] >= 0.04 / 4
    assert seconds["quick"] > 0
    assert 0 < seconds["cae"] < seconds["cae-weighted"]


def test_the_mean_over_exemplars_is_the_mean_of_explanations(case: Case, found: Any) -> None:
    before = found.saliency.copy()
    several = mean_over_exemplars(case.explainer, found, k=3)
    np.testing.assert_array_equal(found.saliency, before)
    searched = np.isin(found.status, ("flipped", "not_flipped")) & ~found.searched_again
    assert searched.sum() >= 15
    assert several.maps.shape == (20, 3, SIDE, SIDE)
    assert (several.exemplar[searched] >= 0).all()
    assert (several.exemplar[~searched] == -1).all()
    assert several.flipped.sum() >= 15
    bank = case.explainer.bank
    assert bank is not None
    np.testing.assert_array_equal(
        bank.labels[several.exemplar[searched]],
        np.repeat(found.target_class[searched, None], 3, axis=1),
    )
    row = int(np.flatnonzero(several.flipped.sum(axis=1) >= 2)[0])
    alone = [
        case.explainer.explain(
            case.images[row : row + 1],
            int(found.target_class[row]),
            several.exemplar[row, j : j + 1],
            reach=found.reach,
        )
        for j in range(3)
    ]
    assert [bool(one.flipped[0]) for one in alone] == several.flipped[row].tolist()
    for j, one in enumerate(alone):
        np.testing.assert_allclose(several.maps[row, j], one.saliency[0], atol=1e-5)
    mean = mean_saliency(several.maps[row][None], several.flipped[row][None])
    np.testing.assert_allclose(several.saliency[row], mean[0], atol=1e-6)
    none = ~several.flipped.any(axis=1)
    np.testing.assert_array_equal(several.saliency[none], found.saliency[none])


def test_one_nearest_exemplar_gives_the_explanation_of_it(case: Case) -> None:
    one = case.explainer.explain(case.images, exemplars="nearest", k=1, second_try=False)
    again = mean_over_exemplars(case.explainer, one, k=1)
    searched = np.isin(one.status, ("flipped", "not_flipped"))
    np.testing.assert_array_equal(again.exemplar[searched], one.exemplar[searched])
    np.testing.assert_allclose(again.saliency, one.saliency, atol=1e-5)


def test_weights_follow_the_classifier_along_the_path(case: Case, found: Any) -> None:
    maps = weighted_along_path(case.explainer, found)
    row = int(np.flatnonzero(found.status == "flipped")[0])
    frames = np.clip(found.path_images[row], -1, 1)
    logits = case.explainer.classifier(frames).astype(float)
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = path_saliency(frames[None], chance[None, :, found.reached_class[row]])
    np.testing.assert_allclose(maps[row], expected[0], atol=1e-5)
    assert maps.max() <= 1
    assert (maps[found.status == "flipped"].max(axis=(1, 2)) == 1).all()


def test_what_the_maps_need_is_said(case: Case) -> None:
    plain = case.explainer.explain(case.images[:2])
    with pytest.raises(ValueError, match="no frames"):
        weighted_along_path(case.explainer, plain)
    with pytest.raises(ValueError, match="k must be"):
        mean_over_exemplars(case.explainer, plain, k=0)
    with pytest.raises(BankError, match="correctly classified"):
        mean_over_exemplars(case.explainer, plain, k=10_000)
    given = case.explainer.explain(case.images[:2], 3, case.images[2:4])
    with pytest.raises(ValueError, match="were given"):
        mean_over_exemplars(case.explainer, given)
    alone = cf.Explainer(case.explainer.model, case.explainer.classifier, backend="cpu")
    with pytest.raises(BankError, match="bank"):
        mean_over_exemplars(alone, plain)


def test_an_evaluation_measures_each_map(result: Evaluation) -> None:
    assert list(result.measures) == [*OWN_METHODS, "integrated_gradients", "uniform"]
    maps = result.maps
    np.testing.assert_array_equal(maps["cae"], result.explanation.saliency)
    np.testing.assert_array_equal(
        maps["cae-smooth"], smooth_saliency(result.explanation.saliency, 2.0)
    )
    for other in set(OWN_METHODS) - {"cae"}:
        assert not np.allclose(maps[other], maps["cae"])
    seen = {name: float(np.mean(result.measures[name]["classified"])) for name in OWN_METHODS}
    assert seen["cae"] == seen["cae-smooth"]
    assert seen["cae-weighted"] > seen["cae"] + 10
    assert seen["cae-mean-k"] > 2 * seen["cae"]
    flipped = (result.explanation.status == "flipped").mean()
    searched = np.isin(result.explanation.status, ("flipped", "not_flipped")).mean()
    assert seen["cae-edit"] == pytest.approx(seen["cae"] + 65 * flipped)
    assert seen["cae-evidence"] == pytest.approx(seen["cae"] + 84 * searched)


def test_randomised_classifiers_are_really_compared(
    result: Evaluation, case: Case, tmp_path: Path
) -> None:
    assert [(stage.layers, stage.of_layers) for stage in result.sanity] == [
        (1, 5),
        (2, 5),
        (3, 5),
        (5, 5),
    ]
    flipped = result.explanation.status == "flipped"
    compared = 0
    for stage in result.sanity:
        for name, values in stage.correlation.items():
            assert name in (*OWN_METHODS, "integrated_gradients")
            assert np.isnan(values[~flipped]).all()
            assert (np.abs(values[np.isfinite(values)]) <= 1).all()
            assert np.isfinite(values).sum() <= round(stage.share * len(values))
        if stage.correlation:
            counted = int(np.isfinite(stage.correlation["cae"]).sum())
            assert counted == round(stage.share * len(flipped)) > 0
            compared += counted
    assert sum(stage.share > 0 for stage in result.sanity) >= 3
    assert compared >= 10
    write_report(tmp_path / "out", result, title="t", about={}, draws=100)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "last 3 of 5" in page
    assert f"{result.sanity[2].share:.0%} of the images" in page


def test_the_same_weights_give_the_same_maps(case: Case) -> None:
    """What is compared is not noise: with nothing randomised the correlation is 1."""
    from cae_fast.evaluation.sanity import rank_correlation

    other = randomised(case.explainer.classifier, None, layers=0)
    assert isinstance(other, cf.Classifier)
    one = case.explainer.explain(case.images[:6])
    same = cf.Explainer(case.explainer.model, other, bank=case.explainer.bank, backend="cpu")
    again = same.explain(case.images[:6])
    np.testing.assert_allclose(rank_correlation(one.saliency, again.saliency), 1, atol=1e-3)


def test_exemplars_follow_the_randomised_classifier(case: Case, result: Evaluation) -> None:
    """With the real classifier's exemplars the paths are the same: maps then agree more."""
    assert all(stage.bank_judged for stage in result.sanity)
    bank = case.explainer.bank
    assert bank is not None
    blind = cf.Explainer(
        case.explainer.model,
        case.explainer.classifier,
        bank=dataclasses.replace(bank, thumbnails=None, _sha256=None),
        backend="cpu",
    )
    before = evaluate(blind, case.dataset, Settings(methods=("cae",)))
    assert not any(stage.bank_judged for stage in before.sanity)
    assert before.notes[-1].startswith("sanity check with the real classifier's exemplars")
    means = [
        np.nanmean(np.concatenate([stage.correlation["cae"] for stage in one.sanity[-2:]]))
        for one in (before, result)
    ]
    assert means[1] < means[0] - 0.05, means


def test_layers_are_shuffled_from_the_output(case: Case) -> None:
    classifier = case.explainer.classifier
    before: Any = classifier.function
    names = ["conv0", "conv1", "conv2", "hidden", "head"]
    assert layer_count(classifier, None) == 5
    for layers in range(6):
        other = randomised(classifier, None, layers=layers, seed=3)
        assert isinstance(other, cf.Classifier)
        after: Any = other.function
        for place, name in enumerate(names):
            one, two = (getattr(net, name).weight.detach().numpy() for net in (before, after))
            assert (not np.array_equal(one, two)) == (place >= 5 - layers)
            np.testing.assert_array_equal(np.sort(one, axis=None), np.sort(two, axis=None))
            np.testing.assert_array_equal(
                getattr(before, name).bias.detach(), getattr(after, name).bias.detach()
            )


def test_files_are_shuffled_in_the_order_of_use(case: Case, tmp_path: Path) -> None:
    """A .pt2 and an ONNX file of the same network lose the same layers."""
    network: Any = case.explainer.classifier.function
    example = (torch.zeros(2, 1, SIDE, SIDE),)
    batch = {"images": {0: torch.export.Dim("n")}}
    program = torch.export.export(network, example, dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "net.pt2")
    torch.onnx.export(network, example, tmp_path / "net.onnx", dynamic_shapes=batch, verbose=False)
    expected = randomised(case.explainer.classifier, None, layers=2, seed=1)
    assert isinstance(expected, cf.Classifier)
    logits = expected(case.images)
    for name in ("net.pt2", "net.onnx"):
        path = tmp_path / name
        loaded = cf.Classifier.load(path)
        assert layer_count(loaded, path) == 5
        other = randomised(loaded, path, layers=2, seed=1)
        assert isinstance(other, cf.Classifier)
        np.testing.assert_allclose(other(case.images), logits, atol=1e-4)


def test_centred_logits_have_no_favourite_class(case: Case) -> None:
    other = randomised(case.explainer.classifier, None)
    assert isinstance(other, cf.Classifier)
    centred = recentred(other, case.images)
    logits = centred(case.images)
    np.testing.assert_allclose(logits.mean(axis=0), 0, atol=1e-4)
    apart = other(case.images) - logits
    np.testing.assert_allclose(apart, np.repeat(apart[:1], len(apart), axis=0), atol=1e-4)
    assert len(np.unique(logits.argmax(axis=1))) >= 3


def test_depths_and_what_cannot_be_randomised() -> None:
    assert [cascade_depths(n) for n in (0, 1, 2, 8, 14)] == [
        (), (1,), (1, 2), (1, 2, 4, 8), (1, 4, 7, 14),
    ]  # fmt: skip
    black_box = cf.Classifier(lambda images: np.zeros((len(images), 2), np.float32), name="box")
    said = layer_count(black_box, None)
    assert isinstance(said, str)
    assert "box: its weights cannot be randomised" in said
    assert randomised(black_box, None) == said


def test_a_check_that_compared_nothing_says_so(case: Case) -> None:
    """No image flips where a path must end with more than any probability it can have."""
    settings = Settings(methods=("cae",), explain={"min_probability": 1.0})
    few = evaluate(case.explainer, case.dataset.subset([0, 5, 11]), settings)
    assert not (few.explanation.status == "flipped").any()
    assert [stage.share for stage in few.sanity] == [0.0] * 4
    assert few.notes[-1].startswith("sanity check: no image flips under")


def test_colour_files_are_measured_by_a_grey_model(case: Case, tmp_path: Path) -> None:
    """The same pixels as RGB files, some with equal channels and some grey: one set, one result."""
    for i in range(20):
        name = Path(case.dataset.files[i])
        target = tmp_path / name.parent.name / name.name
        target.parent.mkdir(exist_ok=True)
        grey = Image.open(Path(case.dataset.root) / name)
        (grey.convert("RGB") if i % 2 else grey).save(target)
    mixed = evaluate(
        case.explainer, ImageDataset.from_folder(tmp_path), Settings(methods=("cae",), sanity=False)
    )
    np.testing.assert_allclose(mixed.images, case.images, atol=1e-6)  # weights of luminance
    assert mixed.images.shape == (20, 1, SIDE, SIDE)
    assert mixed.accuracy >= 0.9


def test_grey_images_in_a_colour_folder_are_measured(tmp_path: Path) -> None:
    """A model of three channels sees a grey file as one whose channels are equal."""
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        pixels[..., i % 3] = 255 * (i % 4 > 0)  # every fourth class member is hard to tell
        target = tmp_path / str(i % 3) / f"{i:02d}.png"
        target.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(pixels)
        (picture.convert("L") if i < 6 else picture).save(target)
    dataset = ImageDataset.from_folder(tmp_path)
    model = toy_model(in_channels=3)

    def brightest(images: Any) -> np.ndarray:
        return np.asarray(images).mean(axis=(2, 3)) * 5

    bank = cf.CodeBank.build(model, dataset, classifier=cf.Classifier(brightest))
    explainer = cf.Explainer(model, brightest, bank=bank, backend="cpu")
    measured = evaluate(explainer, dataset, Settings(methods=("cae", "uniform")))
    assert measured.images.shape == (24, 3, 16, 16)
    grey = [int(Path(name).stem) < 6 for name in measured.names]
    equal = (np.ptp(measured.images, axis=1) == 0).all(axis=(1, 2))
    assert equal.tolist() == grey
    assert sum(grey) == 6
    assert np.isfinite(measured.measures["cae"]["deletion"]).all()
    assert measured.notes[-1].startswith("no sanity check: ")
