# SPDX-License-Identifier: Apache-2.0
"""Measures explanations of one classifier on one data set, beside other methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..arrays import Float32
from ..classifier_outputs import softmax
from ..data import ImageDataset
from ..errors import CAEError
from ..explainer import Explainer
from ..explanation import Explanation
from ..maps import PATH_FRAMES
from .baselines import BLIND_METHODS, METHODS, OWN_METHODS, Attribute, make_baseline
from .differentiable import differentiable
from .map_measures import (
    best_iou,
    energy_inside,
    fill_measures,
    mask_auc,
    pointing,
)
from .own_maps import own_maps
from .picture_measures import changed_share, code_realism, mean_l1, monotonicity, ssim
from .result import Evaluation, Float, Mask, Settings, judge_classifier
from .sanity_run import check_sanity
from .timing import seconds_by_turns
from .truth import measure_truth

_BACKGROUND = 16
_SAID = ("flipped", "not_flipped", "reconstruction_flips")


def evaluate(
    explainer: Explainer,
    dataset: ImageDataset,
    settings: Settings,
    *,
    masks: Sequence[Mask | None] | None = None,
    classifier_path: Path | None = None,
    bank_dataset: ImageDataset | None = None,
    on_note: Callable[[str], None] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Explains the images of a data set and measures the result.

    All methods explain the class that the classifier predicts; all see the same arrays.

    Args:
        explainer: With a bank.
        dataset: Images and labels of the explainer's classes.
        settings: What to measure.
        masks: Per image a mask [S, S] or None.
        classifier_path: File of the classifier, to randomise an ONNX one.
        bank_dataset: Where the bank's images lie, which a randomised classifier judges anew.
        on_note: Called with each note as soon as it is known, before anything is explained.
        on_progress: Called with what is being done.

    Raises:
        CAEError: Wrong methods or no image.
        ValueError: As in `Explainer.explain`.
    """
    unknown = [name for name in settings.methods if name not in METHODS]
    if unknown or not settings.methods:
        raise CAEError(f"unknown method {unknown[:1]}; known are {', '.join(METHODS)}")
    if explainer.bank is None:
        raise CAEError("evaluate needs an explainer with a bank")
    config = explainer.model.config
    say = on_progress or (lambda text: None)
    images, reasons = dataset.load(
        size=config.image_size,
        channels=config.in_channels if config.in_channels in (1, 3) else None,
        on_error="collect",
    )
    good = [i for i, why in enumerate(reasons) if why is None]
    if not good:
        raise CAEError(f"{dataset.root}: no readable image: {next(w for w in reasons if w)}")
    images, part = images[good], dataset.subset(good)
    known = list(masks) if masks is not None else [None] * len(dataset)
    logits = explainer.classifier(images)
    classes = logits.argmax(axis=1).astype(np.int64)
    accuracy, notes = judge_classifier(classes, part.labels, config.num_classes)
    notes += [f"not readable and left out: {why}" for why in reasons if why]
    for note in notes:
        if on_note is not None:
            on_note(note)
    say("explaining")
    found = _explained(explainer, images, part.files, settings)
    result = Evaluation(
        names=part.files,
        groups=part.groups,
        labels=part.labels,
        classes=classes,
        class_names=explainer.class_names,
        images=images,
        masks=[known[i] for i in good],
        explanation=found,
        counterfactual=_counterfactual_measures(explainer, found),
        notes=notes,
        accuracy=accuracy,
    )
    calls = _Counted(explainer)
    methods = _methods(explainer, images, settings, result, calls)
    for name in settings.methods:
        if name in OWN_METHODS:
            say(name)
            own = own_maps(name, explainer, found, settings)
            result.maps[name], classified = own.maps, own.classified
        elif name in methods:
            say(name)
            result.maps[name], number = _maps(methods[name], images, classes, calls)
            classified = np.full(len(images), number)
        else:
            continue
        say(f"measuring {name}")
        result.measures[name] = _map_measures(result, name, explainer, settings.seed)
        result.measures[name]["classified"] = classified
    if any(mask is not None for mask in result.masks):
        say("measuring the masks themselves")
        result.truth = measure_truth(
            images, result.masks, part.labels, classes, explainer.classifier, seed=settings.seed
        )
    say("timing")
    for name, seconds in seconds_by_turns(explainer, images, classes, settings, methods).items():
        result.measures[name]["seconds"] = np.full(len(images), seconds)
    if settings.all_pairs:
        say("all pairs of classes")
        result.pairs = _all_pairs(explainer, images, classes, settings)
    if settings.sanity:
        check_sanity(
            explainer,
            images,
            settings,
            result,
            classifier_path,
            frames=PATH_FRAMES,
            say=say,
            bank_dataset=bank_dataset,
        )
    return result


def _explained(
    explainer: Explainer, images: Float32, names: list[str], settings: Settings
) -> Explanation:
    """Explanations with path frames."""
    arguments = {"target": settings.target, "names": names} | settings.explain
    return explainer.explain(images, frames=PATH_FRAMES, **arguments).numpy()


def _counterfactual_measures(explainer: Explainer, found: Explanation) -> dict[str, Float]:
    """Per image; NaN where it was of the target class from the start, or nothing flipped."""
    status = found.status
    asked = np.isin(status, _SAID)
    flipped = status == "flipped"
    count = len(found)

    def where_flipped(values: Float) -> Float:
        return np.where(flipped, values, np.nan)

    measured: dict[str, Float] = {
        "validity": np.where(asked, flipped.astype(float), np.nan),
        "class_kept": np.where(asked, found.reconstructed_class == found.source_class, np.nan),
        "start_kept": np.where(asked, found.start_class == found.source_class, np.nan),
        "l1_to_image": where_flipped(mean_l1(found.counterfactual, found.images)),
        "l1_to_reconstruction": where_flipped(mean_l1(found.counterfactual, found.reconstruction)),
        "ssim_to_image": where_flipped(ssim(found.counterfactual, found.images)),
        "changed_pixels": where_flipped(changed_share(found.difference)),
        "reconstruction_l1": mean_l1(found.reconstruction, found.images),
        "t_flip": np.asarray(found.t_flip, dtype=float),
        "decodes": np.asarray(found.evaluations, dtype=float),
        "realism": np.full(count, np.nan),
        "monotonicity": np.full(count, np.nan),
    }
    rows = np.flatnonzero(flipped)
    if len(rows) and explainer.bank is not None:
        again = explainer.encode(np.clip(found.counterfactual[rows], -1, 1)).class_code
        measured["realism"][rows] = code_realism(again, found.reached_class[rows], explainer.bank)
        for i in rows:
            frames = np.clip(np.ascontiguousarray(found.path_images[i]), -1, 1)
            probability = softmax(explainer.classifier(frames))[:, found.reached_class[i]]
            measured["monotonicity"][i] = monotonicity(probability[None])[0]
    return measured


class _Counted:
    """The explainer's classifier, counting images."""

    def __init__(self, explainer: Explainer) -> None:
        self.classifier = explainer.classifier
        self.images = 0

    def __call__(self, images: Float32) -> Float32:
        self.images += len(images)
        return self.classifier(images)


def _methods(
    explainer: Explainer,
    images: Float32,
    settings: Settings,
    result: Evaluation,
    calls: _Counted,
) -> dict[str, Attribute]:
    """The baselines that can run; the others go to `left_out`."""
    wanted = [name for name in settings.methods if name not in OWN_METHODS]
    if not wanted:
        return {}
    gradients = (
        differentiable(explainer.classifier)
        if set(wanted) - set(BLIND_METHODS)
        else "not asked for"
    )
    rng = np.random.default_rng(settings.seed)
    background = images[rng.permutation(len(images))[:_BACKGROUND]]
    methods = {}
    for name in wanted:
        made = make_baseline(
            name, calls, gradients, background, samples=settings.samples, seed=settings.seed
        )
        if isinstance(made, str):
            result.left_out[name] = made
        else:
            methods[name] = made
    return methods


def _maps(
    attribute: Attribute, images: Float32, classes: npt.NDArray[np.int64], calls: _Counted
) -> tuple[Float, float]:
    """Maps [N, S, S] with their maximum at 1, and images classified for one."""
    calls.images = 0
    parts = [
        attribute(images[first : first + 16], classes[first : first + 16])
        for first in range(0, len(images), 16)
    ]
    maps = np.nan_to_num(np.concatenate(parts).astype(np.float64), posinf=0.0, neginf=0.0)
    peak = maps.max(axis=(1, 2), keepdims=True)
    number = calls.images / len(images) or math.nan  # gradient methods do not ask the black box
    return maps / np.where(peak > 0, peak, 1), number


def _map_measures(
    result: Evaluation, name: str, explainer: Explainer, seed: int
) -> dict[str, Float]:
    maps = result.maps[name]
    measured = fill_measures(result.images, maps, result.classes, explainer.classifier, seed=seed)
    if any(mask is not None for mask in result.masks):
        for measure, function in (
            ("pointing", pointing),
            ("energy_inside", energy_inside),
            ("mask_auc", mask_auc),
            ("best_iou", best_iou),
        ):
            measured[measure] = np.array(
                [
                    math.nan if mask is None else function(values, mask)
                    for values, mask in zip(maps, result.masks, strict=True)
                ]
            )
    return measured


def _all_pairs(
    explainer: Explainer, images: Float32, classes: npt.NDArray[np.int64], settings: Settings
) -> tuple[Float, npt.NDArray[np.int64]]:
    count = explainer.model.config.num_classes
    share = np.full((count, count), np.nan)
    number = np.zeros((count, count), dtype=np.int64)
    for target in range(count):
        rows = np.flatnonzero(classes != target)
        if not len(rows):
            continue
        found = explainer.explain(images[rows], target=target, **settings.explain)
        flipped = np.asarray(found.status == "flipped")
        for source in np.unique(classes[rows]):
            mine = classes[rows] == source
            share[source, target] = float(flipped[mine].mean())
            number[source, target] = int(mine.sum())
    return share, number
