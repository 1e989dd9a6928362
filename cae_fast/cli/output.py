# SPDX-License-Identifier: Apache-2.0
"""What the verbs print: lines, tables, JSON on standard output; progress on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cae_fast.files import check_parent

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Progress = Callable[[int, int], None]


def printable(text: str) -> str:
    """Text without characters that would command a terminal; line ends become blanks."""
    words = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


class Output:
    """Where a verb's words go; nothing but JSON reaches standard output under `--json`."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        """Remember the two flags that every verb has."""
        self.quiet = quiet
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """Print a line for people."""
        if not (self.quiet or self.as_json):
            print(printable(text))

    def warn(self, text: str) -> None:
        """Print a warning on standard error, also under `--quiet`."""
        print(printable(f"cae-fast: {text}"), file=sys.stderr)

    def result(self, value: Mapping[str, Any]) -> None:
        """Print the result as JSON where that was asked for."""
        if self.as_json:
            print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table for people; cells are taken as they are, brackets and all."""
        if self.quiet or self.as_json:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        # A pipe has no width: nothing is cut or wrapped there.
        console = Console() if sys.stdout.isatty() else Console(width=10_000)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(Text(column))
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """A progress bar on standard error; off when that is no terminal, or under `--quiet`.

        Yields:
            A function of (done, total) that moves the bar.
        """
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        with Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


def output_file(path: Path, suffixes: Sequence[str]) -> None:
    """Check the name of an output file before long work; its folder need not exist.

    Raises:
        ValueError: The name is a folder's, ends in none of `suffixes`, or lies in a folder that
            cannot be written to.
        OSError: No file can have that name.
    """
    if path.is_dir():
        raise ValueError(f"--out {path}: is a folder, wanted the name of a file to write")
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--out {path}: wanted a name that ends in {' or '.join(suffixes)}")
    check_parent(path)
