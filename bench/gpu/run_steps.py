# SPDX-License-Identifier: Apache-2.0
"""Runs the steps of gpu_check.sh: each a process of its own, bounded in time, written down at once.

In the folder given: results.json (everything found), log.txt (all output), table.txt, ncu.csv.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from record import NO_GPU, ROOT, SKIPPED, read_json, write_json

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import gpu_report  # noqa: E402 - lies beside gpu_check.sh


@dataclass(frozen=True)
class Step:
    """One question.

    Attributes:
        name: As GPU_CHECK_STEPS has it.
        command: Script in this folder, and its arguments.
        seconds: What it may take at most.
        least: Seconds below which it is not begun.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    least: float = 10


# Most valuable first: what comes late may not fit.
STEPS = (
    Step("machine", ("machine.py",), 45, 1),
    Step("build", ("build_parts.py",), 270, 30),
    Step("agree", ("agree.py",), 75),
    Step("wgmma", ("wgmma_tiles.py",), 60, 10),
    Step("paths", ("paths.py",), 90, 15),
    Step("tests", ("run_tests.py",), 120),
    Step("speed", ("speed.py",), 130, 20),
    Step("layers", ("layers.py",), 60),
    Step("tiles", ("tune.py", "--keep", "--image-size", "256"), 75, 20),
    Step("compiled", ("speed.py", "compiled"), 150, 40),
    Step("explain", ("explain.py",), 60),
    Step("many", ("explain_many.py",), 60, 25),
    Step("explain90", ("explain.py", "wgmma"), 60),
    Step("many90", ("explain_many.py", "wgmma"), 60, 25),
    Step("training", ("training.py",), 60),
    Step("sanitize", ("sanitize.py",), 75, 20),
    Step("risks", ("risks.py",), 60),
    Step("counters", ("counters.py",), 75, 25),
)
_WITHOUT_GPU = {"machine"}
_BAD = {"failed", "out of time"}


class Stopped(Exception):
    """Somebody ended the run."""


def main(arguments: Sequence[str]) -> int:
    """Runs what is asked for; the exit status says how it went."""
    out = Path(arguments[0]).resolve()
    chosen = os.environ.get("GPU_CHECK_STEPS", "").split() or [step.name for step in STEPS]
    if unknown := set(chosen) - {step.name for step in STEPS}:
        known = " ".join(step.name for step in STEPS)
        print(f"GPU_CHECK_STEPS: unknown {sorted(unknown)}; known are {known}", file=sys.stderr)
        return 64
    try:
        total = float(os.environ.get("GPU_CHECK_SECONDS", "540"))
    except ValueError as error:
        print(f"GPU_CHECK_SECONDS: {error}", file=sys.stderr)
        return 64
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out, time.monotonic() + total)
    signal.signal(signal.SIGTERM, _stop)
    try:
        run.steps([step for step in STEPS if step.name in chosen or step.name == "machine"])
    except (KeyboardInterrupt, Stopped):
        print("stopped", flush=True)
    return run.finish()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


class Run:
    """One run and what it has found."""

    def __init__(self, out: Path, deadline: float) -> None:
        """Begins the files."""
        self._out = out
        self._deadline = deadline
        self._started = time.monotonic()
        self._log = out / "log.txt"
        self._log.write_text("", encoding="utf-8")
        self._results: dict[str, Any] = {
            "commit": commit(),
            "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "steps": [],
        }

    def steps(self, wanted: Sequence[Step]) -> None:
        """Runs the steps in order; without a GPU only the first."""
        has_gpu = True
        for step in wanted:
            left = self._deadline - time.monotonic()
            if not has_gpu and step.name not in _WITHOUT_GPU:
                self._note(step, "no GPU", 0.0, {"line": "no GPU"})
            elif left < step.least:
                self._note(step, "left out", 0.0, {"line": f"{left:.0f} s left"})
            else:
                status = self._run(step, min(step.seconds, left))
                has_gpu = has_gpu and not (step.name == "machine" and status == "no GPU")

    def finish(self) -> int:
        """Prints the table last."""
        table = gpu_report.short_table(self._results)
        (self._out / "table.txt").write_text(table, encoding="utf-8")
        print(f"\n{table}", end="", flush=True)
        statuses = [step["status"] for step in self._results["steps"]]
        if any(status in _BAD for status in statuses):
            return 1
        return 3 if "no GPU" in statuses else 0

    def _run(self, step: Step, seconds: float) -> str:
        """One step in its own process group, so that all of it ends."""
        script, *rest = step.command
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
            findings = Path(folder) / "findings.json"
            environment = os.environ | {
                "GPU_CHECK_JSON": str(findings),
                "GPU_CHECK_OUT": str(self._out),
                "GPU_CHECK_STEP_SECONDS": f"{seconds:.0f}",
                "PYTHONDONTWRITEBYTECODE": "1",
                # cmake and ninja may lie beside the interpreter only.
                "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            }
            with self._log.open("ab") as log:
                log.write(f"\n===== {step.name}\n".encode())
                log.flush()
                process = subprocess.Popen(
                    [sys.executable, str(HERE / script), *rest],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                try:
                    code: int | None = process.wait(seconds)
                except subprocess.TimeoutExpired:
                    code = None
                finally:
                    _end(process)
            data = read_json(findings)
        named = {None: "out of time", 0: "ok", NO_GPU: "no GPU", SKIPPED: "skipped"}
        status = named.get(code, "failed")
        if status == "failed" and "line" not in data:
            data["line"] = f"exit status {code}: {self._last_line()}"
        self._note(step, status, time.monotonic() - start, data)
        return status

    def _note(self, step: Step, status: str, seconds: float, data: dict[str, Any]) -> None:
        """Writes a step down and prints its line."""
        line = str(data.pop("line", ""))
        self._results["steps"].append(
            {"name": step.name, "status": status, "seconds": seconds, "line": line, "data": data}
        )
        self._results["seconds"] = time.monotonic() - self._started
        write_json(self._out / "results.json", self._results)
        table = gpu_report.short_table(self._results)
        (self._out / "table.txt").write_text(table, encoding="utf-8")
        print(f"[{step.name}] {status}, {seconds:.0f} s: {line}", flush=True)

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what a step left running: its own process group only."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def commit() -> str:
    """The commit of the working tree, marked when it has changes; else GPU_CHECK_COMMIT."""
    if given := os.environ.get("GPU_CHECK_COMMIT"):
        return given
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
