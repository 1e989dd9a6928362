# SPDX-License-Identifier: Apache-2.0
"""Training in plain PyTorch: the class association embedding, and a classifier to explain.

The options need no torch; the functions import it when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .options import ClassifierOptions, LossWeights, TrainOptions

if TYPE_CHECKING:
    from .classifier import ClassifierFiles, train_classifier
    from .trainer import train

_HOMES = {
    "ClassifierFiles": "classifier",
    "train_classifier": "classifier",
    "train": "trainer",
}

__all__ = [
    "ClassifierFiles",
    "ClassifierOptions",
    "LossWeights",
    "TrainOptions",
    "train",
    "train_classifier",
]


def __getattr__(name: str) -> Any:
    """Resolves the functions that need torch.

    Raises:
        AttributeError: No such name.
        MissingExtra: torch is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torch":
            raise
        from ..errors import missing_extra

        raise missing_extra("train", "torch") from error
