# SPDX-License-Identifier: Apache-2.0
"""Guided paths: polylines of class codes from an image's code to an exemplar's, and beyond."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cae_fast.arrays import Float32, to_numpy
from cae_fast.backends import Backend
from cae_fast.errors import BankError

if TYPE_CHECKING:
    from cae_fast.bank import CodeBank

FloatArray = npt.NDArray[np.floating[Any]]

PATHS = ("line", "graph")
DEFAULT_REACH = 1.5  # of lines to exemplars that were looked up: docs/guided_paths.md
FARTHEST_REACH = 4.0


def default_reach(kind: Any, *, looked_up: bool) -> float:
    """How far paths of a kind lead where nobody says it."""
    return DEFAULT_REACH if kind == "line" and looked_up else 1.0


class GuidedPaths:
    """Lays paths of one kind.

    Attributes:
        kind: "line", straight to the exemplar, or "graph", the shortest path over the neighbour
            graph of the bank's codes.
        reach: Length of a line over its distance to the exemplar, in [1, 4].
    """

    def __init__(self, kind: Any, bank: CodeBank | None, reach: Any = 1.0) -> None:
        """Makes the bank's graph, or takes the one that was made before.

        Args:
            kind: "line" or "graph".
            bank: Of the explainer, or None.
            reach: Of lines; graphs end at the exemplar, 1.

        Raises:
            ValueError: Another kind, or `reach` out of range.
            BankError: A graph without a bank.
            MissingExtra: A graph without SciPy.
        """
        if not isinstance(kind, str) or kind not in PATHS:
            raise ValueError(f"path must be one of {', '.join(map(repr, PATHS))}, got {kind!r}")
        most = FARTHEST_REACH if kind == "line" else 1.0
        if (
            isinstance(reach, bool)
            or not isinstance(reach, int | float | np.integer | np.floating)
            or not 1 <= reach <= most
        ):
            wanted = f"a number in [1, {most:g}]" if kind == "line" else "1 with path='graph'"
            raise ValueError(f"reach must be {wanted}, got {reach!r}")
        self.kind = kind
        self.reach = float(reach)
        self._graph = None
        if kind == "graph":
            from cae_fast.manifold.graph import NeighbourGraph

            if bank is None:
                raise BankError(
                    "path='graph' goes through the codes of a bank: give Explainer(..., bank=)"
                )
            self._graph = NeighbourGraph.of(bank)

    def vertices(self, codes: FloatArray, ends: FloatArray) -> FloatArray:
        """Polylines.

        Args:
            codes: Where they begin, [N, D].
            ends: Codes of the exemplars, [N, D].

        Returns:
            [N, V, D] of the dtype of `codes`; V is 2 for lines and a power of two for graphs,
            shorter polylines stay at their last vertex. Rows that are not finite, or begin where
            they end, are lines.
        """
        lines = np.stack([codes, self._beyond(codes, ends)], axis=1)
        if self._graph is None:
            return lines
        ok = np.isfinite(lines).all(axis=(1, 2)) & (lines[:, 0] != lines[:, 1]).any(axis=1)
        rows = np.flatnonzero(ok)
        found = self._graph.paths(lines[rows, 0], lines[rows, 1])
        most = max((len(line) for line in found), default=2)
        width = 2
        while width < most:  # few different widths: the GPU keeps a plan for each
            width *= 2
        padded = np.concatenate([lines, np.repeat(lines[:, 1:], width - 2, axis=1)], axis=1)
        for row, line in zip(rows, found, strict=True):
            padded[row, : len(line)] = line
            padded[row, len(line) :] = line[-1]
        return padded

    def _beyond(self, codes: FloatArray, ends: FloatArray) -> FloatArray:
        """Where lines end [N, D]; the GPU's kernel gives the same bits for float32 codes."""
        ends = ends.astype(codes.dtype)
        if self.reach == 1:
            return ends
        with np.errstate(invalid="ignore", over="ignore"):  # such images are found to be so
            start = (1 - self.reach) * codes.astype(np.float64)
            return (start + self.reach * ends.astype(np.float64)).astype(codes.dtype)


def codes_along(backend: Backend, vertices: FloatArray, row: int, positions: Float32) -> FloatArray:
    """Class codes [T, D] at positions t by arc length of one polyline.

    Args:
        backend: Interpolates between vertices.
        vertices: Polylines [N, V, D].
        row: Which of them.
        positions: [T] in [0, 1].
    """
    line = vertices[row]
    if len(line) == 1:
        line = np.repeat(line, 2, axis=0)
    lengths = np.linalg.norm(np.diff(line.astype(np.float64), axis=0), axis=1)
    if len(lengths) == 1 or not lengths.sum():
        segment, local = np.zeros(len(positions), dtype=np.int64), positions
    else:
        ends = np.concatenate([[0.0], lengths.cumsum()])
        place = positions.astype(np.float64) * ends[-1]
        last = int(np.flatnonzero(lengths)[-1])
        segment = np.clip(np.searchsorted(ends, place, side="right") - 1, 0, last)
        inside = (place - ends[segment]) / np.where(lengths[segment] > 0, lengths[segment], 1)
        local = np.where(positions == 1, 1, np.clip(inside, 0, 1)).astype(np.float32)
    return backend.lerp_codes(
        np.ascontiguousarray(line[segment]), np.ascontiguousarray(line[segment + 1]), local
    )


def decode_along(
    frames: npt.NDArray[np.float32],
    backend: Backend,
    individual: Any,
    vertices: FloatArray,
    positions: Float32,
    in_flight: int,
) -> None:
    """Decodes points of paths.

    Args:
        frames: Filled with the images, [n, T, C, S, S].
        backend: The networks.
        individual: Individual codes of the n images.
        vertices: Their polylines, [n, V, D].
        positions: [T] in [0, 1], by arc length.
        in_flight: The most points decoded at a time.
    """
    for i in range(len(vertices)):
        codes = codes_along(backend, vertices, i, positions)
        for first in range(0, len(positions), in_flight):
            part = slice(first, first + in_flight)
            index = np.full(len(positions[part]), i, dtype=np.int32)
            decoded = backend.decode(individual, codes[part], index)
            frames[i, part] = to_numpy(decoded)
