# SPDX-License-Identifier: Apache-2.0
"""The command line: parses, calls the functions of the package, prints."""

from __future__ import annotations

PROGRAM = "cae-fast"


def main() -> None:
    """Run `cae-fast` with the arguments of the process and exit with its code."""
    from cae_fast.cli.app import app

    app(prog_name=PROGRAM)
