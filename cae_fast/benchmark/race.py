# SPDX-License-Identifier: Apache-2.0
"""Programs that compute the same, timed in alternation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Program = Callable[[], Any]

# Threads of the program before spin for a while; let them sleep before another one is timed.
_SETTLE_S = 0.005
# A call this short is made once untimed before the timed one: neither cold caches nor threads that
# must wake up are charged to whoever comes next.
_SHORT_S = 0.05
# After a first call this long a program is taken to be warm.
_LONG_S = 2.0
# Where one round takes this long, the warm-up counts as one.
_COUNTED_ROUND_S = 2.0
# Where one round takes this long, two are enough.
_LONG_ROUND_S = 20.0
MOST_ROUNDS = 50


class Race:
    """Programs timed one after the other, round after round, so that a busy machine slows all.

    Attributes:
        programs: By name, in the order of a round.
        seconds: Times of the calls so far, by name.
    """

    def __init__(self, programs: Mapping[str, Program]) -> None:
        """Nothing is called yet."""
        self.programs = dict(programs)
        self.seconds: dict[str, list[float]] = {name: [] for name in programs}
        self._expected: dict[str, float] = {}

    def warm_up(self) -> dict[str, Any]:
        """Calls every program until it is warm, which says how long a call takes.

        Returns:
            What each program returned.
        """
        outputs = {}
        for name, program in self.programs.items():
            start = time.perf_counter()
            outputs[name] = program()
            took = time.perf_counter() - start
            self._expected[name] = took if took >= _LONG_S else _timed(program)
        if sum(self._expected.values()) >= _COUNTED_ROUND_S:
            self.seconds = {name: [took] for name, took in self._expected.items()}
        return outputs

    def expected_s(self, name: str) -> float:
        """Seconds of a warm call of a program."""
        return self._expected[name]

    def rounds(self, budget_s: float, least: int) -> int:
        """Rounds to time: what the budget holds, at least `least` with those already timed."""
        round_s = sum(self._expected.values())
        if round_s > _LONG_ROUND_S:
            least = min(least, 2)
        done = min(map(len, self.seconds.values()))
        return max(1, least - done, min(int(budget_s / round_s), MOST_ROUNDS))

    def ready(self, name: str) -> None:
        """Lets the machine settle, so that the next call of a program may be timed."""
        time.sleep(_SETTLE_S)
        if self._expected[name] < _SHORT_S:
            self.programs[name]()

    def lap(self, names: Iterable[str] | None = None) -> None:
        """Times one call of each program, or of those named."""
        for name in self.programs if names is None else names:
            self.ready(name)
            self.seconds[name].append(_timed(self.programs[name]))

    def run(self, budget_s: float, least: int) -> None:
        """Times rounds of warm programs for about `budget_s` seconds, at least `least` of them."""
        for _ in range(self.rounds(budget_s, least)):
            self.lap()


def _timed(program: Program) -> float:
    start = time.perf_counter()
    program()
    return time.perf_counter() - start


def timing(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, fastest and slowest of some calls, and their number, ready for JSON."""
    return {
        "median_s": statistics.median(seconds),
        "fastest_s": min(seconds),
        "slowest_s": max(seconds),
        "rounds": len(seconds),
    }
