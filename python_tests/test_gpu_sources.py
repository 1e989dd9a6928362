# SPDX-License-Identifier: Apache-2.0
"""Sources that only machines with a GPU build or run: what a compiler says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GPU = ROOT / "bench" / "gpu"


def test_probe_fits_the_engine() -> None:
    """The probe is built on GPU machines only: its use of the engine's headers is checked here."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT / 'csrc'}"]
    done = subprocess.run(
        [compiler, *flags, str(GPU / "probe.cpp")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [*sorted(GPU.glob("risk_*.cu")), *sorted((ROOT / "csrc" / "cuda").glob("conv_wgmma_*.cu"))],
    ids=lambda path: path.stem,
)
def test_wgmma_compiles(path: Path, tmp_path: Path) -> None:
    """Without spills or serialised wgmma, which would make the numbers worthless."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc")
    command = [compiler, "-std=c++17", "-O3", "-Xptxas", "-v", f"-I{ROOT / 'csrc'}", "-cubin"]
    command += ["-gencode=arch=compute_90a,code=sm_90a", "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    spilled = re.findall(r"(\d+) bytes spill stores", report)
    assert spilled
    assert set(spilled) == {"0"}
    assert "serialized" not in report
