# SPDX-License-Identifier: Apache-2.0
"""Options of a request: from texts or JSON values within limits."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cae_fast.manifold.paths import FARTHEST_REACH
from cae_fast.maps import MAP_KINDS
from cae_fast.serving.catalog import ServedModel
from cae_fast.serving.jobs import Options, Refused
from cae_fast.serving.settings import Settings

OPTION_NAMES = (
    *("target", "path", "tolerance", "k", "reach", "second_try", "search"),
    *("saliency", "min_probability", "frames", "timeout_ms"),
)
_SMALLEST_TOLERANCE = 2**-20


@dataclass(frozen=True)
class Asked:
    """Options of a request.

    Attributes:
        target: None, a class index or "any".
        options: For the engine.
        timeout_s: Longest wait.
    """

    target: int | str | None
    options: Options
    timeout_s: float


def read_options(
    given: Mapping[str, Any],
    model: ServedModel,
    settings: Settings,
    *,
    others: tuple[str, ...] = (),
) -> Asked:
    """Options of texts (a form, a query) or of JSON values.

    Args:
        given: By name.
        model: That is to explain.
        settings: With limits and defaults.
        others: Names that are known to the caller.

    Raises:
        Refused: 400: an unknown name or a bad value; the message names it.
    """
    names = (*OPTION_NAMES, *others)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise Refused(400, "unknown_field", f"unknown field {name[:64]!r}{hint}")
    frames = _number(given, "frames", 0, low=0, high=settings.max_frames, whole=True)
    if frames == 1:
        raise Refused(400, "bad_value", "frames must be 0 or at least 2, got 1")
    options = Options(
        path=_word(given, "path", ("line",)),
        tolerance=_number(given, "tolerance", 1 / 256, low=_SMALLEST_TOLERANCE, high=1),
        k=int(_number(given, "k", int(model.info["k"]), low=1, high=1000, whole=True)),
        reach=_number(given, "reach", Options.reach, low=1, high=FARTHEST_REACH),
        second_try=_flag(given, "second_try", default=True),
        search=_word(given, "search", ("bisection", "margin")),
        saliency=_word(given, "saliency", MAP_KINDS),
        min_probability=_number(given, "min_probability", 0.0, low=0, high=1),
        frames=int(frames),
    )
    longest = settings.deadline_s * 1000
    timeout_ms = _number(given, "timeout_ms", longest, low=1, high=max(longest, 1))
    target = read_target(given.get("target"), model)
    usable = model.info["usable"]
    if isinstance(target, int) and usable[target] < options.k:
        what = f"correctly classified images of class {model.class_names[target]!r}"
        said = f"the bank has {usable[target]} {what}, {options.k} needed as exemplars"
        raise Refused(400, "no_exemplar", said)
    return Asked(target, options, timeout_ms / 1000)


def read_target(value: Any, model: ServedModel) -> int | str | None:
    """A class by name or index, "any", or None.

    Raises:
        Refused: 400: there is no such class.
    """
    if value is None or value == "":
        return None
    names = model.class_names
    if isinstance(value, str):
        if value in names:
            return names.index(value)
        if value == "any":
            return value
        if value.isascii() and value.isdecimal() and len(value) < 10:
            value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(names):
        shown = ", ".join(map(repr, names[:32]))
        raise Refused(
            400, "unknown_class", f"target must be one of {shown} or 'any', got {value!r:.80}"
        )
    return value


def _word(given: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    """One of the known words; the first is the default."""
    value = given.get(name) or known[0]
    if value not in known:
        said = f"{name} must be one of {', '.join(known)}, got {value!r:.80}"
        raise Refused(400, "bad_value", said)
    return str(value)


def _flag(given: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """True or false, as JSON has them or as texts."""
    value = given.get(name)
    if value is None or value == "":
        return default
    known = {"true": True, "false": False, "1": True, "0": False}
    read = value if isinstance(value, bool) else known.get(str(value).lower()[:8])
    if read is None:
        raise Refused(400, "bad_value", f"{name} must be true or false, got {value!r:.80}")
    return read


def _number(
    given: Mapping[str, Any],
    name: str,
    default: float,
    *,
    low: float,
    high: float,
    whole: bool = False,
) -> float:
    value = given.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, str) and len(value) <= 32:
        with contextlib.suppress(ValueError):
            value = int(value) if whole else float(value)
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise Refused(
            400, "bad_value", f"{name} must be {what} in [{low:g}, {high:g}], got {value!r:.80}"
        )
    return value
