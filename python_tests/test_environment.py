# SPDX-License-Identifier: Apache-2.0
"""`cf.info()`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cae_fast as cf
from cae_fast import _backend, environment

DRIVER = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (x@y)
GCC version:  gcc version 12.2.0
"""


def test_info_agrees_with_its_sources() -> None:
    facts = cf.info()
    assert facts["version"] == cf.__version__
    assert facts["extension"] == {"built": True, "reason": ""}
    assert facts["cpu"]["isa"] in facts["cpu"]["isas"] == list(_backend.cpu_isas())
    assert facts["cpu"]["threads"] == _backend.get_num_threads()
    assert facts["cuda"]["built"] == _backend.cuda_status()["built"]
    assert facts["cuda"]["driver_needed"] == "580"
    assert facts["packages"]["numpy"]
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("version", ["580.65.06", "575.57", "610.1.2"])
def test_driver_version_is_read(tmp_path: Path, version: str) -> None:
    path = tmp_path / "version"
    path.write_text(DRIVER.format(version))
    assert environment.driver_version(path) == version


def test_old_driver_is_said_to_be_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "driver_version", lambda: "575.57")
    assert cf.info()["cuda"]["driver_ok"] is False
    monkeypatch.setattr(environment, "driver_version", lambda: "580.65.06")
    assert cf.info()["cuda"]["driver_ok"] is True


def test_no_driver_file(tmp_path: Path) -> None:
    assert environment.driver_version(tmp_path / "none") is None
    (tmp_path / "odd").write_text("no number here")
    assert environment.driver_version(tmp_path / "odd") is None


def test_an_extension_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise ValueError("CAE_CPU_ISA=avx512: this machine lacks it")

    monkeypatch.setattr(_backend, "cpu_isa", fail)
    facts = cf.info()
    assert facts["extension"]["built"] is False
    assert "avx512" in facts["extension"]["reason"]
    assert facts["cuda"]["built"] is False


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, cae_fast; cae_fast.info();"
        "print([m for m in ('torch', 'onnxruntime', 'tensorrt', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
