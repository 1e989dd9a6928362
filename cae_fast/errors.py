# SPDX-License-Identifier: Apache-2.0
"""Errors of the package.

Every refusal of bad input is a :class:`CAEError`, which is a ``ValueError``: its message is one
line that names the argument or file, what was seen and what was wanted. What the machine lacks has
errors of its own.
"""

from __future__ import annotations


class CAEError(ValueError):
    """Bad input: the message says what was seen and what was wanted."""


class ModelFileError(CAEError):
    """A model or checkpoint file is unreadable, damaged or of another structure."""


class ImageDecodeError(CAEError):
    """An image file cannot be read, or is of a kind that is refused."""


class BankError(CAEError):
    """A code bank is damaged, incomplete, or belongs to another model."""


class ClassifierError(CAEError):
    """A classifier cannot be loaded, raised, or returned something else than logits [N, K]."""


class EngineError(CAEError):
    """A TensorRT engine cannot be built, or its file is damaged, foreign, stale or not signed."""


class OutOfMemory(MemoryError):
    """Something does not fit into memory, not even one image at a time; the message says what."""


class BackendUnavailable(RuntimeError):
    """A backend cannot run here; the message says why and what would make it available."""


class ServiceError(RuntimeError):
    """A service refused a request or could not be reached.

    Attributes:
        status: HTTP status; 0 where there was no answer.
        code: The service's word for what happened.
        request_id: Of the request, for the service's log.
    """

    def __init__(
        self, message: str, *, status: int = 0, code: str = "", request_id: str = ""
    ) -> None:
        """What happened, in words and for programs."""
        super().__init__(message)
        self.status, self.code, self.request_id = status, code, request_id


class MissingExtra(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class ExtensionMissing(ImportError):
    """The compiled extension is not built, or not for this interpreter; the message says so."""


def missing_extra(extra: str, package: str) -> MissingExtra:
    """Builds the error for an optional package that is not installed.

    Args:
        extra: Name of the optional dependency group.
        package: Name of the package that failed to import.

    Returns:
        The error, to be raised by the caller.
    """
    return MissingExtra(f"{package} is needed for this: pip install 'cae_fast[{extra}]'")
