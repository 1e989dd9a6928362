# SPDX-License-Identifier: Apache-2.0
"""Both encoders, beside every peer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cae_fast.benchmark.cases import Case, all_cases


@pytest.mark.benchmark(group="encode")
@pytest.mark.parametrize(
    "case", [case for case in all_cases() if case.kind == "encode"], ids=lambda c: c.name
)
def bench_encode(case: Case, compare: Callable[[Case], None]) -> None:
    compare(case)
