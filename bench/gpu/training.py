# SPDX-License-Identifier: Apache-2.0
"""Step: seconds a training step, beside the authors' recipe, as bench/train_step.py has them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from record import Recorder, first_line

from cae_fast.model import CAEConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: Side, width, blocks, pairs: what docs/results.md trains, with more pairs, and the reference.
_CASES = ((96, 32, 4, 4), (96, 32, 4, 16), (64, 32, 4, 16), (256, 64, 6, 4))


def main() -> None:
    """Times each case; one that fails is a finding."""
    found = Recorder()
    torch = found.need_torch()
    from train_step import seconds_a_step  # lies beside gpu_check.sh, and needs torch

    torch.backends.cudnn.benchmark = True
    cases: dict[str, Any] = {}
    trouble = []
    for side, width, blocks, pairs in _CASES:
        name = f"{side} px, width {width}, {pairs} pairs"
        config = CAEConfig(image_size=side, channels=width, num_blocks=blocks, num_classes=2)
        try:
            cases[name] = seconds_a_step(config, pairs, rounds=7, device="cuda")
        except Exception as error:  # the other cases are timed all the same
            cases[name] = {"not_run": first_line(error)}
            trouble.append(f"{name}: {first_line(error)}")
        found.put("cases", cases)
        torch.cuda.empty_cache()
    said = [
        f"{name} {1e3 * timed['recipe, bf16']:.0f} ms"
        for name, timed in cases.items()
        if "recipe, bf16" in timed
    ]
    found.say(", ".join(said) + (f"; FAILED {'; '.join(trouble)}" if trouble else ""))
    sys.exit(bool(trouble))


if __name__ == "__main__":
    main()
