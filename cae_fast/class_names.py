# SPDX-License-Identifier: Apache-2.0
"""Class names live in model, bank and classifier: one place that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import CAEError

_HOW_TO_NAME = (
    "; names 0, 1, ... are what a model gets that was given none: name its classes with "
    "CAE.from_authors(..., class_names=...), `cae-fast import-checkpoint --class-names` or "
    "CAEConfig(class_names=...)"
)


def agree(
    sources: Mapping[str, Sequence[str] | None], *, error: type[CAEError] = CAEError
) -> tuple[str, ...]:
    """The class names that all sources share.

    The names "0", "1", ... that an unnamed model gets are names like any others: they may well be
    true (digits), so they agree only with themselves and with a source that knows no names.

    Args:
        sources: Where names come from (for the message) -> names, or None where they are unknown.
        error: Class of the error raised.

    Returns:
        The names; empty when no source knows any.

    Raises:
        CAEError: Two sources disagree; the message lists both.
    """
    known = [(source, tuple(names)) for source, names in sources.items() if names is not None]
    if not known:
        return ()
    origin, agreed = known[0]
    for source, names in known[1:]:
        if names != agreed:
            numbered = _is_numbered(names) or _is_numbered(agreed)
            renamed = len(names) == len(agreed) and set(names) != set(agreed)
            hint = _HOW_TO_NAME if numbered and renamed else ""
            raise error(
                f"class names disagree: the {origin} has {list(agreed)}, the {source} has "
                f"{list(names)}{hint}"
            )
    return agreed


def _is_numbered(names: tuple[str, ...]) -> bool:
    return names == tuple(map(str, range(len(names))))
