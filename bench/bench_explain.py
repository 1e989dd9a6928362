# SPDX-License-Identifier: Apache-2.0
"""Whole explanations, flip search included, beside the authors' procedure."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cae_fast.benchmark.cases import Case, all_cases


@pytest.mark.benchmark(group="explain")
@pytest.mark.parametrize(
    "case", [case for case in all_cases() if case.kind == "explain"], ids=lambda c: c.name
)
def bench_explain(case: Case, compare: Callable[[Case], None]) -> None:
    compare(case)
