# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks measure: ours by pytest-benchmark, the peers between its rounds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cae_fast.benchmark.cases import Case, all_cases
from cae_fast.benchmark.limits import Limits, NotRun
from cae_fast.benchmark.machine import usable_cores
from cae_fast.benchmark.peers import PeerShop
from cae_fast.benchmark.suite import Suite

_SUITE = pytest.StashKey[Suite]()


def _limits() -> Limits:
    """The package's limits, or what CAE_BENCH_CASE_S and CAE_BENCH_TOTAL_S say."""
    limits = Limits()
    for name in ("case_s", "total_s"):
        given = os.environ.get(f"CAE_BENCH_{name.upper()}")
        if given is not None:
            limits = dataclasses.replace(limits, **{name: float(given)})
    return limits


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the cases into the package's order: what has a target first, the longest last."""
    order = {case.name: place for place, case in enumerate(all_cases())}
    items.sort(key=lambda item: order[item.callspec.params["case"].name])  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    """One suite for all cases; threads: CAE_BENCH_THREADS, or the cores of the process."""
    threads = int(os.environ.get("CAE_BENCH_THREADS", usable_cores()))
    limits = _limits()
    with PeerShop(threads, limits.compile_s) as shop:
        made = Suite(threads, limits, shop)
        request.config.stash[_SUITE] = made
        yield made


@pytest.fixture
def compare(benchmark: BenchmarkFixture, suite: Suite) -> Callable[[Case], None]:
    """Times a case: before each round of ours, one call of everything it is compared with."""

    def run(case: Case) -> None:
        try:
            prepared = suite.prepare(case)
        except NotRun as reason:
            suite.leave_out(case, str(reason))
            pytest.skip(str(reason))
        race = prepared.race
        first, *others = prepared.ours
        others += [name for name in race.programs if name not in prepared.ours]

        def before_each_round() -> None:
            race.lap(others)
            race.ready(first)

        rounds = race.rounds(suite.limits.case_s, suite.limits.least_rounds)
        benchmark.pedantic(race.programs[first], setup=before_each_round, rounds=rounds)
        race.seconds[first] += benchmark.stats.stats.data
        suite.record(prepared, race.seconds)

    return run


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Puts the suite's report beside pytest-benchmark's own."""
    output_json["cae_fast"] = config.stash[_SUITE].report()
