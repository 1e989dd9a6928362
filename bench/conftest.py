# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks measure: ours and PyTorch eager alternate, on the same inputs and threads."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import cae_fast as cf

ROOT = Path(__file__).resolve().parent.parent

CONFIGS = {
    "demo-64": cf.CAEConfig(image_size=64, channels=16, num_blocks=4, num_classes=4),
    "reference-256": cf.CAEConfig(),
}


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """Return the short commit of the working tree, marked when it has changes."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


@pytest.fixture(scope="session")
def threads() -> int:
    """Threads for both sides: CAE_BENCH_THREADS, or the cores this process may use."""
    count = int(os.environ.get("CAE_BENCH_THREADS", len(os.sched_getaffinity(0))))
    cf.set_num_threads(count)
    torch.set_num_threads(count)
    return count


@pytest.fixture(params=CONFIGS, ids=str)
def model(request: pytest.FixtureRequest) -> cf.CAE:
    """A model with random weights: time does not depend on their values."""
    return cf.CAE.random(CONFIGS[request.param], seed=0)


@pytest.fixture
def compare(benchmark: BenchmarkFixture, threads: int, model: cf.CAE) -> Callable[..., None]:
    """Time `ours` beside `eager`: one of each per round, after one warm-up of each."""

    def run(ours: Callable[[], Any], eager: Callable[[], Any]) -> None:
        eager_s: list[float] = []

        def before_each_round() -> None:
            start = time.perf_counter()
            eager()
            eager_s.append(time.perf_counter() - start)

        rounds = 5 if model.config.image_size >= 256 else 15
        benchmark.pedantic(ours, setup=before_each_round, rounds=rounds, warmup_rounds=1)
        timed = eager_s[-rounds:]
        benchmark.extra_info.update(
            device=cpu_name(),
            isa=cf.info()["cpu"]["isa"],
            threads=threads,
            numpy=np.__version__,
            torch=torch.__version__,
            cae_fast=cf.__version__,
            python=platform.python_version(),
            commit=commit(),
            eager_median_s=statistics.median(timed),
            eager_min_s=min(timed),
            eager_max_s=max(timed),
        )

    return run
