# SPDX-License-Identifier: Apache-2.0
"""Which GPU the cuda backend takes, and why it cannot run: on machines as they might be."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import missing_cuda

import cae_fast as cf
from cae_fast import _backend
from cae_fast.backends import cuda, cuda_check, select_backend
from cae_fast.testing import toy_model

USABLE_GPU = cuda.usable_gpu  # which the fixture of all tests replaces
INSTEAD = "use backend='torch' with device='cuda' for the GPU, or backend='cpu'"


def gpu_of(name: str, *capability: int) -> dict[str, Any]:
    return {"name": name, "capability": capability, "memory_bytes": 2**34}


OLD, NEW, NEWER = gpu_of("Old", 7, 5), gpu_of("New", 8, 0), gpu_of("Newer", 12, 0)


class Machine:
    """What the extension says of a machine, made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.status: dict[str, Any] = {"built": True, "reason": "", "devices": [], "error": ""}
        self.broken: set[int] = set()
        self.checked: list[int] = []
        monkeypatch.setattr(_backend, "cuda_status", lambda: self.status)
        monkeypatch.setattr(_backend, "check_cuda_device", self.check)
        monkeypatch.setattr(cuda, "usable_gpu", USABLE_GPU)
        monkeypatch.setattr(cuda, "CudaBackend", self.make)
        self.wrong: dict[int, str] = {}
        monkeypatch.setattr(cuda_check, "why_wrong", lambda index: self.wrong.get(index, ""))

    def check(self, index: int) -> None:
        self.checked.append(index)
        if index in self.broken:
            raise RuntimeError("an illegal instruction was encountered\nat line 7")

    def make(self, model: cf.CAE, *, index: int | None, max_batch: int) -> Any:
        return f"GPU {index}"

    def auto(self, **options: Any) -> Any:
        return select_backend("auto", toy_model(), **options)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("status", "index", "said"),
    [
        (
            {"built": False, "reason": "nvcc 11.8 found"},
            0,
            r"without CUDA \(nvcc 11.8 found\).*nvcc",
        ),
        ({"error": "no NVIDIA driver found"}, 0, "^no usable GPU: no NVIDIA driver found$"),
        ({"error": "the driver serves CUDA 12.4 only"}, 0, "usable GPU: the driver serves CUDA 12"),
        ({"devices": [NEW, OLD]}, 2, "^there is no GPU 2, only 2: New, Old$"),
        ({"devices": [OLD]}, 0, r"^GPU 0 \(Old\) is of compute capability 7.5, 8.0 or later is"),
        ({"devices": [NEW, NEWER]}, 1, "^$"),
    ],
    ids=["not built", "no driver", "old driver", "no such GPU", "old GPU", "usable"],
)
def test_why_a_gpu_is_not_usable(
    machine: Machine, status: dict[str, Any], index: int, said: str
) -> None:
    machine.status |= status
    why = cuda.why_unusable(index)
    assert re.search(said, why), why
    assert machine.checked == ([index] if not why else [])


def test_a_gpu_that_computes_wrongly(machine: Machine) -> None:
    machine.status["devices"], machine.broken = [NEW], {0}
    why = cuda.why_unusable(0)
    assert why == "GPU 0 (New) fails a check: an illegal instruction was encountered"


def test_the_refusal_names_what_would_work(monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"built": True, "reason": "", "devices": [OLD], "error": ""}
    monkeypatch.setattr(_backend, "cuda_status", lambda: status)
    with pytest.raises(cf.BackendUnavailable) as caught:
        cf.Explainer(toy_model(), lambda x: x, backend="cuda")
    assert str(caught.value) == (
        "backend 'cuda': GPU 0 (Old) is of compute capability 7.5, 8.0 or later is needed; "
        + INSTEAD
    )


@pytest.mark.skipif(not missing_cuda(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", [None, "cuda", "1"])
def test_a_machine_without_a_gpu(device: str | None) -> None:
    with pytest.raises(cf.BackendUnavailable, match=f"^backend 'cuda': .*; {INSTEAD}$"):
        cf.Explainer(toy_model(), lambda x: x, backend="cuda", device=device)
    with pytest.raises(cf.BackendUnavailable, match=r"^backend 'cuda': "):
        select_backend("auto", toy_model(), precision="fp16")


def test_auto_takes_the_first_gpu_that_works(machine: Machine) -> None:
    assert machine.auto().name == "cpu"
    machine.status["devices"], machine.broken = [OLD, NEW, NEWER], {1}
    assert machine.auto() == machine.auto(precision="fp16") == "GPU 2"
    machine.broken.add(2)
    assert machine.auto().name == "cpu"
    assert machine.auto(precision="fp16") == "GPU 0"  # which says what is wrong


def test_auto_leaves_a_gpu_alone_that_computes_otherwise(machine: Machine) -> None:
    machine.status["devices"] = [NEW]
    machine.wrong[0] = "images of a small network are off by 1 of their norm"
    with pytest.warns(RuntimeWarning, match="GPU 0 is left alone.*off by 1"):
        assert machine.auto().name == "cpu"
    assert machine.auto(precision="fp16") == "GPU 0"  # was asked for


def test_a_small_network_is_compared(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = None if gpu == "emu" else 0
    cuda_check.why_wrong.cache_clear()
    assert cuda_check.why_wrong(index) == ""

    def shifted(self: Any, images: Any) -> Any:
        individual, codes = encode(self, images)
        return individual, codes + 0.1 * np.abs(codes).max()

    encode = cuda.CudaBackend.encode
    monkeypatch.setattr(cuda.CudaBackend, "encode", shifted)
    cuda_check.why_wrong.cache_clear()
    assert "class codes of a small network are off by" in cuda_check.why_wrong(index)
    cuda_check.why_wrong.cache_clear()


def test_auto_heeds_device_and_precision(machine: Machine) -> None:
    machine.status["devices"] = [NEW]
    assert machine.auto(device="cpu").name == "cpu"
    assert machine.auto(device="cuda:3") == "GPU 3"
    assert machine.auto(device="emu") == "GPU None"
    assert {machine.auto(precision=p).name for p in ("fp32", "exact")} == {"cpu"}


@pytest.mark.parametrize(("device", "index"), [(None, 0), ("cuda", 0), ("cuda:2", 2), ("3", 3)])
def test_names_of_gpus(machine: Machine, device: str | None, index: int) -> None:
    assert select_backend("cuda", toy_model(), device=device) == f"GPU {index}"


def test_info_says_which_gpu_is_new_enough(machine: Machine) -> None:
    machine.status |= {"devices": [OLD, NEW], "compiler": "nvcc", "archs": []}
    facts = cf.info()["cuda"]
    assert [device["usable"] for device in facts["devices"]] == [False, True]
    assert isinstance(facts["emulator"], bool)
    assert not machine.checked


def test_a_build_without_the_emulator() -> None:
    """As users have it: asked for, the emulator is said to be missing; nothing else asks for it."""
    code = (
        "import sys; sys.modules['cae_fast._C_emu'] = None\n"
        "import cae_fast as cf; from cae_fast.testing import toy_model\n"
        "cf.Explainer(toy_model(), lambda x: x, backend='cpu')\n"
        "try:\n    cf.Explainer(toy_model(), lambda x: x, backend='cuda', device='emu')\n"
        "except cf.BackendUnavailable as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("backend 'cuda' with device='emu': the emulator of the CUDA ")
    assert "make test" in done.stdout
    assert done.stdout.count("\n") == 1
