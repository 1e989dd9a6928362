# SPDX-License-Identifier: Apache-2.0
"""Logs: one line of JSON (or of text) on standard error for each request and each event.

A log that cannot be written never stops the service.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from typing import Any


class JsonLines(logging.Formatter):
    """Records as JSON; what is given as `extra={"fields": {...}}` becomes keys."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        value: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            value["traceback"] = self.formatException(record.exc_info)
        return json.dumps(value, default=str)


class TextLines(logging.Formatter):
    """Records for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        fields = " ".join(
            f"{k}={_printable(str(v))}" for k, v in getattr(record, "fields", {}).items()
        )
        text = f"{record.levelname.lower()}: {record.getMessage()} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _printable(text: str) -> str:
    """Without characters that could begin a line of their own, or steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _Stderr(logging.Handler):
    """Writes to standard error; what fails is dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


def set_up_logging(kind: str) -> None:
    """Sends the logs of the service, and the server's warnings, to standard error.

    Args:
        kind: "json", "text" or "off".
    """
    logging.raiseExceptions = False
    for name, level in (("cae_fast.serving", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1 if kind == "off" else level)
        if kind != "off":
            handler = _Stderr()
            handler.setFormatter(JsonLines() if kind == "json" else TextLines())
            logger.addHandler(handler)
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
