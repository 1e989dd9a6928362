# SPDX-License-Identifier: Apache-2.0
"""The neighbour graph of a bank's codes, and shortest paths through it.

A straight line between two codes may leave the region where images have codes. The shortest path
over edges between near codes does not, but for its first edge from an image that lies apart
(geodesics of a neighbour graph: Tenenbaum, de Silva, Langford, Science 290, 2000). SciPy finds the
neighbours and runs Dijkstra's algorithm (extra `manifold`).
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cae_fast.errors import missing_extra

if TYPE_CHECKING:
    from cae_fast.bank import CodeBank

FloatArray = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NEIGHBOURS = 10
#: Exponent of an edge's length: above 1 many short steps are shorter than one long one, so that a
#: path follows dense regions (power-weighted shortest paths: Hwang, Damelin, Hero, Ann. Appl.
#: Probab. 26, 2016).
POWER = 2.0
#: Longer polylines are thinned: more vertices than the search's grid has steps are never seen.
MOST_VERTICES = 256


class NeighbourGraph:
    """Neighbours of each code, joined into one part; made once per bank.

    Attributes:
        codes: The nodes, [B, D] float64.
        edges: Symmetric distances as a SciPy CSR array [B, B].
        parts: Number of parts that the neighbours alone left.
        bridges: Edges that were added between these, the shortest there are, [parts - 1, 2].
    """

    def __init__(
        self, codes: npt.ArrayLike, *, neighbours: int = NEIGHBOURS, power: float = POWER
    ) -> None:
        """Finds the neighbours.

        Args:
            codes: [B, D], finite, B >= 1.
            neighbours: Nearest codes that each is joined to; all others where there are fewer.
            power: Exponent of an edge's length, at least 1.

        Raises:
            ValueError: A wrong argument.
            MissingExtra: SciPy is not installed.
        """
        try:
            from scipy.spatial import cKDTree
        except ImportError:
            raise missing_extra("manifold", "scipy") from None
        self.codes: Float64 = np.ascontiguousarray(codes, dtype=np.float64)
        if self.codes.ndim != 2 or not len(self.codes) or not np.isfinite(self.codes).all():
            raise ValueError(f"codes must be finite [B, D], B >= 1, got {list(self.codes.shape)}")
        if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 1:
            raise ValueError(f"neighbours must be a positive integer, got {neighbours!r}")
        if not power >= 1:
            raise ValueError(f"power must be at least 1, got {power!r}")
        self.power = float(power)
        self.neighbours = min(neighbours, len(self.codes))
        self._tree = cKDTree(self.codes)
        self.edges, self.parts, self.bridges = self._join()

    @classmethod
    def of(cls, bank: CodeBank) -> NeighbourGraph:
        """The graph of a bank's codes; kept as long as the bank."""
        with _lock:
            graph = _graphs.get(bank)
            if graph is None:
                graph = _graphs[bank] = cls(bank.codes)
            return graph

    def _join(self) -> tuple[Any, int, IntArray]:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        count = len(self.codes)
        distance, near = self._nearest(self.codes, min(self.neighbours + 1, count))
        rows = np.repeat(np.arange(count), near.shape[1])
        first, second, length = rows, near.ravel(), distance.ravel()
        bridges: list[tuple[int, int]] = []
        parts = 1
        while True:
            kept = first != second
            # An edge of length zero, between equal codes, would be no edge in a sparse matrix.
            weights = np.maximum(length[kept], _tiny(length))
            graph = coo_array((weights, (first[kept], second[kept])), shape=(count, count)).tocsr()
            graph = graph.maximum(graph.T)
            found, part = connected_components(graph, directed=False)
            if not bridges:
                parts = int(found)
            if found == 1:
                return graph, parts, np.array(bridges, dtype=np.int64).reshape(-1, 2)
            for i, j, gap in self._shortest_bridges(part, int(found)):
                bridges.append((i, j))
                first, second = np.append(first, [i]), np.append(second, [j])
                length = np.append(length, [gap])

    def _shortest_bridges(self, part: IntArray, found: int) -> list[tuple[int, int, float]]:
        """For each part but the largest the shortest edge out of it (a round of Boruvka's)."""
        from scipy.spatial import cKDTree

        largest = int(np.bincount(part).argmax())
        chosen: dict[tuple[int, int], float] = {}
        for name in range(found):
            if name == largest:
                continue
            inside, outside = np.flatnonzero(part == name), np.flatnonzero(part != name)
            gaps, nearest = cKDTree(self.codes[outside]).query(self.codes[inside])
            at = int(np.argmin(gaps))
            i, j = int(inside[at]), int(outside[nearest[at]])
            chosen[min(i, j), max(i, j)] = float(gaps[at])
        return [(i, j, gap) for (i, j), gap in chosen.items()]

    def _nearest(self, codes: FloatArray, count: int) -> tuple[Float64, IntArray]:
        """Distances and nodes [N, count] of the nearest nodes."""
        distance, nodes = self._tree.query(np.asarray(codes, dtype=np.float64), k=count)
        shape = (len(codes), count)
        return np.reshape(distance, shape), np.reshape(nodes, shape).astype(np.int64)

    def paths(self, starts: FloatArray, ends: FloatArray) -> list[FloatArray]:
        """Shortest paths over the graph.

        Neither end need be a node: each is joined to its nearest nodes, and to the other end where
        that is as near as those.

        Args:
            starts: [N, D], finite.
            ends: [N, D], finite.

        Returns:
            N polylines [V, D] of the dtype of `starts`, V >= 1, from the start exactly to the end
            exactly; no vertex twice in a row.
        """
        if not len(starts):
            return []
        from scipy.sparse import coo_array, csr_array, hstack, vstack
        from scipy.sparse.csgraph import dijkstra

        count = len(self.codes)
        goals, goal_of = np.unique(np.asarray(ends, dtype=np.float64), axis=0, return_inverse=True)
        goal_of = goal_of.reshape(-1)
        distance, near = self._nearest(goals, self.neighbours)
        rows = np.repeat(np.arange(len(goals)), near.shape[1])
        # Edges out of a goal only: no path goes through another's goal.
        out = coo_array(
            (np.maximum(distance.ravel(), _tiny(distance)), (rows, near.ravel())),
            shape=(len(goals), count),
        )
        nodes = hstack([self.edges, csr_array((count, len(goals)))])
        goal_rows = hstack([out, csr_array((len(goals), len(goals)))])
        graph = vstack([nodes, goal_rows]).tocsr()
        graph.data **= self.power
        cost, before = dijkstra(
            graph, indices=np.arange(count, count + len(goals)), return_predecessors=True
        )
        first_distance, first = self._nearest(starts, self.neighbours)
        found = []
        for i in range(len(starts)):
            goal = int(goal_of[i])
            reach = max(first_distance[i, -1], distance[goal, -1])
            straight = float(np.linalg.norm(np.asarray(starts[i], np.float64) - goals[goal]))
            through = first_distance[i] ** self.power + cost[goal, first[i]]
            at = int(np.argmin(through))
            interior: list[int] = []
            if straight > reach or straight**self.power > through[at]:
                node = int(first[i, at])
                while node < count:
                    interior.append(node)
                    node = int(before[goal, node])
            found.append(self._polyline(starts[i], interior, ends[i]))
        return found

    def _polyline(self, start: FloatArray, interior: list[int], end: FloatArray) -> FloatArray:
        dtype = start.dtype
        line = np.concatenate(
            [start[None], self.codes[interior].astype(dtype), end[None].astype(dtype)]
        )
        moved = np.ones(len(line), dtype=np.bool_)
        moved[1:] = (line[1:] != line[:-1]).any(axis=1)
        line = line[moved]
        if len(line) > MOST_VERTICES:
            line = line[np.rint(np.linspace(0, len(line) - 1, MOST_VERTICES)).astype(np.int64)]
        return line


_graphs: weakref.WeakKeyDictionary[CodeBank, NeighbourGraph] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _tiny(lengths: Float64) -> float:
    """A length that is no length beside the others, and not zero."""
    return max(float(lengths.max(initial=0.0)) * 1e-9, 1e-30)
