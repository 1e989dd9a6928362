# SPDX-License-Identifier: Apache-2.0
"""What the method promises, measured on images that were not trained on.

Swapped images show the donor's class, codes survive decoding and encoding, and the classifier's
answer changes smoothly along a path of codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from ..networks import CAEModule

#: Images [N, C, S, S], float32 on the model's device, to logits [N, K].
TorchClassify = Callable[[Tensor], Tensor]

NEIGHBOURS = 5
_PATH_STEPS = 16
_BATCH = 64


@torch.no_grad()
def measure_promises(
    model: CAEModule,
    images: Tensor,
    labels: NDArray[np.int64],
    classify: TorchClassify,
    *,
    judge: str,
    reference: tuple[Tensor, NDArray[np.int64]] | None = None,
    swaps: int = 256,
    paths: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures a model on held-out images.

    Args:
        model: The networks, in eval mode.
        images: [N, C, S, S], float32, on the model's device.
        labels: Classes [N] the model was trained for.
        classify: Gives the logits by which classes are judged.
        judge: Name of that classifier, kept in the result.
        reference: Training images and their labels, whose codes are the neighbours for
            knn_accuracy; None: the other held-out images.
        swaps: Number of exchanges measured, drawn balanced over ordered class pairs.
        paths: Number of exchanges whose path is measured.
        seed: Draws the exchanges.

    Returns:
        judge, images; classifier_accuracy: of the judge on the images themselves;
        reconstruction_l1 (range of pixels is 2); class_kept: share of reconstructions that the
        judge puts into the class it gives the image; swap_success: share of swapped images that
        it puts into the donor's label; swap_changed: share whose class differs from the image's
        own; chance: swap success of a model that ignores the class code, at most; knn_accuracy:
        majority of the 5 nearest class codes; class_code_error and
        individual_code_error: L1 of codes re-encoded from swapped images, relative to the mean L1
        distance between codes of different images; path_largest_step: mean over paths of the
        largest change of the target's probability between neighbours of 17 points on the straight
        path between two class codes (1 would be a jump, 1/16 an even slope).
    """
    count = len(images)
    rng = np.random.default_rng([seed, 5])
    individual, codes = _encode(model, images)
    own = _decode(model, individual, codes)
    seen = _classes(classify, images)
    kept = _classes(classify, own)
    left, right = _draw_swaps(labels, swaps, rng)
    swapped = _decode(model, individual[left], codes[right])
    shown = _classes(classify, swapped)
    individual_again, codes_again = _encode(model, swapped)
    if reference is None:
        nearest = nearest_classes(codes, codes, labels, leave_out=True)
    else:
        nearest = nearest_classes(codes, _encode_classes(model, reference[0]), reference[1])
    class_error = _mean(codes_again - codes[right]) / _spread(codes, rng)
    individual_error = _mean(individual_again - individual[left]) / _spread(individual, rng)
    return {
        "judge": judge,
        "images": count,
        "classifier_accuracy": _share(seen == labels),
        "reconstruction_l1": round(_mean(own - images), 4),
        "class_kept": _share(kept == seen),
        "swap_success": _share(shown == labels[right]),
        "swap_changed": _share(shown != seen[left]),
        "chance": round(1 / len(np.unique(labels)), 4),
        "knn_accuracy": _share(nearest == labels),
        "class_code_error": round(class_error, 4),
        "individual_code_error": round(individual_error, 4),
        "path_largest_step": _path_largest_step(
            model, individual, codes, labels, left[:paths], right[:paths], classify
        ),
    }


def score_of(measured: dict[str, Any]) -> float:
    """One number for how well a model keeps its promises, at most 3."""
    shares = ("swap_success", "class_kept", "knn_accuracy")
    return float(sum(measured[k] for k in shares) - measured["reconstruction_l1"])


def warn_of(measured: dict[str, Any]) -> list[str]:
    """Promises that are plainly broken, one sentence each."""
    broken = []
    chance = measured["chance"]
    halfway = _halfway(chance)
    if measured["swap_success"] < halfway:
        broken.append(
            f"swapped images show the donor's class in {measured['swap_success']:.0%} only "
            f"(chance is about {chance:.0%}): explanations with this model would mislead"
        )
    if measured["class_kept"] < halfway:
        broken.append(f"reconstructions keep their class in {measured['class_kept']:.0%} only")
    if measured["knn_accuracy"] < halfway:
        broken.append(
            f"the class codes tell the class in {measured['knn_accuracy']:.0%} only: "
            "it may hide in the individual code"
        )
    return broken


def doubt_of(accuracy: float, num_classes: int) -> str:
    """What is to be said of a teacher of the classes before a run: "" unless it hardly knows them.

    Args:
        accuracy: Its balanced accuracy on held-out images.
        num_classes: K.
    """
    chance = 1 / num_classes
    if accuracy >= _halfway(chance):
        return ""
    return f" (chance is {chance:.2f}): what it does not know, swaps will hardly show"


def _halfway(chance: float) -> float:
    """Between chance and certainty: less is plainly too little."""
    return chance + 0.5 * (1 - chance)


def nearest_classes(
    codes: Tensor, known: Tensor, labels: NDArray[np.int64], *, leave_out: bool = False
) -> NDArray[np.int64]:
    """Majority class of the 5 nearest known codes (ties: the class of the nearest of them).

    Args:
        codes: Codes asked for, [N, D].
        known: Codes of known classes, [M, D].
        labels: Their classes [M].
        leave_out: `known` is `codes`, and a code is not its own neighbour.

    Returns:
        Classes [N], int64.
    """
    distance = torch.cdist(codes.float(), known.float())
    if leave_out:
        distance.fill_diagonal_(float("inf"))
    count = min(NEIGHBOURS, len(known) - leave_out)
    order = distance.argsort(dim=1)[:, :count].cpu().numpy()
    result = np.empty(len(codes), dtype=np.int64)
    for i, row in enumerate(labels[order]):
        votes = np.bincount(row)
        leading = np.flatnonzero(votes == votes.max())
        result[i] = next(label for label in row if label in leading)
    return result


def _encode(model: CAEModule, images: Tensor) -> tuple[Tensor, Tensor]:
    parts = [model.encode(part) for part in torch.split(images, _BATCH)]
    return torch.cat([a.float() for a, _ in parts]), torch.cat([b.float() for _, b in parts])


def _encode_classes(model: CAEModule, images: Tensor) -> Tensor:
    return torch.cat([model.encode_class(part).float() for part in torch.split(images, _BATCH)])


def _decode(model: CAEModule, individual: Tensor, codes: Tensor) -> Tensor:
    pairs = zip(torch.split(individual, _BATCH), torch.split(codes, _BATCH), strict=True)
    return torch.cat([model.decode(a, b).float() for a, b in pairs])


def _logits(classify: TorchClassify, images: Tensor) -> Tensor:
    return torch.cat([classify(part) for part in torch.split(images, _BATCH)]).float().cpu()


def _classes(classify: TorchClassify, images: Tensor) -> NDArray[np.int64]:
    classes: NDArray[np.int64] = _logits(classify, images).argmax(dim=1).numpy()
    return classes


def _draw_swaps(
    labels: NDArray[np.int64], swaps: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of images and donors, ordered class pairs in turn."""
    present = np.unique(labels)
    pairs = [(a, b) for a in present for b in present if a != b]
    order = rng.permutation(len(pairs))
    chosen = [pairs[order[i % len(pairs)]] for i in range(swaps)]
    left = [rng.choice(np.flatnonzero(labels == a)) for a, _ in chosen]
    right = [rng.choice(np.flatnonzero(labels == b)) for _, b in chosen]
    return np.asarray(left, dtype=np.int64), np.asarray(right, dtype=np.int64)


def _path_largest_step(
    model: CAEModule,
    individual: Tensor,
    codes: Tensor,
    labels: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    classify: TorchClassify,
) -> float:
    largest = []
    t = torch.linspace(0, 1, _PATH_STEPS + 1, device=codes.device)[:, None]
    for a, b in zip(left, right, strict=True):
        path = (1 - t) * codes[a] + t * codes[b]
        frames = _decode(model, individual[a].expand(len(t), -1, -1, -1), path)
        probability = _logits(classify, frames).softmax(dim=1)[:, labels[b]]
        largest.append(float(probability.diff().abs().max()))
    return round(float(np.mean(largest)), 4)


def _mean(values: Tensor) -> float:
    return float(values.abs().mean())


def _spread(codes: Tensor, rng: np.random.Generator) -> float:
    """Mean L1 distance between the codes of different images."""
    shift = int(rng.integers(1, len(codes)))
    return max(_mean(codes - codes.roll(shift, dims=0)), 1e-12)


def _share(matches: NDArray[np.bool_]) -> float:
    return round(float(np.mean(matches)), 4)
