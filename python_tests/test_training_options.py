# SPDX-License-Identifier: Apache-2.0
"""Options of training: defaults, and wrong ones."""

from __future__ import annotations

from typing import Any

import pytest

from cae_fast.errors import CAEError
from cae_fast.training import LossWeights, TrainOptions
from cae_fast.training.options import default_by_size


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


@pytest.mark.parametrize(
    ("image_size", "width", "blocks", "steps", "rate"),
    [
        (16, 16, 2, 2000, 4e-4),
        (32, 16, 2, 2000, 4e-4),
        (36, 32, 4, 2000, 4e-4),
        (96, 32, 4, 2000, 4e-4),
        (100, 64, 6, 20_000, 2e-4),
    ],
)
def test_what_is_not_given_follows_the_size(
    image_size: int, width: int, blocks: int, steps: int, rate: float
) -> None:
    free = TrainOptions(data="data", out="out", image_size=image_size)
    found = (free.channels, free.num_blocks, free.steps, free.learning_rate)
    assert found == (width, blocks, steps, rate)
    arguments: dict[str, Any] = {"channels": None, "steps": None}  # as the command passes them
    assert free == TrainOptions(data="data", out="out", image_size=image_size, **arguments)
    given = TrainOptions(data="data", out="out", image_size=image_size, channels=8, steps=3)
    assert (given.channels, given.num_blocks, given.steps) == (8, blocks, 3)


def test_defaults_by_size_are_told_in_words() -> None:
    assert default_by_size("channels") == "16 up to 32 pixels, 32 up to 96, then 64"
    assert default_by_size("num_blocks") == "2 up to 32 pixels, 4 up to 96, then 6"
    assert default_by_size("steps") == "2000 up to 96 pixels, then 20000"
    assert default_by_size("learning_rate") == "0.0004 up to 96 pixels, then 0.0002"


def test_wrong_loss_weights_are_refused() -> None:
    with pytest.raises(CAEError, match=r"weights\.cycle must be in"):
        LossWeights(cycle=-1)
    with pytest.raises(CAEError, match="reconstruction or cycle must be above 0"):
        LossWeights(cycle=0, reconstruction=0)
    with pytest.raises(CAEError, match="unknown loss weight 'cycel', did you mean 'cycle'"):
        LossWeights.from_dict({"cycel": 1})
