# SPDX-License-Identifier: Apache-2.0
"""Step: every tile of the convolutions by warpgroups beside the portable path, on capability 9.0.

Each tile in a process of its own, by clusters of 1, 2 and 4 blocks: a barrier that never comes ends
a process's CUDA context, and should end no other tile's check. `wgmma_tiles.py 64x128` is one.
"""

from __future__ import annotations

import subprocess
import sys

from probe import tile_agrees
from record import Recorder, first_line
from tune import TILES

_SECONDS = 25  # a barrier is given up after nine


def answer_of(tile: str) -> str:
    """What a tile's own process says: "agrees", or what is wrong."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, tile], capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return "out of time"
    lines = (done.stdout.strip() or done.stderr.strip() or f"status {done.returncode}").splitlines()
    return lines[-1]


def main() -> None:
    """Asks about one tile, or all."""
    if len(sys.argv) > 1:
        pixels, columns = map(int, sys.argv[1].split("x"))
        try:
            for cluster in (1, 2, 4):
                tile_agrees(cluster, (pixels, columns))
        except (OSError, RuntimeError) as error:
            print(first_line(error))
            sys.exit(1)
        print("agrees")
        return
    found = Recorder()
    torch = found.need_torch()
    if torch.cuda.get_device_capability() != (9, 0):
        found.skip("one path only: the compute capability is not 9.0")
    answers: dict[str, str] = {}
    for tile in TILES:
        answers[tile] = answer_of(tile)
        found.put("tiles", answers)
        found.say(", ".join(f"{name} {said}" for name, said in answers.items()))
    sys.exit(any(said != "agrees" for said in answers.values()))


if __name__ == "__main__":
    main()
