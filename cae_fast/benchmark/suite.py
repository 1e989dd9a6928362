# SPDX-License-Identifier: Apache-2.0
"""Runs cases: builds the programs, checks that they agree, times them, notes what was left out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._backend import set_num_threads
from ..errors import CAEError
from ..explanation import Explanation
from ..model import CAE
from ..testing import relative_error
from . import operations
from .cases import EAGER, PEERS, Case, random_model
from .gemm import gemm_peak
from .limits import Limits, NotRun, Pace, that_fit
from .machine import describe, installed
from .operations import Operations
from .peers import PeerShop
from .race import Program, Race, timing
from .start import first_explanation
from .tasks import Arrays, explain_task, network_task, search_variants

#: Largest relative error of a peer's outputs against ours: all compute the same function.
AGREEMENT = 1e-3
OURS = "cae_fast"
# To guess the time of what was never timed: the share of the peak that it reaches.
_GUESSED_SHARE = 0.6
_GUESSED_DECODES = 10
# On a shared machine the peak varies: it is measured again now and then, and the best counts.
_PEAK_AGAIN_S = 0.5
_PEAK_EVERY_S = 15.0


class Disagreement(RuntimeError):
    """A peer computes something else than we do, so its time says nothing."""


@dataclass
class Prepared:
    """A case whose programs are warm and agree.

    Attributes:
        case: The case.
        race: The programs; the names of ours begin with `OURS`.
        left_out: Why a peer is not in the race.
        notes: What is to be said of a program.
        work: Operations of a call of each of our programs.
        decodes: Decodes per image of each of our programs that search.
        repeats: How often a peer must run for what one call of ours does.
    """

    case: Case
    race: Race
    left_out: dict[str, str]
    notes: dict[str, str]
    work: dict[str, Operations]
    decodes: dict[str, float]
    repeats: int = 1

    @property
    def ours(self) -> list[str]:
        """Names of our programs."""
        return list(self.work)


class Suite:
    """One run of the benchmarks."""

    def __init__(
        self,
        threads: int,
        limits: Limits,
        shop: PeerShop,
        *,
        peers: Sequence[str] = PEERS,
        model: CAE | None = None,
    ) -> None:
        """Sets the threads of this process and measures its peak.

        Args:
            threads: For ours and all peers.
            limits: What to spend.
            shop: Where peers come from.
            peers: Those that take part.
            model: The model of cases that are "given".
        """
        set_num_threads(threads)
        if installed("torch"):
            import torch

            torch.set_num_threads(threads)
        self.threads = threads
        self.limits = limits
        self.rows: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self._peak = gemm_peak(threads)
        self._peak_at = time.monotonic()
        self._shop = shop
        self._peers = [name for name in PEERS if name in peers]
        self._pace = Pace()
        self._given = model
        self._models: dict[tuple[str, int], CAE] = {}

    def measure(self, case: Case) -> None:
        """Times a case and adds its rows; one that cannot be timed gets a row that says why."""
        try:
            if case.kind == "start":
                rounds = max(2, self.limits.least_rounds)
                self.record_start(case, [first_explanation(self.threads) for _ in range(rounds)])
                return
            prepared = self.prepare(case)
        except (NotRun, CAEError) as reason:
            self.leave_out(case, str(reason))
            return
        prepared.race.run(self.limits.case_s, self.limits.least_rounds)
        self.record(prepared, prepared.race.seconds)

    def leave_out(self, case: Case, reason: str) -> None:
        """Adds the row of a case that is not measured."""
        self.rows.append({"name": case.name, "kind": case.kind, "not_run": reason})

    def record_start(self, case: Case, seconds: Sequence[float]) -> None:
        """Adds the row of the first explanation."""
        self.rows.append({"name": case.name, "kind": case.kind, "ours": timing(seconds)})

    def prepare(self, case: Case) -> Prepared:
        """Builds a case's programs, warms them and checks that their outputs agree.

        Raises:
            NotRun: The case does not fit the limits.
            Disagreement: A peer's output differs from ours by more than `AGREEMENT`.
        """
        model = self._model(case)
        prepared = (self._explain if case.kind == "explain" else self._network)(case, model)
        for name in prepared.race.programs:
            ours = name in prepared.work
            images = case.batch if ours or prepared.repeats == 1 else 1
            self._pace.note(case, name, prepared.race.expected_s(name), images)
        return prepared

    def record(self, prepared: Prepared, seconds: Mapping[str, Sequence[float]]) -> None:
        """Adds the rows of a timed case, one for each of our programs."""
        case = prepared.case
        self._measure_peak_again()
        peers: dict[str, dict[str, Any]] = {}
        for name in PEERS:
            if name in seconds:
                peers[name] = timing([taken * prepared.repeats for taken in seconds[name]])
            elif name in prepared.left_out:
                peers[name] = {"not_run": prepared.left_out[name]}
            if name in prepared.notes:
                peers[name]["note"] = prepared.notes[name]
        for ours in prepared.ours:
            row: dict[str, Any] = {
                "name": case.name + ours.removeprefix(OURS),
                "kind": case.kind,
                "ours": timing(seconds[ours]),
                "peers": peers,
                "gflop": prepared.work[ours].reference / 1e9,
                "gflop_floor": prepared.work[ours].executed / 1e9,
            }
            if ours in prepared.decodes:
                row["decodes"] = prepared.decodes[ours]
            self.rows.append(row)

    def report(self) -> dict[str, Any]:
        """Machine, peak and rows, ready for JSON."""
        return {
            "machine": describe(self.threads),
            "peak": self._peak,
            "seconds": time.monotonic() - self._started,
            "rows": self.rows,
        }

    def _measure_peak_again(self) -> None:
        if time.monotonic() - self._peak_at > _PEAK_EVERY_S:
            again = gemm_peak(self.threads, _PEAK_AGAIN_S)
            self._peak = max(self._peak, again, key=lambda peak: float(peak["gflops"]))
            self._peak_at = time.monotonic()

    def _model(self, case: Case) -> CAE:
        if self._given is not None and case.model == "given":
            return self._given
        key = (case.model, case.size)
        if key not in self._models:
            self._models = {key: random_model(case)}  # one at a time: they are large
        return self._models[key]

    def _network(self, case: Case, model: CAE) -> Prepared:
        count = operations.encode if case.kind == "encode" else operations.decode
        work = count(model.config) * case.batch
        guesses = {OURS: self._seconds(work.executed)}
        guesses |= dict.fromkeys(self._peers, self._seconds(work.reference))
        expected = {
            name: self._pace.expected(case, name, case.batch, guess)
            for name, guess in guesses.items()
        }
        chosen, left_out = that_fit(expected, self._allowed_s())
        task = network_task(case.kind, model, case.batch)
        programs: dict[str, Program] = {OURS: task.ours}
        notes: dict[str, str] = {}
        for name in chosen:
            try:
                programs[name], note = self._shop.build(name, case, task)
                notes |= {name: note} if note else {}
            except NotRun as reason:
                left_out[name] = str(reason)
        race = Race(programs)
        outputs = race.warm_up()
        for name in programs:
            _agree(case, name, outputs[name], outputs[OURS])
        return Prepared(case, race, left_out, notes, {OURS: work}, {})

    def _explain(self, case: Case, model: CAE) -> Prepared:
        variants = search_variants(full=case.batch == 1)
        guess = operations.explain(model.config, _GUESSED_DECODES) * case.batch
        once = operations.authors_procedure(model.config)
        expected = {}
        for name in (f"{OURS}, {variant}" for variant in variants):
            ours_s = self._seconds(guess.executed)
            expected[name] = self._pace.expected(case, name, case.batch, ours_s)
        if EAGER in self._peers:
            eager_s = self._seconds(once.reference)
            expected[EAGER] = self._pace.expected(case, EAGER, 1, eager_s)
        chosen, left_out = that_fit(expected, self._allowed_s())
        task = explain_task(model, case.batch, variants)
        programs: dict[str, Program] = {
            f"{OURS}, {variant}": program for variant, program in task.variants.items()
        }
        ours = list(programs)
        notes = {}
        if chosen:
            try:
                programs[EAGER], notes[EAGER] = self._shop.authors(case, task)
            except NotRun as reason:
                left_out[EAGER] = str(reason)
        race = Race(programs)
        outputs = race.warm_up()
        work, decodes = {}, {}
        for name in ours:
            result: Explanation = outputs[name]
            if set(result.status) != {"flipped"}:
                raise Disagreement(f"{case.name}: expected flips, got {sorted(set(result.status))}")
            decodes[name] = float(np.mean(result.evaluations))
            work[name] = operations.explain(model.config, decodes[name]) * case.batch
            if EAGER in programs:
                _agree(case, EAGER, outputs[EAGER], (result.reconstruction[:1],))
        return Prepared(case, race, left_out, notes, work, decodes, repeats=case.batch)

    def _seconds(self, flop: float) -> float:
        """A guess at the seconds of some operations."""
        return float(flop / (self._peak["gflops"] * 1e9 * _GUESSED_SHARE))

    def _allowed_s(self) -> float:
        """What a case may take now.

        Raises:
            NotRun: Nothing is left.
        """
        left_s = self.limits.total_s - (time.monotonic() - self._started)
        if left_s <= 0:
            raise NotRun(f"the {self.limits.total_s:.0f} s for all cases were over")
        return min(self.limits.race_s, left_s)


def _agree(case: Case, name: str, outputs: Arrays, expected: Arrays) -> None:
    """Checks that a program's outputs are those expected.

    Raises:
        Disagreement: They are not.
    """
    for value, wanted in zip(outputs, expected, strict=True):
        error = relative_error(value, wanted)
        if not error < AGREEMENT:
            raise Disagreement(
                f"{case.name}: {name} differs from {OURS} by {error:.2g}, relative to the norm "
                f"(allowed {AGREEMENT})"
            )
