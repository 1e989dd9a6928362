# SPDX-License-Identifier: Apache-2.0
"""Steps of the script for machines with a GPU that the emulator can run, on small models."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def emulated(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a step says where GPU_CHECK_EMULATE=1."""
    if importlib.util.find_spec("cae_fast._C_emu") is None:
        pytest.skip("the emulator is not built")
    return subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu" / script), *arguments],
        env=os.environ | {"GPU_CHECK_EMULATE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_sanitized_calls() -> None:
    """What compute-sanitizer will watch: every image of every search flips."""
    done = emulated("sanitize_target.py", "4")
    assert done.stdout == "4 True True [0, 0, 0, 0, 0, 0]\n", done.stderr


def test_many_explanations() -> None:
    """Paths that flip at another place each, by each search and choice: the same flips."""
    pytest.importorskip("torch")
    done = emulated("explain_many.py")
    assert done.stdout == "6 searches of 12 images agree\n", done.stderr
