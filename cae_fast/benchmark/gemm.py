# SPDX-License-Identifier: Apache-2.0
"""The peak of this machine: the best float32 matrix product that its libraries reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from .machine import installed

_SIDES = (512, 1024, 2048)
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def gemm_peak(threads: int, seconds: float = 2.0) -> dict[str, Any]:
    """Measures the best product of square matrices, by NumPy and, where installed, by torch.

    Args:
        threads: For both; NumPy runs in a process of its own, since its library reads the number
            of threads once.
        seconds: About what to spend.

    Returns:
        `gflops` of the best, `by` (library and side of the matrices).
    """
    has_torch = installed("torch")
    share = seconds / (2 if has_torch else 1)
    code = f"from cae_fast.benchmark.gemm import main; main({share})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))},
        capture_output=True,
        text=True,
        check=True,
    )
    best: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if has_torch:
        found = _torch_peak(threads, share)
        return max(best, found, key=lambda peak: float(peak["gflops"]))
    return best


def main(seconds: float) -> None:
    """Prints NumPy's peak as JSON; the process decides the threads."""
    import numpy as np

    def product(side: int) -> Callable[[], Any]:
        a, b = np.random.default_rng(side).standard_normal((2, side, side), dtype=np.float32)
        out = np.empty_like(a)
        return lambda: np.matmul(a, b, out=out)

    print(json.dumps(_best("NumPy", product, seconds)))


def _torch_peak(threads: int, seconds: float) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)

    def product(side: int) -> Callable[[], Any]:
        a, b = torch.rand(2, side, side)
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    with torch.inference_mode():
        return _best("PyTorch", product, seconds)


def _best(
    library: str, product: Callable[[int], Callable[[], Any]], seconds: float
) -> dict[str, Any]:
    best, where = 0.0, 0
    for side in _SIDES:
        multiply = product(side)
        multiply()
        end = time.perf_counter() + seconds / len(_SIDES)
        while True:
            start = time.perf_counter()
            multiply()
            now = time.perf_counter()
            gflops = 2 * side**3 / (now - start) / 1e9
            best, where = max((best, where), (gflops, side))
            if now >= end:
                break
    return {"gflops": best, "by": f"{library}, {where} x {where}"}
