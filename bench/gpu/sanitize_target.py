# SPDX-License-Identifier: Apache-2.0
"""What compute-sanitizer watches: every call of the GPU engine on small models. Needs no torch."""

from __future__ import annotations

import sys

import numpy as np
from agree import engine_class

from cae_fast.model import CAE, CAEConfig
from cae_fast.testing import random_images

_CASES = {"4": (1, 1), "16": (3, 2)}  # channels -> image channels, blocks


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
        print(channels, np.isfinite(decoded).all(), np.isfinite(walked).all(), flush=True)


if __name__ == "__main__":
    main()
