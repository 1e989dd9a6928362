# SPDX-License-Identifier: Apache-2.0
"""Step: hardware counters of decodes of one image and of 64, by ncu, as CSV.

ncu.csv has a row for each kernel and metric, ncu-source.csv.gz the stalls of every instruction.
"""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import BUILD, Recorder

_SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "LaunchStats",
    "SourceCounters",
    "WarpStateStats",
)
#: Names of `ncu --page details`, of what the table shows.
_SHOWN = {
    "Duration": "duration",
    "Compute (SM) Throughput": "sm",
    "Memory Throughput": "memory",
    "L2 Hit Rate": "l2_hits",
    "Achieved Occupancy": "occupancy",
    "Registers Per Thread": "registers",
}


def rows_of(text: str) -> list[dict[str, Any]]:
    """One row per kernel: its name and the values of `_SHOWN`, from ncu's CSV."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    kernels: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(lines):
        kernel = kernels.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        if name := _SHOWN.get(row.get("Metric Name", "")):
            value = f"{row.get('Metric Value', '')} {row.get('Metric Unit', '')}".strip()
            kernel.setdefault(name, value)
    return list(kernels.values())


def main() -> None:
    """Profiles; the CSV goes beside the results."""
    found = Recorder()
    found.need_torch()
    if shutil.which("ncu") is None:
        found.skip("no ncu on PATH")
    out = Path(os.environ.get("GPU_CHECK_OUT", str(BUILD)))
    log, report = out / "ncu.csv", BUILD / "ncu.ncu-rep"
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off"]
    command += ["--force-overwrite", "--export", str(report)]
    for section in _SECTIONS:
        command += ["--section", section]
    target = Path(__file__).with_name("layers.py")
    done = subprocess.run(
        [*command, sys.executable, str(target), "once"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout[-3000:])
    if report.exists():
        log.write_text(_page(report, "details"), encoding="utf-8")
        with gzip.open(out / "ncu-source.csv.gz", "wt", encoding="utf-8") as packed:
            packed.write(_page(report, "source"))
    rows = rows_of(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else []
    found.put("kernels", rows)
    if done.returncode or not rows:
        found.say(f"ncu: exit status {done.returncode}, {len(rows)} kernels")
        sys.exit(1)
    found.say(f"{len(rows)} kernels in ncu.csv")


def _page(report: Path, page: str) -> str:
    """A page of a report as CSV."""
    command = ["ncu", "--import", str(report), "--csv", "--page", page]
    return subprocess.run(command, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
