# SPDX-License-Identifier: Apache-2.0
"""Step: compute-sanitizer's four tools on small models, side by side, each bounded in time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import BUILD, Recorder

TOOLS: dict[str, tuple[str, ...]] = {
    "memcheck": ("--leak-check", "no"),
    "racecheck": ("--racecheck-report", "all"),
    "synccheck": (),
    "initcheck": (),
}
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def verdict(log: str, status: int | None) -> tuple[bool, str]:
    """Whether a tool found nothing, and what it said; `status` None: out of time."""
    if status is None:
        return False, "out of time"
    counts = [int(first or second) for first, second in _SUMMARY.findall(log)]
    if not counts:
        lines = [line for line in log.splitlines() if line.strip()]
        return False, f"no summary, exit status {status}: {lines[-1] if lines else 'no output'}"
    total = sum(counts)
    if total:
        seen = re.findall(r"========= ((?:Error|Warning|Invalid|Uninitialized|Race)[^\n]*)", log)
        return False, f"{total} found: {seen[0] if seen else 'see the log'}"
    return status == 0, "clean" if status == 0 else f"exit status {status}"


def main() -> None:
    """Runs the tools; fails if any found something or did not end."""
    found = Recorder()
    if shutil.which("compute-sanitizer") is None:
        found.skip("no compute-sanitizer on PATH")
    BUILD.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + float(os.environ.get("GPU_CHECK_STEP_SECONDS", "90")) - 5
    target = str(Path(__file__).with_name("sanitize_target.py"))
    running = {}
    for tool, options in TOOLS.items():
        log = (BUILD / f"sanitize-{tool}.log").open("w", encoding="utf-8")
        command = ["compute-sanitizer", "--tool", tool, *options, "--error-exitcode", "9"]
        running[tool] = subprocess.Popen(
            [*command, sys.executable, target], stdout=log, stderr=subprocess.STDOUT
        )
    results: dict[str, Any] = {}
    for tool, process in running.items():
        status: int | None = None
        try:
            status = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log_text = (BUILD / f"sanitize-{tool}.log").read_text(encoding="utf-8", errors="replace")
        fine, said = verdict(log_text, status)
        results[tool] = {"ok": fine, "said": said}
        found.put("tools", results)
        print(f"--- {tool}: {said}")
        if not fine:
            print(log_text[:4000])
    found.say(", ".join(f"{tool} {row['said']}" for tool, row in results.items()))
    sys.exit(not all(row["ok"] for row in results.values()))


if __name__ == "__main__":
    main()
