# SPDX-License-Identifier: Apache-2.0
"""Decoding images from their codes, beside every peer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cae_fast.benchmark.cases import Case, all_cases


@pytest.mark.benchmark(group="decode")
@pytest.mark.parametrize(
    "case", [case for case in all_cases() if case.kind == "decode"], ids=lambda c: c.name
)
def bench_decode(case: Case, compare: Callable[[Case], None]) -> None:
    compare(case)
