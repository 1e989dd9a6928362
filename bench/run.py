# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks and write bench/RESULTS.md from what they measured.

With arguments (they go to pytest, as in `-k "256 and x1"`) the tables are printed instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cae_fast.benchmark import results

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "RESULTS.md"


def commit() -> str:
    """Return the short commit of the working tree, marked when it has changes."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=BENCH, capture_output=True, text=True
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def measure(arguments: list[str]) -> dict[str, Any]:
    """Run pytest over bench/ and return the suite's report; exit as it exits if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        command = [sys.executable, "-m", "pytest", str(BENCH), "--benchmark-only", "-q"]
        command += ["-p", "no:cacheprovider", "-o", "python_functions=bench_*"]
        # Tables are made here; pytest-benchmark's own would be those of ours alone.
        command += ["--benchmark-quiet", "--benchmark-columns=median,min,max,rounds"]
        done = subprocess.run([*command, f"--benchmark-json={file}", *arguments], cwd=BENCH.parent)
        if done.returncode:
            sys.exit(done.returncode)
        if not file.exists():
            sys.exit("nothing was measured: every case was left out")
        written = json.loads(file.read_text(encoding="utf-8"))
    report: dict[str, Any] = written["cae_fast"]
    return report


def document(report: Mapping[str, Any]) -> str:
    """RESULTS.md for a report."""
    parts = [
        "# Results",
        f"Written by `make bench`, {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, in "
        f"{report['seconds'] / 60:.0f} minutes. How: [README.md](README.md).",
        "\n".join(f"- {line}" for line in results.heading(report)),
        "## Targets\n\nReference network (`cf.CAEConfig()`, 256 pixels), batch 1.",
        results.markdown_table(results.TARGET_COLUMNS, results.target_table(report)),
        "## Every case\n\n"
        "Name: what, network, side of the images in pixels, x images in a call. In brackets: "
        "fastest to slowest.",
        results.markdown_table(results.COLUMNS, results.table(report)),
    ]
    if chosen := results.layouts(report):
        parts.append(f"Memory format of eager PyTorch, the quicker one of two: {chosen}.")
    if unsteady := results.unsteady(report):
        parts.append(f"**The machine was not idle**, distrust the times of: {'; '.join(unsteady)}.")
    if missing := results.left_out(report):
        parts.append("## Not run\n\n" + "\n".join(f"- {line}" for line in missing))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, then write or print; warn where a ratio fell."""
    arguments = sys.argv[1:]
    former = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    report = measure(arguments)
    text = document(report)
    if arguments:
        print(text)
    else:
        RESULTS.write_text(text, encoding="utf-8")
        print(f"wrote {RESULTS}")
    if results.heading(report)[0] not in former:
        print("the former results are of another machine: not compared", file=sys.stderr)
        return
    for line in results.fallen(results.eager_ratios(former), report):
        print(f"warning: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
