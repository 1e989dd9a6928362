# SPDX-License-Identifier: Apache-2.0
"""The program: its verbs, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from cae_fast.cli import evaluating, explaining, exporting, machine, manifold, modelling, serving
from cae_fast.cli.failures import EXIT_INPUT, EXIT_INTERRUPTED, describe
from cae_fast.cli.output import printable


class Program(TyperGroup):
    """A group of verbs whose failures are one line and an exit code, never a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the verb of the arguments.

        Raises:
            SystemExit: Always: 0 done, 1 the machine failed, 2 wrong usage or bad input, 130
                interrupted.
        """
        try:
            result = super().main(
                args, prog_name, complete_var, False, windows_expand_args, **extra
            )
        except (KeyboardInterrupt, typer.Abort):
            result = EXIT_INTERRUPTED
        except BrokenPipeError:
            # The reader of standard output left; Python must not complain while it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            message = getattr(error, "format_message", None)
            if callable(message):
                _fail(_with_help(str(message()), error))
                sys.exit(EXIT_INPUT)
            described = describe(error)
            if described is None:
                raise
            _fail(described[1])
            sys.exit(described[0])
        if result == EXIT_INTERRUPTED:
            _fail("interrupted")
        sys.exit(result if isinstance(result, int) else 0)


def _fail(line: str) -> None:
    print(printable(f"cae-fast: {line}"), file=sys.stderr)


def _with_help(message: str, error: Exception) -> str:
    """A usage message in one line, with the command that explains the usage."""
    context = getattr(error, "ctx", None)
    line = " ".join(message.split()) or "no command given"
    path = getattr(context, "command_path", "") or "cae-fast"
    return f"{line} (see {path} --help)"


app = typer.Typer(
    cls=Program,
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Explain image classifiers by class association embedding. For research, not diagnosis.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from cae_fast.environment import package_version

        print(f"cae-fast {package_version('cae-fast')}")
        raise typer.Exit


@app.callback()
def program(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Explain image classifiers by class association embedding. For research, not diagnosis."""


app.command("info")(machine.info)
app.command("bench")(machine.bench)
app.command("demo")(explaining.demo)
app.command("train")(modelling.train)
app.command("train-classifier")(modelling.train_classifier)
app.command("import-checkpoint")(modelling.import_checkpoint)
app.command("encode")(modelling.encode)
app.command("explain")(explaining.explain)
app.command("manifold")(manifold.manifold)
app.command("export")(exporting.export)
app.command("build-engine")(exporting.build_engine)
app.command("evaluate")(evaluating.evaluate)
app.command("serve")(serving.serve)
