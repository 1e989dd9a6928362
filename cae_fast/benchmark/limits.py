# SPDX-License-Identifier: Apache-2.0
"""What a run of the benchmarks may spend, and who fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .cases import EAGER, LIBRARIES, Case

# Peers leave a race that would take too long in this order.
_LEAVE_FIRST = ("torch.compile", "OpenVINO", "ONNX Runtime", EAGER)


class NotRun(Exception):
    """A peer or a case that is not measured; the message says why."""


@dataclass(frozen=True)
class Limits:
    """What a run may spend.

    Attributes:
        case_s: Seconds of timed rounds per case, where calls are short.
        least_rounds: Rounds at least; two where a round takes long.
        race_s: The longest that a case may be expected to take; peers that do not fit are left out.
        compile_s: Seconds in all for torch.compile.
        total_s: The longest that all cases may be expected to take.
    """

    case_s: float = 8.0
    least_rounds: int = 3
    race_s: float = 130.0
    compile_s: float = 150.0
    total_s: float = 840.0


QUICK = Limits(case_s=1.0, least_rounds=2, race_s=30.0, compile_s=0.0, total_s=50.0)


class Pace:
    """How long calls take, by what was measured at other batches."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._per_image: dict[tuple[str, str, int, str], float] = {}

    def note(self, case: Case, name: str, seconds: float, images: int) -> None:
        """Remembers a call of program `name` for some images."""
        self._per_image[case.kind, case.model, case.size, name] = seconds / images

    def expected(self, case: Case, name: str, images: int, guess_s: float) -> float:
        """Seconds of a call: by the same program's pace, for a library else by eager's."""
        for known in (name, EAGER) if name in LIBRARIES else (name,):
            per_image = self._per_image.get((case.kind, case.model, case.size, known))
            if per_image is not None:
                return per_image * images
        return guess_s


def that_fit(expected: Mapping[str, float], allowed_s: float) -> tuple[list[str], dict[str, str]]:
    """The peers with whom two rounds fit, and why the others do not.

    Args:
        expected: Seconds of a call by program: ours and the peers.
        allowed_s: What two rounds may take.

    Raises:
        NotRun: Not even ours fit.
    """
    kept = dict(expected)
    left_out = {}
    for name in _LEAVE_FIRST:
        if 2 * sum(kept.values()) > allowed_s and name in kept:
            left_out[name] = f"takes too long here, about {kept.pop(name):.0f} s a call"
    round_s = sum(kept.values())
    if 2 * round_s > allowed_s:
        raise NotRun(f"takes too long here, about {round_s:.0f} s a round without any peer")
    return [name for name in kept if name in _LEAVE_FIRST], left_out
