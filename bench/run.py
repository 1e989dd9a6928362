# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks and write bench/RESULTS.md from what they measured.

With arguments (they go to pytest, as in `-k demo-64`) the table is printed instead.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent


def measure(arguments: list[str]) -> dict[str, Any]:
    """Run pytest over bench/ and return its benchmark report; exit as it exits if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmark.json"
        command = [sys.executable, "-m", "pytest", str(BENCH), "--benchmark-only", "-q"]
        command += ["-p", "no:cacheprovider", "-o", "python_functions=bench_*"]
        done = subprocess.run(
            [*command, f"--benchmark-json={report}", *arguments], cwd=BENCH.parent
        )
        if done.returncode:
            sys.exit(done.returncode)
        loaded: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return loaded


def milliseconds(seconds: float) -> str:
    """Format a time with three significant digits, in ms."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def table(report: dict[str, Any]) -> str:
    """Return RESULTS.md for a benchmark report."""
    info = report["benchmarks"][0]["extra_info"]
    lines = [
        "# Results",
        "",
        f"`make bench`, {datetime.now(UTC):%Y-%m-%d}, commit {info['commit']}. "
        f"{info['device']}, {info['threads']} threads, instruction set {info['isa']}; "
        f"Python {info['python']}, NumPy {info['numpy']}, PyTorch {info['torch']}. "
        "Times in ms: median (fastest to slowest). Ratio: PyTorch / ours, of medians (of fastest).",
        "",
        "| what | ours | PyTorch | ratio |",
        "|---|---|---|---|",
    ]
    for entry in report["benchmarks"]:
        stats, extra = entry["stats"], entry["extra_info"]
        ours = [milliseconds(stats[key]) for key in ("median", "min", "max")]
        eager = [milliseconds(extra[f"eager_{key}_s"]) for key in ("median", "min", "max")]
        ratio = extra["eager_median_s"] / stats["median"]
        best = extra["eager_min_s"] / stats["min"]
        name = entry["name"].removeprefix("bench_")
        lines.append(
            f"| `{name}` | {ours[0]} ({ours[1]} to {ours[2]}) "
            f"| {eager[0]} ({eager[1]} to {eager[2]}) | {ratio:.2f} ({best:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, then write or print the table."""
    arguments = sys.argv[1:]
    text = table(measure(arguments))
    if arguments:
        print(text)
        return
    (BENCH / "RESULTS.md").write_text(text, encoding="utf-8")
    print(f"wrote {BENCH / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
