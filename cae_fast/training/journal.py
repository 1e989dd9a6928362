# SPDX-License-Identifier: Apache-2.0
"""What a run tells: lines or a progress bar, log.csv, TensorBoard events."""

from __future__ import annotations

import csv
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..files import atomic_write

_SHOWN = ("reconstruction", "cycle", "swap_class", "critic", "discriminator")
_PLAIN_SECONDS = 15.0


def console_line(unit: str, number: int, total: int, values: Mapping[str, float]) -> None:
    """Prints one line of progress."""
    text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    print(f"{unit} {number}/{total}  {text}", flush=True)


class Journal:
    """Writes log.csv and TensorBoard events of a run, and shows its progress."""

    def __init__(
        self, run: Path, steps: int, *, start: int, quiet: bool, write: bool = True
    ) -> None:
        """Opens the log.

        Args:
            run: Folder of the run.
            steps: Steps of the whole run.
            start: Steps done before; later lines of an existing log are dropped.
            quiet: Show nothing.
            write: Write files; false in all processes but the first.
        """
        self._path = run / "log.csv"
        self._steps = steps
        self._quiet = quiet
        self._write = write
        self._columns = _keep_until(self._path, start) if write else None
        self._events = _event_writer(run, start) if write else None
        self._bar: Any = None
        self._task: Any = None
        self._shown = 0.0
        if not quiet and sys.stdout.isatty():
            self._open_bar(start)

    def _open_bar(self, start: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._bar = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), Remaining(),
            TextColumn("{task.description}"),
        )  # fmt: skip
        self._bar.start()
        self._task = self._bar.add_task("", total=self._steps, completed=start)

    def __enter__(self) -> Journal:
        """The journal itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes files and progress bar."""
        if self._events is not None:
            self._events.close()
        if self._bar is not None:
            self._bar.stop()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row; the columns are those of the first."""
        if not self._write:
            return
        rows: list[list[str]] = []
        if self._columns is None:
            self._columns = ["step", *values]
            rows.append(self._columns)
        rows.append([str(step), *(repr(float(values[name])) for name in self._columns[1:])])
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"train/{name}", value, step)

    def measured(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes measured promises and says them in a line."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(f"promises/{name}", value, step)
        self.say("measured: " + "  ".join(f"{k} {v:.3g}" for k, v in numbers.items()))

    def show(self, step: int, values: Mapping[str, float], rate: float) -> None:
        """Moves the progress bar, or prints a line now and then."""
        if self._quiet:
            return
        text = "  ".join(f"{name} {values[name]:.3g}" for name in _SHOWN if name in values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"{rate:.2f}/s  {text}")
        elif time.monotonic() - self._shown >= _PLAIN_SECONDS or step == self._steps:
            self._shown = time.monotonic()
            print(f"step {step}/{self._steps}  {rate:.2f}/s  {text}", flush=True)

    def say(self, text: str) -> None:
        """Prints a line beside the progress bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)


def _event_writer(run: Path, start: int) -> Any:
    """TensorBoard's writer, None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=start or None)


def _keep_until(path: Path, step: int) -> list[str] | None:
    """Drops the rows after `step` and gives the columns, None where none are left."""
    if step == 0:
        path.unlink(missing_ok=True)
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.reader(lines) if row]
    if not rows:
        return None
    kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) <= step]
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([rows[0], *kept])
    return rows[0]
