# SPDX-License-Identifier: Apache-2.0
"""The command line: parses, calls the functions of the package, prints."""

from __future__ import annotations

import sys
import warnings
from typing import Any

PROGRAM = "cae-fast"


def main() -> None:
    """Run `cae-fast` with the arguments of the process and exit with its code."""
    from cae_fast.cli.app import app

    warnings.showwarning = _show_warning
    app(prog_name=PROGRAM)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning in one line, without the place in the source that gave it."""
    print(f"{PROGRAM}: warning: {' '.join(str(message).split())}", file=sys.stderr)
