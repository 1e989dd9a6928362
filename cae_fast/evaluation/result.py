# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is asked for and what it finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Float32
from ..explanation import Explanation
from .baselines import METHODS

Float = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
#: Measures of maps; True where more is better, None where neither is.
MAP_MEASURES: dict[str, bool | None] = {
    "deletion": False,
    "insertion": True,
    "aopc": True,
    "pointing": True,
    "energy_inside": True,
    "mask_auc": True,
    "best_iou": True,
    "seconds": False,
    "classified": False,
}


@dataclass(frozen=True)
class Settings:
    """What is measured and how; see `cae-fast evaluate --help`.

    Attributes:
        methods: Of METHODS, in the order of the tables.
        target: As in `Explainer.explain`: None, a class, or "any".
        explain: More arguments of `Explainer.explain` (k, path, search, ...).
        samples: Evaluations of LIME and KernelSHAP an image.
        mean_k: Exemplars that "cae-mean-k" averages over, at most; fewer in small banks.
        smooth_sigma: Of the Gaussian of "cae-smooth", in pixels; None is side / 32.
        all_pairs: Also look for a flip to each other class.
        sanity: Also compare with a randomised classifier.
        seed: Of everything drawn.
    """

    methods: Sequence[str] = METHODS
    target: Any = None
    explain: dict[str, Any] = field(default_factory=dict)
    samples: int = 500
    mean_k: int = 5
    smooth_sigma: float | None = None
    all_pairs: bool = False
    sanity: bool = True
    seed: int = 0


@dataclass
class SanityStage:
    """Maps compared with those under a randomised classifier.

    Attributes:
        layers: How many layers were randomised, from the output on.
        of_layers: Of how many.
        share: Share of all images that flip under both classifiers and are compared.
        correlation: By method: rank correlation [N] of the two maps, NaN for the others; empty
            where no image is compared.
        bank_judged: Whether the randomised classifier also chose the exemplars.
    """

    layers: int
    of_layers: int
    share: float
    correlation: dict[str, Float] = field(default_factory=dict)
    bank_judged: bool = False


@dataclass
class Evaluation:
    """What was measured on N images.

    Attributes:
        names: N file names.
        groups: N groups, drawn whole by the bootstrap.
        labels: Classes by the data set [N].
        classes: Classes by the classifier [N].
        class_names: K names.
        images: [N, C, S, S].
        masks: N masks or None.
        explanation: Of the images.
        counterfactual: Measures of counterfactuals, each [N], NaN where not defined.
        maps: Saliency [N, S, S] by method.
        measures: By method, then measure, [N].
        truth: The same of maps of the masks and of all else; see `truth.measure_truth`.
        left_out: Methods that did not run, with reasons.
        pairs: Share flipped [K, K], from row to column, and images of each; None where not asked.
        sanity: Comparisons with randomised classifiers, from one layer to all.
        notes: What a reader must know.
        accuracy: Balanced accuracy of the classifier on these images.
    """

    names: list[str]
    groups: list[str]
    labels: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    images: Float32
    masks: list[Mask | None]
    explanation: Explanation
    counterfactual: dict[str, Float]
    maps: dict[str, Float] = field(default_factory=dict)
    measures: dict[str, dict[str, Float]] = field(default_factory=dict)
    truth: dict[str, dict[str, Float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    pairs: tuple[Float, npt.NDArray[np.int64]] | None = None
    sanity: list[SanityStage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accuracy: float = math.nan


def judge_classifier(
    predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], num_classes: int
) -> tuple[float, list[str]]:
    """Balanced accuracy, and what speaks against explaining this classifier on these images."""
    present = np.unique(labels)
    accuracy = float(np.mean([np.mean(predicted[labels == k] == k) for k in present]))
    counts = np.bincount(labels, minlength=num_classes)
    notes = []
    chance = 1 / len(present)
    # The variance of a mean of recalls at chance, each over its own images.
    error = math.sqrt(sum(chance * (1 - chance) / counts[k] for k in present)) / len(present)
    if len(present) > 1 and accuracy <= chance + 2 * error:
        notes.append(
            f"the classifier is not clearly better than chance on these {len(labels)} images: "
            f"balanced accuracy {accuracy:.2f}, chance is {chance:.2f}; explanations of it mean "
            "nothing, and masks prove nothing"
        )
    few = [int(k) for k in present if counts[k] < 2]
    if few:
        notes.append(f"one image only in class {', '.join(map(str, few))}")
    if len(present) < num_classes:
        notes.append(f"{num_classes - len(present)} of {num_classes} classes have no image here")
    if counts[present].max() >= 4 * counts[present].min():
        notes.append(
            f"unbalanced classes: {counts.tolist()} images; means over images follow the large ones"
        )
    return accuracy, notes
