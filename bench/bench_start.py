# SPDX-License-Identifier: Apache-2.0
"""`import cae_fast` and the first explanation, in fresh processes that never import torch."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cae_fast.benchmark.cases import START, Case
from cae_fast.benchmark.start import first_explanation
from cae_fast.benchmark.suite import Suite


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize("case", [START], ids=lambda c: c.name)
def bench_start(case: Case, suite: Suite, benchmark: BenchmarkFixture) -> None:
    within: list[float] = []
    benchmark.pedantic(
        lambda: within.append(first_explanation(suite.threads)), rounds=5, warmup_rounds=1
    )
    suite.record_start(case, within[1:])
