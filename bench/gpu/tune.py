# SPDX-License-Identifier: Apache-2.0
"""Times every tile that can convolve each layer, by batch size, and writes the quickest down.

    python bench/gpu/tune.py                          times here, then writes the table
    python bench/gpu/tune.py --from results.json      writes it from a run of gpu_check.sh

The table is csrc/engine/gpu_tile_table.inc, read by engine/gpu_tiles.cpp; the extension is to be
rebuilt then. Tiles of a layer alternate, medians count. It needs a GPU, torch and the library that
the step `build` of gpu_check.sh makes. As the step `tiles` (--keep) it writes its findings only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from paths import choosing, paths_of
from race import Clock
from record import ROOT, Recorder, first_line, read_json

from cae_fast.model import CAE, CAEConfig

TABLE = ROOT / "csrc" / "engine" / "gpu_tile_table.inc"
#: Pixels and columns of a block; those that a path does not have are refused, and not timed.
TILES = ("128x64", "64x128", "128x128", "128x256")
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
#: A tile takes the place of the one for fewer images only if it saves this share of the time.
LEAST_GAIN = 0.01
_PATHS = {"portable": "kPortable", "wgmma, clusters of 2": "kWgmma"}
_KINDS = {0: "kConv3x3", 3: "kUpsample"}
_HEAD = """\
// SPDX-License-Identifier: Apache-2.0
// What gpu_tiles.cpp includes; `python bench/gpu/tune.py` writes it. How it was found, for GPUs of
// how many multiprocessors, then for each layer: path, kind, inputs, columns, height, width, from
// how many rows on, pixels and columns of a block.
"""

#: Microseconds of a layer by batch and tile. Layers are named as in the table; all keys are texts,
#: as JSON has them.
Timings = Mapping[str, Mapping[str, Mapping[str, float]]]


def steps(timed: Mapping[str, Mapping[str, float]]) -> list[tuple[int, str]]:
    """From how many images on which tile is taken: (images, tile), where it changes."""
    chosen: list[tuple[int, str]] = []
    for batch in sorted(map(int, timed)):
        by_tile = timed[str(batch)]
        if not by_tile:
            continue  # nothing ran
        best = min(by_tile, key=lambda tile: (by_tile[tile], TILES.index(tile)))
        before = by_tile.get(chosen[-1][1], float("inf")) if chosen else float("inf")
        if by_tile[best] < (1 - LEAST_GAIN) * before:
            chosen.append((batch if chosen else 1, best))
    return chosen


def table_text(source: str, multiprocessors: int, timings: Timings) -> str:
    """The table's file. Raises ValueError where nothing was timed."""
    rows = [
        f"    {{{layer}, {images}, {{{tile.replace('x', ', ')}}}}},"
        for layer, timed in timings.items()
        for images, tile in steps(timed)
    ]
    if not rows:
        raise ValueError("no layer was timed")
    words = "".join(c if c.isalnum() or c in " .,:+-()" else "?" for c in source)
    return "\n".join([f'{_HEAD}"{words}",', f"{multiprocessors},", "{", *rows, "}"]) + "\n"


def layer_name(path: str, shape: Sequence[int]) -> str:
    """A layer as the table names it."""
    kind, *sizes = shape
    return ", ".join([f"ConvPath::{_PATHS[path]}", f"ConvKind::{_KINDS[kind]}", *map(str, sizes)])


def measure(
    torch: Any, clock: Clock, found: Recorder, sizes: Sequence[int], batches: Sequence[int]
) -> dict[str, Any]:
    """Times all tiles of all layers; what has been timed is written down layer by layer."""
    from probe import Probe

    timings: dict[str, dict[str, dict[str, float]]] = {}
    for size in sizes:
        model = CAE.random(CAEConfig(image_size=size), seed=0)
        for path in paths_of(torch):
            with choosing(path):
                probe = Probe(model, max(batches))
            _decode(torch, probe, model.config, max(batches))
            index = 0
            while (shape := probe.layer_shape(index)) is not None:
                timed = timings.setdefault(layer_name(path, shape), {})
                for batch in batches:
                    timed[str(batch)] = _race(torch, clock, probe, index, batch)
                    found.put("timings", timings)
                index += 1
            probe.close()
    return timings


def _decode(torch: Any, probe: Any, config: CAEConfig, batch: int) -> None:
    """Fills the buffers that layers are timed on."""
    generator = np.random.default_rng(1)
    shape = (batch, *config.individual_shape)
    individual = torch.from_numpy(generator.standard_normal(shape, np.float32)).cuda()
    code = torch.from_numpy(generator.standard_normal((batch, config.code_dim), np.float32)).cuda()
    images = torch.empty(
        (batch, config.in_channels, config.image_size, config.image_size), device="cuda"
    )
    probe.decode(individual, code, images, int(torch.cuda.current_stream().cuda_stream))
    torch.cuda.synchronize()


def _race(torch: Any, clock: Clock, probe: Any, index: int, batch: int) -> dict[str, float]:
    queue = int(torch.cuda.current_stream().cuda_stream)

    def program(tile: str) -> Any:
        pixels, columns = map(int, tile.split("x"))
        return lambda: probe.layer(index, batch, (pixels, columns), queue)

    outcome = clock.race({tile: program(tile) for tile in TILES}, rounds=15, seconds=1.5)
    return {tile: row["us"] for tile, row in outcome.items() if "us" in row}


def gains(timings: Timings) -> str:
    """One line: how much the choice matters."""
    ratios = [
        max(by_tile.values()) / min(by_tile.values())
        for timed in timings.values()
        for by_tile in timed.values()
        if len(by_tile) > 1
    ]
    if not ratios:
        return "no two tiles were timed"
    return f"{len(ratios)} choices, another tile takes up to {max(ratios):.2f}x"


def write_table(measured: Mapping[str, Any]) -> None:
    """Puts what was measured in the table's place. Raises ValueError where nothing was."""
    text = table_text(
        str(measured.get("source")),
        int(measured.get("multiprocessors", 0)),
        measured.get("timings", {}),
    )
    beside = TABLE.with_suffix(".writing")
    beside.write_text(text, encoding="utf-8")
    beside.replace(TABLE)
    print(f"wrote {TABLE.relative_to(ROOT)}: {measured['source']}; rebuild the extension")


def recorded(path: Path) -> dict[str, Any]:
    """What the step `tiles` found in a run of gpu_check.sh."""
    for step in read_json(path).get("steps", []):
        if step.get("name") == "tiles":
            return dict(step.get("data", {}))
    return {}


def _commit() -> str:
    if given := os.environ.get("GPU_CHECK_COMMIT"):
        return given
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    said = subprocess.run(asked, capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def main() -> None:
    """Times and writes, or only one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="results", type=Path, help="results.json of gpu_check.sh")
    parser.add_argument("--keep", action="store_true", help="leave the table as it is")
    parser.add_argument("--image-size", type=int, nargs="+", default=[256, 128, 64])
    given = parser.parse_args()
    if given.results is not None:
        try:
            write_table(recorded(given.results))
        except ValueError as error:
            sys.exit(f"{given.results}: {error}; the table stays as it is")
        return
    found = Recorder()
    torch = found.need_torch()
    properties = torch.cuda.get_device_properties(0)
    day = datetime.now(UTC).date()
    found.put("source", f"measured on {properties.name}, {day}, commit {_commit()}")
    found.put("multiprocessors", properties.multi_processor_count)
    try:
        timings = measure(torch, Clock(torch), found, given.image_size, BATCHES)
    except Exception as error:
        found.say(first_line(error))
        sys.exit(1)
    found.say(gains(timings))
    if not given.keep:
        write_table(found.data)


if __name__ == "__main__":
    main()
