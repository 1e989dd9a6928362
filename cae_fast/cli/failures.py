# SPDX-License-Identifier: Apache-2.0
"""From an exception to an exit code and one line on standard error."""

from __future__ import annotations

import errno

from cae_fast.errors import BackendUnavailable, ExtensionMissing, MissingExtra, OutOfMemory
from cae_fast.memory import is_out_of_memory

EXIT_MACHINE = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

# Files that are missing, in the way or not allowed, and names that no file can have, are the
# caller's to mend; other errors of the operating system (no space, file too large, input/output
# error) are the machine's.
_PATH_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_PATH_NUMBERS = (errno.ENAMETOOLONG, errno.ELOOP)


def describe(error: BaseException) -> tuple[int, str] | None:
    """Exit code and message of an exception.

    Returns:
        The pair; None for an error that is neither the caller's nor the machine's: a defect of the
        program, which keeps its traceback.
    """
    if isinstance(error, OutOfMemory):
        return EXIT_MACHINE, _one_line(str(error))
    if is_out_of_memory(error):
        return (
            EXIT_MACHINE,
            "out of memory: use a smaller --max-batch or --batch-size, or smaller images",
        )
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        callers = isinstance(error, _PATH_ERRORS) or error.errno in _PATH_NUMBERS
        return EXIT_INPUT if callers else EXIT_MACHINE, _os_message(error)
    if isinstance(error, (ValueError, BackendUnavailable, ExtensionMissing, MissingExtra)):
        return EXIT_INPUT, _one_line(str(error)) or type(error).__name__
    return None


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    names = " -> ".join(str(n) for n in (error.filename, error.filename2) if n is not None)
    return _one_line(f"{names}: {reason}" if names else reason)


def _one_line(text: str) -> str:
    return " ".join(text.split())
