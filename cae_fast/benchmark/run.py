# SPDX-License-Identifier: Apache-2.0
"""The whole of `cae-fast bench`: cases in, report out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..errors import CAEError
from ..model import CAE
from .cases import EAGER, PEERS, all_cases, given_cases, quick_cases
from .limits import QUICK, Limits
from .machine import usable_cores
from .peers import PeerShop
from .results import completed
from .suite import Suite


def run(
    *,
    quick: bool = False,
    threads: int | None = None,
    model: CAE | None = None,
    seconds: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measures this machine.

    Args:
        quick: Batch 1 beside PyTorch eager only, in under a minute.
        threads: For ours and all peers; None: the cores that this process may use.
        model: Measured instead of networks with random weights.
        seconds: Of timed rounds per case, where calls are short; None: 8, or 1 when quick.
        on_progress: Called with (cases done, cases in all).

    Returns:
        `machine`, `peak`, `seconds`, `rows` and `targets`, ready for JSON; see
        :func:`cae_fast.benchmark.results.completed`.

    Raises:
        CAEError: `threads` or `seconds` is out of range.
    """
    if threads is not None and threads < 1:
        raise CAEError(f"threads must be at least 1, got {threads}")
    limits = QUICK if quick else Limits()
    if seconds is not None:
        if not 0 <= seconds < float("inf"):
            raise CAEError(f"seconds must be at least 0, got {seconds}")
        limits = dataclasses.replace(limits, case_s=seconds)
    if model is not None:
        cases = given_cases(model.config, quick=quick)
    else:
        cases = quick_cases() if quick else all_cases()
    with PeerShop(threads := threads or usable_cores(), limits.compile_s) as shop:
        suite = Suite(threads, limits, shop, peers=(EAGER,) if quick else PEERS, model=model)
        for done, case in enumerate(cases):
            if on_progress is not None:
                on_progress(done, len(cases))
            suite.measure(case)
        return completed(suite.report())
