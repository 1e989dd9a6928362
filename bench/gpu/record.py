# SPDX-License-Identifier: Apache-2.0
"""What a step found, written as it is found: a step may be ended at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu-check"
#: Exit statuses of steps that could not run.
NO_GPU, SKIPPED = 77, 78


class Recorder:
    """Findings of one step: JSON in the file that GPU_CHECK_JSON names, if it is set."""

    def __init__(self) -> None:
        """Starts empty."""
        self.data: dict[str, Any] = {}

    def put(self, name: str, value: Any) -> None:
        """Adds a finding and writes all of them."""
        self.data[name] = value
        if path := os.environ.get("GPU_CHECK_JSON"):
            write_json(Path(path), self.data)

    def say(self, line: str) -> None:
        """Sets the step's one line."""
        self.put("line", line)
        print(line, flush=True)

    def skip(self, reason: str) -> NoReturn:
        """Ends the step as one that cannot run here."""
        self.say(reason)
        sys.exit(SKIPPED)

    def need_torch(self) -> Any:
        """Torch with a GPU; else ends the step."""
        try:
            import torch
        except ImportError as error:
            self.skip(f"no torch: {error}")
        if not torch.cuda.is_available():
            self.say("no GPU")
            sys.exit(NO_GPU)
        return torch


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all; NaN and Inf become texts."""
    beside = path.with_suffix(".writing")
    beside.write_text(json.dumps(_finite(value), indent=1), encoding="utf-8")
    beside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; empty where there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    return {}


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.300}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    return value
