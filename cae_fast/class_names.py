# SPDX-License-Identifier: Apache-2.0
"""Class names live in model, bank and classifier: one place that compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import CAEError


def default_names(count: int) -> tuple[str, ...]:
    """Names of classes that nobody named: "0", "1", ..."""
    return tuple(str(k) for k in range(count))


def agree(
    sources: Mapping[str, Sequence[str] | None], *, error: type[CAEError] = CAEError
) -> tuple[str, ...]:
    """The class names that all sources share.

    Default names ("0", "1", ...) stand for "not named" and agree with any names of the same number,
    except with the same names in another order.

    Args:
        sources: Where names come from (for the message) -> names, or None where they are unknown.
        error: Class of the error raised.

    Returns:
        The names; empty when no source knows any.

    Raises:
        CAEError: Two sources disagree; the message lists both.
    """
    agreed: tuple[str, ...] = ()
    origin = ""
    for source, given in sources.items():
        if given is None:
            continue
        names = tuple(given)
        if not agreed:
            agreed, origin = names, source
            continue
        unnamed = default_names(len(names)) in (names, agreed) and len(names) == len(agreed)
        if names != agreed and (not unnamed or set(names) == set(agreed)):
            raise error(
                f"class names disagree: the {origin} has {list(agreed)}, the {source} has "
                f"{list(names)}"
            )
        if agreed == default_names(len(agreed)) and names != agreed:
            agreed, origin = names, source
    return agreed
