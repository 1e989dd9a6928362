# SPDX-License-Identifier: Apache-2.0
"""How the rounds of a search on the device are encoded and decoded: natively, or by engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .._C_emu import DeviceArray, GpuSearch


class Rounds(Protocol):
    """The networks' share of a search; every call only queues work, always the same."""

    def begin(self, logits: Any, given: bool, queue: int) -> None:
        """Encodes the search's images and starts it from their logits [N, K]."""

    def decode(self, index: int, points: int, queue: int) -> DeviceArray:
        """Images [points, C, S, S] of the first points of a round, of a packed search fewer."""


class NativeRounds:
    """By the engine that the search belongs to."""

    def __init__(self, search: GpuSearch) -> None:
        """Of a search that was planned for its own networks."""
        self._search = search

    def begin(self, logits: Any, given: bool, queue: int) -> None:
        """See :class:`Rounds`."""
        self._search.begin(logits, given, stream=queue)

    def decode(self, index: int, points: int, queue: int) -> DeviceArray:
        """See :class:`Rounds`."""
        return self._search.decode(index, points, stream=queue)
