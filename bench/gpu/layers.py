# SPDX-License-Identifier: Apache-2.0
"""Step: what each kernel of a decode and an encode takes, in place, from torch's profiler.

On capability 9.0 by both paths of the convolutions. `layers.py once` decodes one image and 64 by
each, twice, the second time between profiler start and stop: for ncu.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from paths import choosing, paths_of
from race import Clock, matrix_rate
from record import Recorder, first_line
from speed import CONFIG, Sides

from cae_fast.model import CAE

_CALLS = 12
_CONV = re.compile(
    r"conv_(?:tile|wgmma)_kernel<.*?ConvShape<\D*?(\d)\D+(\d+)>, \D*?(\d+)"
    r".*?ConvPrologue\)(\d).*?ConvEpilogue\)(\d)"
)
_KINDS = ("conv3x3", "stride2", "image7x7", "upsample")
_PROLOGUES = ("plain", "affine", "residual")


def label_of(name: str, grid: list[int], batch: int) -> tuple[str, float]:
    """What a kernel is, and its operations as far as its name and grid tell: 0 if they do not."""
    if found := _CONV.search(name):
        kind, width, columns, prologue = (int(found[i]) for i in range(1, 5))
        total = grid[1] * columns
        pixels = grid[0] * 8 * width
        wide = 4 * CONFIG.channels
        depth = {
            0: 9 * total,
            1: 16 * (wide // 2 if pixels >= (CONFIG.image_size // 4) ** 2 else wide),
            2: 49 * CONFIG.in_channels,
            3: 9 * total // 2,
        }[kind]
        if kind == 1 and total < wide:
            depth = 16 * CONFIG.channels
        label = f"{_KINDS[kind]} {_PROLOGUES[prologue]} {total} columns, {8 * width}x{columns}"
        return label, 2.0 * pixels * grid[2] * total * depth
    if found := re.search(r"(\w+)_kernel", name):
        work = 0.0
        if found[1] == "output_conv":
            side = CONFIG.image_size
            work = 2.0 * 49 * CONFIG.channels * CONFIG.in_channels * side**2 * batch
        return found[1], work
    return name[:60], 0.0


def kernels_of(trace: dict[str, Any], batch: int) -> list[dict[str, Any]]:
    """Our kernels of a profiler trace in order: label, microseconds, grid, registers, shared."""
    events = [
        event
        for event in trace.get("traceEvents", [])
        if event.get("cat") == "kernel" and "cae::" in event.get("name", "")
    ]
    events.sort(key=lambda event: float(event["ts"]))
    kernels = []
    for event in events:
        given = event.get("args", {})
        grid = list(given.get("grid", [1, 1, 1]))
        label, flop = label_of(event["name"], grid, batch)
        kernels.append(
            {
                "label": label,
                "us": float(event["dur"]),
                "at": float(event["ts"]),
                "grid": grid,
                "registers": given.get("registers per thread"),
                "shared": given.get("shared memory"),
                "flop": flop,
            }
        )
    return kernels


def table_of(kernels: list[dict[str, Any]], calls: int, rate: float) -> list[dict[str, Any]]:
    """One row per kernel of a call: medians over the calls, in order of launch.

    Raises:
        ValueError: The calls differ in their kernels.
    """
    if not kernels or len(kernels) % calls:
        raise ValueError(f"{len(kernels)} kernels in {calls} calls")
    length = len(kernels) // calls
    rows = []
    for place in range(length):
        same = kernels[place::length]
        if len({kernel["label"] for kernel in same}) != 1:
            raise ValueError(f"kernel {place} differs between calls")
        taken = statistics.median(kernel["us"] for kernel in same)
        first = same[0]
        rate_here = first["flop"] / taken / 1e6 if taken else 0.0
        row = {key: first[key] for key in ("label", "grid", "registers", "shared", "flop")}
        rows.append({**row, "us": taken, "tflops": rate_here, "share": rate_here / rate})
    return rows


def profile(torch: Any, program: Any, batch: int) -> list[dict[str, Any]]:
    """Our kernels of some calls of a program."""
    program()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(_CALLS):
            program()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return kernels_of(json.loads(path.read_text(encoding="utf-8")), batch)


def once(torch: Any) -> None:
    """Two decodes of each size by each path, the second one marked."""
    for path in paths_of(torch):
        for batch in (1, 64):
            with choosing(path):
                sides = Sides(torch, batch, CAE.random(CONFIG, seed=0))
            decode = sides.queued("decode")["ours"]
            decode()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            decode()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
            sides.probe.close()


def main() -> None:
    """Profiles decode and encode at batch 1, 64 and 8."""
    found = Recorder()
    torch = found.need_torch()
    if sys.argv[1:] == ["once"]:
        once(torch)
        return
    clock = Clock(torch)
    rate = matrix_rate(torch, clock)["tflops"]
    found.put("matrix rate", rate)
    model = CAE.random(CONFIG, seed=0)
    cases: dict[str, Any] = {}
    parts = []
    trouble = []
    asked = [(kind, batch) for batch in (1, 64, 8) for kind in ("decode", "encode")]
    for kind, batch, path in [(*each, path) for each in asked for path in paths_of(torch)]:
        case = f"{kind} x{batch}, {path.partition(',')[0]}"
        try:
            with choosing(path):
                sides = Sides(torch, batch, model)
            if sides.why_no_ours:
                raise RuntimeError(sides.why_no_ours)
            program = sides.queued(kind)["ours"]
            clock.warm(0.2)
            rows = table_of(profile(torch, program, batch), _CALLS, rate)
            cases[case] = rows
            found.put("cases", cases)
            total = sum(row["us"] for row in rows)
            parts.append(f"{case} {len(rows)} kernels {total:.0f} us")
            print(case)
            for row in rows:
                print(
                    f"  {row['us']:8.2f} us  {row['share']:6.1%}  {row['label']} {row['grid']} "
                    f"{row['registers']} registers"
                )
            sides.probe.close()
        except Exception as error:  # the other cases are profiled all the same
            trouble.append(f"{case}: {first_line(error)}")
            print(trouble[-1], flush=True)
    found.say(", ".join(parts) + (f"; FAILED {'; '.join(trouble)}" if trouble else ""))
    sys.exit(bool(trouble))


if __name__ == "__main__":
    main()
