# SPDX-License-Identifier: Apache-2.0
"""What is asked of an engine, and what comes back or does not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.arrays import Float32
from cae_fast.manifold.paths import DEFAULT_REACH


@dataclass(frozen=True)
class Options:
    """How images are explained; jobs with equal options are explained together.

    Attributes:
        path: As in `cf.Explainer.explain`; so are `tolerance`, `k`, `reach`, `second_try`,
            `search`, `saliency`, `min_probability`.
        frames: Pictures along the path, 0 or at least 2.
        frame_from: First frame decoded; only for `kind` "frames".
        frame_to: One past the last frame decoded; only for `kind` "frames".
        code: Whether positions in the plane of the manifold are wanted, and the exemplar's picture.
        kind: "explain", or "frames": part of the path's pictures and nothing else.
    """

    path: str = "line"
    tolerance: float = 1 / 256
    k: int = 1
    reach: float = DEFAULT_REACH
    second_try: bool = True
    search: str = "bisection"
    saliency: str = "difference"
    min_probability: float = 0.0
    frames: int = 0
    frame_from: int = 0
    frame_to: int = 0
    code: bool = False
    kind: str = "explain"


@dataclass(frozen=True)
class Job:
    """One image to explain.

    Attributes:
        image: float32 [C, S, S].
        target: None, a class index or "any".
        options: How.
        rows: Bank rows [k] the path leads to, for "frames"; empty where it leads nowhere.
        second_path: Class codes [2, D] of the path where it is a second one, for "frames"; else
            empty.
    """

    image: Float32
    target: int | str | None
    options: Options
    rows: tuple[int, ...] = ()
    second_path: tuple[tuple[float, ...], ...] = ()


@dataclass
class Answer:
    """What the engine found out about one image.

    Attributes:
        fields: Arrays and numbers by the names of `cf.Explanation`, without the axis of images;
            `frames` uint8 [F, H, W, C], `frame_t` [F], `frame_logits` [F, K], `code_image` [2],
            `code_exemplar` [2] where asked for.
        meta: Of the explanation.
        batch_size: Images explained together.
        queue_s: Seconds waited.
        engine_s: Seconds of the batch in the engine.
    """

    fields: dict[str, Any]
    meta: dict[str, Any]
    batch_size: int = 1
    queue_s: float = 0.0
    engine_s: float = 0.0


class Refused(Exception):
    """A request that is not answered as asked.

    Attributes:
        status: HTTP status.
        code: What happened, for programs.
        message: What happened, for people: no path, address or traceback.
        retry_after_s: When to come again, or None.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: float | None = None
    ) -> None:
        """Keeps what is said to the client, cleaned of what concerns the machine."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = clean(message)
        self.retry_after_s = retry_after_s


class EngineLost(Exception):
    """An engine ended, or was ended, before it answered.

    Attributes:
        started: Whether it had begun with this batch.
    """

    def __init__(self, started: bool) -> None:
        """Says whether the batch may be the reason."""
        super().__init__("the engine ended")
        self.started = started


@dataclass
class Outcome:
    """What an engine makes of a batch: groups of rows explained together, and failures.

    Attributes:
        groups: Each with "rows" (positions in the batch), "fields" (arrays with a leading axis of
            these rows), "ragged" (lists of arrays, one for each row) and "meta".
        failures: Position in the batch -> (HTTP status, code, message).
        seconds: In the engine.
    """

    groups: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[int, tuple[int, str, str]] = field(default_factory=dict)
    seconds: float = 0.0

    def tree(self) -> dict[str, Any]:
        """As plain values and arrays, for another process."""
        failures = [[row, *said] for row, said in self.failures.items()]
        return {"groups": self.groups, "failures": failures, "seconds": self.seconds}

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Outcome:
        """From what :meth:`tree` gave."""
        failures = {row: (status, code, said) for row, status, code, said in tree["failures"]}
        return cls(tree["groups"], failures, tree["seconds"])

    def answers(self, count: int) -> list[Answer | Refused]:
        """One for each of the `count` rows; arrays are views into the groups."""
        found: list[Answer | Refused | None] = [None] * count
        for group in self.groups:
            for position, row in enumerate(group["rows"]):
                values: dict[str, Any] = {
                    name: _plain(array[position]) for name, array in group["fields"].items()
                }
                values |= {name: arrays[position] for name, arrays in group["ragged"].items()}
                found[row] = Answer(values, group["meta"], batch_size=count, engine_s=self.seconds)
        for row, (status, code, message) in self.failures.items():
            found[row] = Refused(status, code, message)
        lost = Refused(500, "internal", "the engine gave no answer for this image")
        return [lost if answer is None else answer for answer in found]


def _plain(value: Any) -> Any:
    """Scalars of NumPy as Python's."""
    return value.item() if isinstance(value, np.generic) else value


_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}\b")
_PATH = re.compile(r"(?<![\w:/.])~?/(?:[^\s/:'\",;)(]+/)*[^\s/:'\",;)(]+")


def clean(text: str) -> str:
    """One line of text without memory addresses and absolute paths."""
    line = " ".join(str(text).split())
    return _PATH.sub("a file", _ADDRESS.sub("an object", line))[:500]


def stacked(jobs: list[Job]) -> npt.NDArray[np.float32]:
    """Images [N, C, S, S] of jobs."""
    return np.stack([job.image for job in jobs])
