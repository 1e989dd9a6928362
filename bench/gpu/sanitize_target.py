# SPDX-License-Identifier: Apache-2.0
"""What compute-sanitizer watches: every call of the GPU engine on small models. Needs no torch.

A search as well, with points written for a classifier in halves, channels last and normalised.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from agree import engine_class

from cae_fast.model import CAE, CAEConfig
from cae_fast.testing import random_images

_CASES = {"4": (1, 1), "16": (3, 2)}  # channels -> image channels, blocks


def search(engine: Any, images: Any, paths: Any, *, grid: int, packed: bool = False) -> list[int]:
    """Statuses of a search whose classifier knows class 1 from the second round on."""
    module = sys.modules[type(engine).__module__]
    count, colours = images.shape[:2]
    form = {"dtype": "float16", "channels": colours, "channels_last": True}
    form |= {"mean": [0.5] * colours, "std": [0.25] * colours}
    rules = {"images": count, "num_classes": 2, "grid": grid, "depth": 2}
    device = module.GpuSearch(engine, None, **rules, classifier_input=form, packed=packed)
    ones = np.ones(count, dtype=np.int32)
    device.set_inputs(images, ones, np.ones(2, np.int32), ones * 0, paths.astype(np.float32))
    device.begin(np.array([[1, 0]] * count, dtype=np.float32), True)
    for i in range(device.rounds):
        points = device.decode(i, max(device.remaining(), 1) if packed else None).numpy()
        logits = np.array([[0, 1]] * len(points), dtype=np.float32)
        if i == 0:  # the points of an image lie side by side, the first is its reconstruction
            logits[:: len(points) // count] = [1, 0]
        device.step(i, logits)
    device.finish()
    return [int(status) for status in device.result()["status"]]


def main() -> None:
    """Encodes, decodes and walks a path; the channels to try are the arguments."""
    for channels in sys.argv[1:] or list(_CASES):
        colours, blocks = _CASES[channels]
        config = CAEConfig(
            image_size=16,
            in_channels=colours,
            channels=int(channels),
            num_blocks=blocks,
            modulation_width=32,
        )
        model = CAE.random(config, seed=0)
        engine = engine_class()(config.to_dict(), dict(model.weights), max_batch=2)
        images = random_images(config, 3)  # two groups
        individual, code = engine.encode(images)
        engine.encode_class(images).numpy()
        rows = np.array([0, 1, 2, 1], dtype=np.int32)
        codes = code.numpy()[rows]
        decoded = engine.decode(individual, codes, rows).numpy()
        vertices = np.stack([code.numpy(), code.numpy() + 1], axis=1)
        session = engine.session(individual, vertices, 8)
        walked = session.decode(rows, np.array([0, 3, 8, 8], dtype=np.int32)).numpy()
        found = search(engine, images[:2], vertices[:2], grid=4)
        found += search(engine, images[:2], vertices[:2], grid=256)
        found += search(engine, images[:2], vertices[:2], grid=256, packed=True)
        print(channels, np.isfinite(decoded).all(), np.isfinite(walked).all(), found, flush=True)


if __name__ == "__main__":
    main()
