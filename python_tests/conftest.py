# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test file shares, and the only place where a test is skipped by its mark.

`CAE_REQUIRE=browser,shared` (any of browser, cuda, emu, ray, shared, tensorrt) turns the skip for a
missing thing into a failure; `CAE_REQUIRE_CUDA=1` says the same as `CAE_REQUIRE=cuda`.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIRABLE = {"browser", "cuda", "emu", "ray", "shared", "tensorrt"}

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def required() -> set[str]:
    """Return the things whose absence is a failure in this run."""
    words = {word.strip() for word in os.environ.get("CAE_REQUIRE", "").split(",")} - {""}
    if unknown := words - REQUIRABLE:
        raise pytest.UsageError(
            f"CAE_REQUIRE: unknown {sorted(unknown)}; known are {sorted(REQUIRABLE)}"
        )
    if os.environ.get("CAE_REQUIRE_CUDA") == "1":
        words.add("cuda")
    return words


def skip_without(thing: str, reason: str) -> None:
    """Skip the running test, or fail it where `thing` is required."""
    if thing in required():
        pytest.fail(f"{reason} (CAE_REQUIRE asks for {thing})", pytrace=False)
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a mistyped CAE_REQUIRE before any test runs."""
    required()


def missing_cuda() -> str:
    """Return why nothing can run on a GPU here, or an empty string."""
    from cae_fast import _backend

    status = _backend.cuda_status()
    if not status["built"]:
        return f"the extension has no CUDA: {status['reason']}"
    if not status["devices"]:
        return f"no usable GPU: {status['error'] or 'none found'}"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Apply the marks that name something a machine may lack."""
    if item.get_closest_marker("cuda") and (reason := missing_cuda()):
        skip_without("cuda", reason)
    if item.get_closest_marker("tensorrt") and not any(
        importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")
    ):
        skip_without("tensorrt", "neither tensorrt nor tensorrt_rtx is installed")
    if item.get_closest_marker("ray") and importlib.util.find_spec("ray") is None:
        skip_without("ray", "ray is not installed")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real image sets and the fixtures, beside the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        skip_without("shared", "../shared is not there")
    return folder


@pytest.fixture(params=["emu", pytest.param("cuda:0", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest) -> str:
    """Device of backend "cuda": the emulator of its kernels, and a GPU where there is one."""
    device = str(request.param)
    if device == "emu" and importlib.util.find_spec("cae_fast._C_emu") is None:
        skip_without("emu", "the emulator is not built: CAE_CMAKE_ARGS=-DCAE_EMU=ON")
    return device


@pytest.fixture(autouse=True)
def _auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "auto" be the CPU on every machine; the tests that want a GPU name it."""
    monkeypatch.setattr("cae_fast.backends.cuda.usable_gpu", lambda: None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium that can render a page without a display."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    skip_without("browser", "no chromium on PATH")
    raise AssertionError("skip_without returned")


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    """Leave the global random generators as the test found them."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the legacy state is what must be restored
    torch: Any = sys.modules.get("torch")
    torch_state = torch.get_rng_state() if torch else None
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    if torch_state is not None:
        torch.set_rng_state(torch_state)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: tiny networks lose time to a second, much of it on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
