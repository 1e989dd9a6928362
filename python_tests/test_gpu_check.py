# SPDX-License-Identifier: Apache-2.0
"""The script for machines with a GPU: what can be told of it without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cae_fast.testing import toy_model

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "bench" / "gpu_check.sh"
GPU = ROOT / "bench" / "gpu"
MODULES = (
    *("agree", "gpu_report", "layers", "paths", "record", "risks", "run_steps", "run_tests"),
    "sanitize",
)


@pytest.fixture
def tools() -> Iterator[Any]:
    """The script's modules, which import each other by bare names."""
    import importlib
    import types

    folders = [str(GPU), str(GPU.parent)]
    known = set(sys.modules)
    sys.path[:0] = folders
    try:
        yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        for folder in folders:
            sys.path.remove(folder)
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(GPU.parent)):
                del sys.modules[name]


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script where no GPU can be seen."""
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_gpu_every_step_says_so(tmp_path: Path, tools: Any) -> None:
    done = run_script(str(tmp_path / "out"))
    assert done.returncode == 3, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    names = [step.name for step in tools.run_steps.STEPS]
    assert [step["name"] for step in results["steps"]] == names
    assert {step["status"] for step in results["steps"]} == {"no GPU"}
    table = (tmp_path / "out" / "table.txt").read_text(encoding="utf-8")
    assert done.stdout.endswith(table)
    assert [line.split()[0] for line in table.splitlines()[1:]] == names
    assert "no GPU" in tools.gpu_report.document(results)


def test_chosen_steps_and_wrong_usage(tmp_path: Path) -> None:
    done = run_script(str(tmp_path), GPU_CHECK_STEPS="speed risks")
    assert done.returncode == 3
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [step["name"] for step in results["steps"]] == ["machine", "speed", "risks"]
    done = run_script(str(tmp_path), GPU_CHECK_STEPS="sped")
    assert done.returncode == 64
    assert "sped" in done.stderr
    assert run_script("a", "b").returncode == 64
    assert run_script(str(tmp_path), GPU_CHECK_SECONDS="soon").returncode == 64


@pytest.fixture
def steps(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver with steps of this test's own making: name -> Python source."""
    record = f"import sys; sys.path.insert(0, {str(GPU)!r}); from record import Recorder\n"

    def run(sources: dict[str, str], seconds: float = 60) -> tuple[int, dict[str, Any]]:
        made = []
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(record + source, encoding="utf-8")
            made.append(tools.run_steps.Step(name, (f"{name}.py",), 3, 1))
        monkeypatch.setattr(tools.run_steps, "HERE", tmp_path)
        driver = tools.run_steps.Run(tmp_path, time.monotonic() + seconds)
        driver.steps(made)
        status = driver.finish()
        written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
        return status, {step["name"]: step for step in written["steps"]}

    return run


def test_steps_fail_apart(steps: Any, tmp_path: Path) -> None:
    alive, child = tmp_path / "alive", tmp_path / "child.py"
    child.write_text(f"import time; time.sleep(6); open({str(alive)!r}, 'w')", encoding="utf-8")
    status, found = steps(
        {
            "fine": "r = Recorder(); r.put('number', float('nan')); r.say('all is well')",
            "raises": "raise ValueError('what is wrong')",
            "dies": "r = Recorder(); r.put('before', 1); import os; os.abort()",
            "hangs": (
                "r = Recorder(); r.say('so far'); import subprocess, time\n"
                f"subprocess.Popen([sys.executable, {str(child)!r}]); time.sleep(60)"
            ),
            "skips": "Recorder().skip('not here')",
            "last": "Recorder().say('still runs')",
        }
    )
    assert status == 1
    assert {name: step["status"] for name, step in found.items()} == {
        "fine": "ok",
        "raises": "failed",
        "dies": "failed",
        "hangs": "out of time",
        "skips": "skipped",
        "last": "ok",
    }
    assert found["fine"]["data"] == {"number": "nan"}
    assert "what is wrong" in found["raises"]["line"]
    assert found["dies"]["data"] == {"before": 1}
    assert found["hangs"]["line"] == "so far"
    time.sleep(5)
    assert not alive.exists(), "a process that a step left behind went on"


def test_no_time_left(steps: Any) -> None:
    status, found = steps({"first": "Recorder().say('ran')"}, seconds=0.5)
    assert found["first"]["status"] == "left out"
    assert status == 0


CONV = (
    "void cae::cuda::conv_tile_kernel<cae::cuda::ConvConfig<cae::cuda::ConvShape<"
    "(cae::cuda::ConvKind){kind}, 16>, {columns}, 2, 2, 2, 4>, "
    "(cae::cuda::ConvPrologue){prologue}, (cae::cuda::ConvEpilogue)0>(cae::cuda::ConvParams)"
)


def trace(calls: int) -> dict[str, Any]:
    """A profiler's trace of `calls` decodes of two kernels, in no order, with others between."""
    residual = CONV.format(kind=0, columns=64, prologue=1)
    up = CONV.format(kind=3, columns=128, prologue=2)
    events = [{"cat": "cpu_op", "name": "cae::nothing", "ts": 0, "dur": 1}]
    for call in reversed(range(calls)):
        for place, (name, grid) in enumerate(((residual, [32, 4, 1]), (up, [32, 4, 1]))):
            at = 100 * call + 10 * place
            arguments = {"grid": grid, "registers per thread": 172, "shared memory": 80000}
            event = {"cat": "kernel", "name": name, "ts": at, "dur": 10 + call, "args": arguments}
            events += [event, {**event, "name": "void at::native::fill"}]
    return {"traceEvents": events}


WGMMA = (
    "void cae::cuda::conv_wgmma_kernel<cae::cuda::WgmmaConfig<cae::cuda::ConvShape<"
    "(cae::cuda::ConvKind)0, {width}>, {columns}, 8>, (cae::cuda::ConvPrologue)2, "
    "(cae::cuda::ConvEpilogue)0>"
    "(cae::cuda::ConvParams)"
)


def test_layers_of_either_path(tools: Any) -> None:
    portable = CONV.format(kind=0, columns=64, prologue=2)
    layer = tools.layers.label_of(portable, [32, 4, 1], 1)
    assert layer[0] == "conv3x3 residual 256 columns, 128x64"
    assert tools.layers.label_of(WGMMA.format(width=16, columns=64), [32, 4, 1], 1) == layer
    half = tools.layers.label_of(WGMMA.format(width=8, columns=128), [64, 2, 1], 1)
    assert half == ("conv3x3 residual 256 columns, 64x128", layer[1])


def test_layers_of_a_trace(tools: Any) -> None:
    kernels = tools.layers.kernels_of(trace(3), 1)
    rows = tools.layers.table_of(kernels, 3, 800.0)
    assert [row["label"] for row in rows] == [
        "conv3x3 affine 256 columns, 128x64",
        "upsample residual 512 columns, 128x128",
    ]
    # 4.83 and 9.66 GFLOP, as the study counts them.
    assert [row["flop"] for row in rows] == [2 * 9 * 256 * 256 * 4096, 2 * 9 * 256 * 512 * 4096]
    assert [row["us"] for row in rows] == [11, 11]
    assert rows[0]["share"] == pytest.approx(rows[0]["flop"] / 11e6 / 800)
    with pytest.raises(ValueError, match="5 kernels in 3 calls"):
        tools.layers.table_of(kernels[:5], 3, 800.0)


def test_words_of_the_tools(tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = tools.sanitize.verdict
    assert verdict("========= ERROR SUMMARY: 0 errors\n", 0) == (True, "clean")
    raced = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"
    assert verdict(raced, 9)[0] is False
    bad = "========= Invalid __global__ read of size 4\n========= ERROR SUMMARY: 1 error\n"
    assert verdict(bad, 9) == (False, "1 found: Invalid __global__ read of size 4")
    assert verdict("", None) == (False, "out of time")
    assert "Device not supported" in verdict("Device not supported\n", 1)[1]
    assert tools.run_tests.counts_of("x\n== 2 failed, 7 passed, 1 error in 3 s ==\n") == {
        "failed": 2,
        "passed": 7,
        "error": 1,
    }
    assert tools.agree.accepted({"image": 1e-3, "repeats": True}) == []
    assert tools.agree.accepted({"image": float("nan"), "repeats": False}) == [
        "image nan",
        "repeats False",
    ]
    monkeypatch.setattr(tools.risks, "BUILD", tmp_path)
    assert tools.risks.answer_of("risk_0")["error"] == "not built"
    for name, body in {
        "risk_1": 'echo "clocks: 32"; echo \'{"risk": "1", "fine": true, "numbers": {}}\'',
        "risk_2": "echo no GPU; exit 77",
        "risk_3": "echo broken; exit 1",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    assert tools.risks.answer_of("risk_1")["fine"] is True
    assert tools.risks.answer_of("risk_2") == {"not_here": "no GPU"}
    assert "broken" in tools.risks.answer_of("risk_3")["error"]


def sample(tools: Any) -> dict[str, Any]:
    """Results of a run, made up."""
    layers = tools.layers.table_of(tools.layers.kernels_of(trace(3), 1), 3, 800.0)
    timed = {"low": 1.0, "high": 2.0, "rounds": 9, "calls": 10}
    ours = {**timed, "us": 200.0, "tflops": 395.0, "share": 0.49}
    data = {
        "machine": {"gpus": [{"name": "GPU X"}], "smi": {"driver_version": "580"}, "nvcc": "n"},
        "agree": {"cases": {"reference": {"image": 1e-3, "wrong": []}}},
        "speed": {
            "matrix rate": {"tflops": 800.0},
            "cases": {
                "decode x1": {
                    "ours, graph": ours,
                    "ours, path points": {**ours, "us": 190.0},
                    "eager fp32": {**timed, "us": 1400.0},
                },
                "decode x64": {"ours": ours},
            },
            "host and cold, decode x1": {"ours, graph": {"host_us": 5.0, "cold_us": 220.0}},
        },
        "paths": {
            "cases": {
                f"decode x{batch}": {path: {**timed, "us": us} for path, us in row.items()}
                for batch, row in ((1, {"portable": 200, "wgmma": 160}), (64, {"wgmma": 175}))
            }
        },
        "many": {"cases": {"margin": {"per_second": 300.0}, "margin, compact": {"not_run": "?"}}},
        "many90": {"cases": {"margin": {"per_second": 410.0}}},
        "layers": {"cases": {"decode x1": layers}},
        "compiled": {
            "cases": {
                "decode x1 reduce-overhead": {
                    "ours": ours,
                    "ours, path points": {**ours, "us": 10.0},
                    "compile reduce-overhead": {**timed, "us": 400.0},
                },
                "decode x8 reduce-overhead": {"compile reduce-overhead": {"not_run": "no room"}},
            }
        },
        "risks": {
            "answers": {
                "risk_1_alignment": {"fine": True, "verdict": "free", "numbers": {"clocks": 32}},
                "risk_5_graphs": {"error": "no answer"},
            }
        },
        "training": {
            "cases": {"96 px": {"theirs": 0.08, "recipe": 0.04}, "256 px": {"not_run": "?"}}
        },
        "sanitize": {"tools": {"memcheck": {"ok": True, "said": "clean"}}},
    }
    steps = [
        {"name": name, "status": "ok", "seconds": 1.0, "line": "", "data": found}
        for name, found in data.items()
    ]
    return {"commit": "abc1234", "started": "2026", "seconds": 9.0, "steps": steps}


def test_report_of_a_sample(tools: Any, tmp_path: Path) -> None:
    results = sample(tools)
    text = tools.gpu_report.document(results)
    assert "| 96 px | recipe | 40.0 | 2.00 |" in text
    assert "| 256 px | not_run | ? | – |" in text
    assert (
        "| decode x1 against torch.compile fp16 with CUDA graphs | >= 1.7, aim 2.2 | 2.00x |"
        in text
    )
    assert "| decode x64, share of the matrix rate | >= 35 %, aim 45 % | 49.0% |" in text
    assert "| explanation x1, bisection | <= 4.5 ms, aim 3.8 | not measured |" in text
    assert "| 9.0: decode x1, best path | <= 170 us, aim 135 | 160 us |" in text
    assert "CUDA graphs | >= 2.3, aim 3 | 2.50x |" in text
    assert "share of the matrix rate | >= 55 %, aim 70 % | 56.0% |" in text
    assert "| 9.0: explanations a second, 64 at once | >= 400, aim 600 | 410 |" in text
    assert "(eager fp16, CUDA graph) | >= 1.8, aim 2 | not measured |" in text
    assert "| decode x1 | eager fp32 | 1400.0 (1.0 to 2.0) | 7.00 | – | – |" in text
    assert "| decode x8 reduce-overhead | compile reduce-overhead | not run: no room |" in text
    assert "| 5 graphs | – | no answer |  |" in text
    assert "host_us 5.0, cold_us 220.0" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")
    status = tools.gpu_report.status_rows(results)
    assert (
        "| conv_tile, 3x3 | GPU X | abc1234 | 1 configurations, image error up to 1.0e-03 |"
        in status
    )
    assert "| class_head | – | – | not seen in a profile: compiled and emulated | – |" in status
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results), encoding="utf-8")
    command = [sys.executable, str(GPU.parent / "gpu_report.py"), str(file)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == text


def test_quick_check_finds_a_wrong_engine(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check, in the emulator: right values pass, and values a little off do not."""
    pytest.importorskip("cae_fast._C_emu", reason="the emulator is not built")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(tools.agree, "EMULATE", True)
    errors = tools.agree.check(torch, toy_model(), 2)
    assert tools.agree.accepted(errors) == []
    assert errors["image"] > 0
    engine = tools.agree.engine_class()
    other = toy_model(seed=1)
    monkeypatch.setattr(
        tools.agree,
        "engine_class",
        lambda: lambda config, weights, **options: engine(config, dict(other.weights), **options),
    )
    wrong = tools.agree.accepted(tools.agree.check(torch, toy_model(), 2))
    assert {name.split()[0] for name in wrong} >= {
        "individual",
        "class_code",
        "image",
        "difference",
    }


def test_paths_are_compared(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths of the convolutions in the emulator; one that is not taken, or is off, is told."""
    emulator = pytest.importorskip("cae_fast._C_emu", reason="the emulator is not built")
    monkeypatch.setattr(tools.paths, "engine_class", lambda: emulator.GpuEngine)
    monkeypatch.setenv("CAE_GPU_CONV", "auto")
    found = tools.paths.compare(toy_model(channels=12), 1)
    assert tools.paths.wrong_in(found) == []
    assert found["wgmma, clusters of 2"]["image"] > 0  # added in another order
    assert found["wgmma, clusters of 4"] == found["wgmma, clusters of 1"]
    assert found["portable, overlapping"] == {**found["portable"], "overlaps": True}
    assert os.environ["CAE_GPU_CONV"] == "auto"
    assert not {"CAE_GPU_CLUSTER", "CAE_GPU_OVERLAP"} & set(os.environ)
    found["wgmma, clusters of 1"] = {**found["portable"], "difference": float("nan")}
    found["portable, overlapping"] = {**found["portable"], "same": False}
    assert tools.paths.wrong_in(found) == [
        "portable, overlapping: overlaps False",
        "portable, overlapping: other bits than at first",
        "wgmma, clusters of 1: took portable",
        "wgmma, clusters of 1: difference nan",
    ]
    timed = {"portable": {"us": 200.0}, "wgmma": {"us": 100.0}, "off": {"not_run": "why"}}
    assert tools.paths.summary({"decode x1": timed, "decode x4": {"portable": {}}}) == [
        "decode x1 portable 200 us, wgmma 100 us, 2.00x",
        "decode x4 not run",
    ]
