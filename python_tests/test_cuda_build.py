# SPDX-License-Identifier: Apache-2.0
"""What the extension says of CUDA, against what is in its file and on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cae_fast
from cae_fast import _C

FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
PTX, ELF = 1, 2


@pytest.fixture(scope="module")
def status() -> dict[str, Any]:
    return _C.cuda_status()


def need_cuda_build(status: dict[str, Any]) -> None:
    if not status["built"]:
        pytest.skip(f"the extension has no CUDA: {status['reason']}")


def device_code(library: bytes) -> set[tuple[int, int]]:
    """Returns (kind, architecture) of all device code embedded in a library.

    A fat binary is a 16-byte header (magic, version, header size, size) and entries whose header
    holds kind, version, header size, size and, at byte 28, the architecture.
    """
    found = set()
    position = -1
    while (position := library.find(FATBIN_MAGIC, position + 1)) >= 0:
        header, size = struct.unpack_from("<HQ", library, position + 6)
        entry, end = position + header, position + header + size
        while entry < end:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, entry)
            found.add((kind, struct.unpack_from("<I", library, entry + 28)[0]))
            entry += entry_header + entry_size
    return found


def test_fields(status: dict[str, Any]) -> None:
    types = {name: type(value) for name, value in status.items()}
    assert types == {
        "built": bool,
        "reason": str,
        "compiler": str,
        "archs": list,
        "runtime": int,
        "driver": int,
        "devices": list,
        "error": str,
    }
    json.dumps(status)
    assert bool(status["error"]) == (not status["devices"])
    assert bool(status["reason"]) == (not status["built"])


def test_agrees_with_build_config(status: dict[str, Any]) -> None:
    config = cae_fast.build_config()
    assert bool(config["cuda"]) == status["built"]


def test_build_without_cuda_says_why(status: dict[str, Any]) -> None:
    if status["built"]:
        pytest.skip("the extension has CUDA")
    assert status["archs"] == status["devices"] == []
    assert status["runtime"] == 0
    assert status["reason"] in status["error"]
    with pytest.raises(RuntimeError, match=re.escape(status["reason"])):
        _C.check_cuda_device()


def test_listed_architectures_are_in_the_file(status: dict[str, Any]) -> None:
    need_cuda_build(status)
    listed = set()
    for name in status["archs"]:
        match = re.fullmatch(r"(\d+)[a-z]?(-real|-virtual)?", name)
        assert match, name
        if match[2] != "-virtual":
            listed.add((ELF, int(match[1])))
        if match[2] != "-real":
            listed.add((PTX, int(match[1])))
    assert device_code(Path(_C.__file__).read_bytes()) == listed
    assert {(ELF, 80), (PTX, 80)} <= listed


def test_compiler_and_runtime_belong_together(status: dict[str, Any]) -> None:
    need_cuda_build(status)
    match = re.fullmatch(r"nvcc (\d+)\.(\d+)\.\d+", status["compiler"])
    assert match
    assert status["runtime"] == int(match[1]) * 1000 + int(match[2]) * 10


def test_runtime_is_linked_statically() -> None:
    needed = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True, check=True).stdout
    assert "libc" in needed
    assert "cuda" not in needed


NVCC_IS_OLD = 'echo "Cuda compilation tools, release 11.8, V11.8.89"'
NVCC_FAILS = """[ "$1" = --version ] && { echo "Cuda compilation tools, release 13.9"; exit 0; }
echo 'note' >&2; echo 'error: unsupported "GNU" version; \\ $x' >&2; exit 1"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (NVCC_IS_OLD, "nvcc 11.8 found, 13.0 or newer needed"),
        (NVCC_FAILS, "nvcc at {} does not work: error: unsupported 'GNU' version? ? ?x"),
        ("exit 3", "nvcc at {} does not work: exit status 3"),
    ],
    ids=["old", "fails", "silent"],
)
def test_nvcc_that_cannot_serve_is_done_without(tmp_path: Path, script: str, reason: str) -> None:
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=tools)
    if cmake is None or shutil.which("ninja", path=tools) is None:
        pytest.skip("cmake and ninja are not installed")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    nvcc.chmod(0o755)
    source = Path(__file__).resolve().parent.parent
    configure = [cmake, "-S", str(source), "-B", str(tmp_path / "build"), "-G", "Ninja"]
    configure.append(f"-DPython_EXECUTABLE={sys.executable}")
    environment = {**os.environ, "PATH": tools, "CUDACXX": str(nvcc)}
    says = reason.format(nvcc)
    for option, code, line in [("AUTO", 0, "CUDA: not built: "), ("ON", 1, "CAE_CUDA=ON, but ")]:
        done = subprocess.run(
            [*configure, f"-DCAE_CUDA={option}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert line + says in " ".join((done.stdout + done.stderr).split())


def status_of_child(**environment: str) -> dict[str, Any]:
    code = "import json; from cae_fast import _C; print(json.dumps(_C.cuda_status()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    child: dict[str, Any] = json.loads(done.stdout)
    return child


def test_hidden_gpus_are_an_answer(status: dict[str, Any]) -> None:
    hidden = status_of_child(CUDA_VISIBLE_DEVICES="")
    assert hidden["devices"] == []
    assert hidden["error"]
    assert hidden["archs"] == status["archs"]


def test_without_a_device_the_check_says_so(status: dict[str, Any]) -> None:
    if status["devices"]:
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match=re.escape(status["error"])):
        _C.check_cuda_device()
    if status["built"] and status["driver"] == 0:
        assert "driver" in status["error"]
        assert ">= 580" in status["error"]


@pytest.mark.cuda
def test_kernels_run_on_every_device(status: dict[str, Any]) -> None:
    for index, device in enumerate(status["devices"]):
        assert device["name"]
        assert device["capability"] >= (3, 5)
        assert device["memory_bytes"] > 2**30
        _C.check_cuda_device(index)
    with pytest.raises(RuntimeError, match="must be in"):
        _C.check_cuda_device(len(status["devices"]))
    assert _C.cuda_status() == status
