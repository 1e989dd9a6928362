# SPDX-License-Identifier: Apache-2.0
"""Which rows of a bank are exemplars: named choices, and how reliable a row is."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cae_fast.bank import CodeBank

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Nearest codes that must be of a row's own class for it to be reliable.
JURY = 20
_CHUNK = 512  # rows whose distances to all others are held at a time


@dataclass(frozen=True)
class Choice:
    """How exemplars are looked up.

    Attributes:
        name: What the user says.
        reliable: Only reliable rows are looked at, see :func:`reliable_rows`.
        medoid: Of the k nearest the one nearest to the others is taken; else they are averaged.
    """

    name: str
    reliable: bool = False
    medoid: bool = False


CHOICES = {
    choice.name: choice
    for choice in (
        Choice("nearest"),
        Choice("medoid", medoid=True),
        Choice("reliable", reliable=True),
        Choice("reliable-medoid", reliable=True, medoid=True),
    )
}
DEFAULT_CHOICE = "reliable"  # and so many: docs/guided_paths.md has the figures
_DEFAULT_K = 20
_DEFAULT_SHARE = (
    4  # a class's k-th part at most is averaged: its centre may lie where none of it is
)


def choice_of(name: str) -> Choice:
    """The choice of a name.

    Raises:
        ValueError: There is none; the message lists those there are.
    """
    if name not in CHOICES:
        raise ValueError(
            "exemplars must be images, class codes or bank rows, or one of "
            f"{', '.join(map(repr, CHOICES))}, got {name!r}"
        )
    return CHOICES[name]


def default_k(bank: CodeBank) -> int:
    """Rows looked up where nobody says how many: 20, or a quarter of the smallest class's usable.

    Classes without usable rows do not count; at least 1.
    """
    counts = bank.usable_counts()
    smallest = int(counts[counts > 0].min(initial=_DEFAULT_SHARE * _DEFAULT_K))
    return max(1, min(_DEFAULT_K, smallest // _DEFAULT_SHARE))


def agreement(bank: CodeBank, jury: int = JURY) -> npt.NDArray[np.float64]:
    """Share of the nearest codes of other groups that are of a row's own class, [B].

    Args:
        bank: The bank.
        jury: Nearest codes asked; where the class has fewer other images, as many as it has, and
            at least one. A row without any code of another group agrees with itself: 1.
    """
    _, group = np.unique(np.asarray(bank.groups), return_inverse=True)
    codes = bank.codes.astype(np.float64)
    squares = (codes**2).sum(axis=1)
    sizes = np.bincount(bank.labels, minlength=len(bank.class_names))
    asked = np.clip(sizes - 1, 1, jury)[bank.labels]
    most = min(int(asked.max()), len(bank))
    shares = np.ones(len(bank))
    for first in range(0, len(bank), _CHUNK):
        part = slice(first, first + _CHUNK)
        distance = squares[part, None] + squares - 2 * codes[part] @ codes.T
        distance[group[part, None] == group] = np.inf
        near = np.argpartition(distance, most - 1, axis=1)[:, :most]
        gaps = np.take_along_axis(distance, near, axis=1)
        order = np.argsort(gaps, axis=1, kind="stable")
        near, gaps = (np.take_along_axis(array, order, axis=1) for array in (near, gaps))
        counted = np.isfinite(gaps) & (np.arange(most) < asked[part, None])
        agree = counted & (bank.labels[near] == bank.labels[part, None])
        votes = counted.sum(axis=1)
        shares[part] = np.where(votes > 0, agree.sum(axis=1) / np.maximum(votes, 1), 1.0)
    return shares


def reliable_rows(bank: CodeBank, k: int = 1) -> BoolArray:
    """Rows that may be exemplars and lie among their own class, [B].

    A row is reliable when all of its :data:`JURY` nearest codes of other groups are of its class.
    A class with fewer than `k` such rows keeps those that most neighbours agree with, at least `k`
    where it has so many: no class is lost by asking for reliable rows.
    """
    with _lock:
        kept = _agreements.get(bank)
        if kept is None:
            kept = _agreements[bank] = agreement(bank)
    usable = bank.usable
    chosen = np.zeros(len(bank), dtype=np.bool_)
    for label in range(len(bank.class_names)):
        rows = np.flatnonzero(usable & (bank.labels == label))
        if not len(rows):
            continue
        least = np.sort(kept[rows])[::-1][min(k, len(rows)) - 1]
        chosen[rows] = kept[rows] >= least
    return chosen


def medoids(codes: FloatArray, rows: IntArray) -> IntArray:
    """Of each k rows the one with the smallest sum of distances to the others, [N, 1].

    Args:
        codes: Of the bank, [B, D].
        rows: [N, k], nearest first; a tie goes to the nearer one.
    """
    points = codes[rows].astype(np.float64)
    apart = np.linalg.norm(points[:, :, None] - points[:, None], axis=3).sum(axis=2)
    return np.take_along_axis(rows, apart.argmin(axis=1)[:, None], axis=1)


_agreements: weakref.WeakKeyDictionary[CodeBank, npt.NDArray[np.float64]] = (
    weakref.WeakKeyDictionary()
)
_lock = threading.Lock()
