# SPDX-License-Identifier: Apache-2.0
"""Codes drawn in the plane: PCA, t-SNE, UMAP; new codes placed among them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.errors import missing_extra
from cae_fast.manifold.graph import NeighbourGraph
from cae_fast.manifold.measures import Principal

Float64 = npt.NDArray[np.float64]

#: Names of the views, in the order they are shown.
VIEWS = ("pca", "tsne", "umap")
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
_FEWEST = 5  # codes below which neighbours say nothing
_PERPLEXITY = 30.0
_PLACED_BY = 5  # neighbours that place a new code


@dataclass(frozen=True)
class View:
    """Codes in the plane.

    Attributes:
        name: "pca", "tsne" or "umap".
        points: Of the bank's rows, [B, 2].
        placed: Of new codes, [M, 2].
        note: How to read it.
        labels: Of both axes; empty where they mean nothing.
    """

    name: str
    points: Float64
    placed: Float64
    note: str
    labels: tuple[str, str] = ("", "")


def make_views(
    codes: npt.NDArray[np.floating[Any]],
    new: npt.NDArray[np.floating[Any]],
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[list[View], dict[str, str]]:
    """Draws codes in each way that can be had.

    Args:
        codes: Of the bank, [B, D].
        new: Codes to place among them, [M, D]; M may be 0.
        names: Views wanted, an error where one cannot be had; None is all that can.
        seed: Of t-SNE and UMAP; the same seed on the same machine gives the same picture.

    Returns:
        The views, and by name why others are missing.

    Raises:
        ValueError: An unknown name, or too few codes for a view that was asked for.
        MissingExtra: What a view that was asked for needs is not installed.
    """
    unknown = [name for name in names or () if name not in VIEWS]
    if unknown:
        raise ValueError(f"views must be of {', '.join(VIEWS)}, got {unknown[0]!r}")
    views: list[View] = []
    missing: dict[str, str] = {}
    for name in VIEWS:
        if names is not None and name not in names:
            continue
        try:
            views.append(_MAKERS[name](codes, new, seed))
        except (ImportError, ValueError) as error:
            if names is not None:
                raise
            missing[name] = str(error)
    return views, missing


def _pca(codes: npt.NDArray[Any], new: npt.NDArray[Any], seed: int) -> View:
    principal = Principal.of(codes)
    share = principal.shares
    both = [np.zeros((len(array), 2)) for array in (codes, new)]
    for out, array in zip(both, (codes, new), strict=True):
        if len(array):
            kept = principal.project(array)[:, :2]
            out[:, : kept.shape[1]] = kept
    labels = [f"direction {i + 1} ({share[i]:.0%})" if i < len(share) else "" for i in range(2)]
    note = "Distances are the codes' own, seen along their two directions of largest variance."
    return View("pca", both[0], both[1], note, (labels[0], labels[1]))


def _tsne(codes: npt.NDArray[Any], new: npt.NDArray[Any], seed: int) -> View:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise missing_extra("manifold", "scikit-learn") from None
    _check_enough(codes, "t-SNE")
    perplexity = min(_PERPLEXITY, (len(codes) - 1) / 3)
    start = _start(codes)
    points = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(
        np.asarray(codes, dtype=np.float32)
    )
    note = (
        f"Neighbours stay neighbours (perplexity {perplexity:.0f}); distances between groups and "
        "their sizes mean nothing. New images lie at the mean of their "
        f"{_PLACED_BY} nearest codes, weighted by nearness."
    )
    return View("tsne", points.astype(np.float64), _place(codes, points, new), note)


def _umap(codes: npt.NDArray[Any], new: npt.NDArray[Any], seed: int) -> View:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what it could import and cannot
            from umap import UMAP
    except ImportError:
        raise missing_extra("umap", "umap-learn") from None
    _check_enough(codes, "UMAP")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread
        made = UMAP(
            n_neighbors=min(15, len(codes) - 1), init=_start(codes), random_state=seed, n_jobs=1
        )
        points = np.asarray(made.fit_transform(np.asarray(codes, dtype=np.float32)))
    note = (
        "Neighbours stay neighbours; distances between groups mean little. New images lie at the "
        f"mean of their {_PLACED_BY} nearest codes, weighted by nearness."
    )
    return View("umap", points.astype(np.float64), _place(codes, points, new), note)


_MAKERS = {"pca": _pca, "tsne": _tsne, "umap": _umap}


def _check_enough(codes: npt.NDArray[Any], what: str) -> None:
    if len(codes) < _FEWEST:
        raise ValueError(f"{what} needs at least {_FEWEST} codes, the bank has {len(codes)}")


def _start(codes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The first two principal coordinates, small, so that what is left lies left in each run."""
    points = _pca(codes, codes[:0], 0).points
    spread = float(points[:, 0].std())
    # Equal codes would start, and stay, at one point: a trace of their order tells them apart.
    points = points + np.random.default_rng(0).normal(0, 1e-3 * (spread or 1.0), points.shape)
    return np.asarray(points / (spread or 1.0) * 1e-2, dtype=np.float32)


def _place(codes: npt.NDArray[Any], points: npt.NDArray[Any], new: npt.NDArray[Any]) -> Float64:
    """Where new codes [M, D] lie among `points` [B, 2] of the codes [B, D]."""
    placed = np.zeros((len(new), 2))
    count = min(_PLACED_BY, len(codes))
    for i, code in enumerate(np.asarray(new, dtype=np.float64)):
        gaps = np.linalg.norm(codes - code, axis=1)
        near = np.argsort(gaps, kind="stable")[:count]
        weights = 1.0 / np.maximum(gaps[near], 1e-9 * max(float(gaps.max()), 1e-30))
        placed[i] = (points[near] * weights[:, None]).sum(axis=0) / weights.sum()
    return placed


def graph_edges(graph: NeighbourGraph) -> npt.NDArray[np.int64]:
    """Edges of a graph, each once, the smaller row first, [E, 2]."""
    pairs = graph.edges.tocoo()
    once = pairs.row < pairs.col
    edges: npt.NDArray[np.int64] = np.stack([pairs.row[once], pairs.col[once]], axis=1)
    return edges.astype(np.int64)
