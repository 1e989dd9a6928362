# SPDX-License-Identifier: Apache-2.0
"""An explanation written by hand: one image of each status, for the tests of what shows it."""

from __future__ import annotations

import numpy as np

import cae_fast as cf
from cae_fast.report import STATUSES
from cae_fast.testing import random_images, toy_model

HOSTILE = '<script>alert("x")</script>'


def make_explanation(
    *,
    size: int = 16,
    channels: int = 3,
    class_names: tuple[str, ...] = ("round & red", HOSTILE, "[bold]third[/bold]"),
    frames: int = 5,
) -> cf.Explanation:
    """Explanation of six images, image i with status STATUSES[i], of the source class 0."""
    count, nan = len(STATUSES), np.nan
    images = random_images(toy_model(image_size=size, in_channels=channels).config, count)
    ends = images[::-1]
    reconstruction = (0.9 * images).astype(np.float32)
    counterfactual = (0.6 * reconstruction + 0.4 * ends).astype(np.float32)
    difference = counterfactual - reconstruction
    for row, status in enumerate(STATUSES):
        if status == "reconstruction_flips":
            counterfactual[row] = reconstruction[row]
            difference[row] = reconstruction[row] - images[row]
        elif status == "already_target":
            counterfactual[row] = images[row]
            difference[row] = 0.0
        elif status in ("non_finite", "rejected"):
            reconstruction[row] = counterfactual[row] = np.nan
            difference[row] = 0.0
    total = np.abs(difference).sum(axis=1)
    top = total.max(axis=(1, 2), keepdims=True)
    saliency = np.divide(total, top, out=np.zeros_like(total), where=top > 0)
    t = np.array([0.0, 0.25, 0.4375, 0.5, 0.75, 1.0], dtype=np.float32)
    logits = np.zeros((len(t), len(class_names)), dtype=np.float32)
    logits[:, 0], logits[:, 1] = 8 * (0.45 - t), -8 * (0.45 - t)
    never = logits.copy()
    never[:, 1] = -6 + 2 * t
    no_t, no_logits = t[:0], logits[:0]
    frame_t = np.linspace(0, 1, frames, dtype=np.float32)
    weight = frame_t[None, :, None, None, None]
    return cf.Explanation(
        status=np.array(STATUSES),
        counterfactual=counterfactual,
        reconstruction=reconstruction,
        difference=difference,
        saliency=saliency,
        t_flip=np.array([0.5, nan, nan, nan, nan, nan], dtype=np.float32),
        bracket=np.array([[0.4375, 0.5], *[[nan, nan]] * 5], dtype=np.float32),
        source_class=np.array([0, 0, 0, 0, -1, -1]),
        target_class=np.array([1, 1, 0, 1, 1, 1]),
        reached_class=np.array([1, 0, 0, 1, -1, -1]),
        logits_source=np.tile(logits[:1], (count, 1)),
        logits_counterfactual=np.tile(logits[-1:], (count, 1)),
        path_t=[t, t, no_t, t, no_t, no_t],
        path_logits=[logits, never, no_logits, logits[::-1], no_logits, no_logits],
        evaluations=np.array([6, 6, 0, 6, 0, 0]),
        exemplar=np.array([[3], [4], [-1], [5], [-1], [-1]]),
        images=images,
        names=["a/plain.png", f"{HOSTILE}.png", "../up.png", "a/plain.jpg", "[red]x[/red]", ""],
        class_names=class_names,
        meta={
            "version": "0",
            "model_sha256": "a" * 64,
            "bank_sha256": "b" * 64,
            "classifier": HOSTILE,
            "backend": "cpu",
            "parameters": {"tolerance": 1 / 256, "path": "line"},
            "seconds": {"total": 0.6, "search": 0.5},
            "rejected": {5: f"{HOSTILE}: truncated"},
        },
        exemplar_names=[("ex/1.png",), (f"{HOSTILE}.png",), (), ("ex/2.png",), (), ()],
        frame_t=frame_t,
        path_images=((1 - weight) * images[:, None] + weight * ends[:, None]).astype(np.float32),
    )
