# SPDX-License-Identifier: Apache-2.0
"""Tiny image folders and options that the tests of training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cae_fast.training import TrainOptions

CLASSES = ("dark", "light", "striped")


def write_classes(
    root: Path,
    counts: dict[str, int],
    *,
    split: str = "train",
    size: int = 16,
    colour: bool = False,
    seed: int = 0,
) -> Path:
    """Write images that even a tiny network tells apart: dark, light, or striped."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 60, (size, size, 3 if colour else 1))
            if name == "light":
                pixels = pixels + 150
            if name == "striped":
                pixels[::2] += 190
            picture = pixels.astype(np.uint8)
            Image.fromarray(picture if colour else picture[..., 0]).save(folder / f"{i}.png")
    return root


def tiny_folder(root: Path, **options: Any) -> Path:
    """Three classes, 10 training and 3 test images each."""
    write_classes(root, dict.fromkeys(CLASSES, 10), **options)
    return write_classes(root, dict.fromkeys(CLASSES, 3), split="test", seed=1, **options)


def tiny_options(data: Path, out: Path, **overrides: Any) -> TrainOptions:
    """A run of seconds: 16 x 16 pixels, width 4, one block."""
    fields: dict[str, Any] = {
        "image_size": 16,
        "channels": 4,
        "num_blocks": 1,
        "code_dim": 4,
        "modulation_width": 8,
        "steps": 3,
        "batch_size": 2,
        "log_every": 1,
        "checkpoint_every": 1,
        "device": "cpu",
        "critic": "none",
        "warmup_steps": 0,
        "quiet": True,
    }
    return TrainOptions(data=data, out=out, **(fields | overrides))
