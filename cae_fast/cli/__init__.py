# SPDX-License-Identifier: Apache-2.0
"""The command line: parses, calls the functions of the package, prints."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

PROGRAM = "cae-fast"


def main() -> None:
    """Run `cae-fast` with the arguments of the process and exit with its code."""
    from cae_fast.cli.app import app

    # Names may hold what the terminal's encoding has not; that must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    # Pillow's remarks on a damaged file: the error or the rejected row says what is wrong with it.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    app(prog_name=PROGRAM)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line, without the place in the source that gave it."""
    print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)
