# SPDX-License-Identifier: Apache-2.0
"""The manifold as PNG pictures (extra `plots`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cae_fast.colors import to_rgb
from cae_fast.errors import missing_extra
from cae_fast.manifold.directions import Strip
from cae_fast.manifold.views import TITLES, View
from cae_fast.report.manifold_data import Manifold, color_of, shape_of

_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "cross": "X"}
_SOFT = "#66635d"


def write_figures(folder: Path, manifold: Manifold) -> list[str]:
    """Writes `pca.png`, ..., `graph.png`, `variance.png` and `direction-N.png`.

    Returns:
        Names of the files.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    check_matplotlib()
    drawn: dict[str, Any] = {}
    for view in manifold.views:
        drawn[f"{view.name}.png"] = _scatter(manifold, view, edges=False)
    if manifold.edges is not None:
        names = {view.name: view for view in manifold.views}
        best = names.get("tsne") or names.get("pca") or next(iter(manifold.views), None)
        if best is not None:
            drawn["graph.png"] = _scatter(manifold, best, edges=True)
    drawn["variance.png"] = _variance(manifold)
    for direction, strips in itertools.groupby(manifold.strips, key=lambda s: s.direction):
        drawn[f"direction-{direction + 1}.png"] = _strips(manifold, list(strips))
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=130)
    return list(drawn)


def check_matplotlib() -> None:
    """Refuses where matplotlib is missing.

    Raises:
        MissingExtra: It is.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise missing_extra("plots", "matplotlib") from error


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plain(ax: Any) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(labelsize=8, colors=_SOFT)


def _scatter(manifold: Manifold, view: View, *, edges: bool) -> Any:
    bank, placed = manifold.bank, manifold.placed
    figure = _figure(8.0, 6.4)
    ax = figure.subplots()
    if edges and manifold.edges is not None:
        from matplotlib.collections import LineCollection

        lines = view.points[manifold.edges]
        ax.add_collection(LineCollection(list(lines), colors="#b9b4a8", linewidths=0.35, zorder=1))
    size = float(np.clip(3000 / len(bank), 6, 40))
    for index, name in enumerate(bank.class_names):
        rows = bank.labels == index
        ax.scatter(
            *view.points[rows].T,
            s=size,
            c=color_of(index),
            marker=_MARKERS[shape_of(index)],
            linewidths=0,
            alpha=0.85,
            zorder=2,
        )
        # The legend's own marker: of one size, and there where a class has no row.
        ax.scatter([], [], s=36, c=color_of(index), marker=_MARKERS[shape_of(index)], label=name)
    for name, point in zip(placed.names, view.placed, strict=True):
        ax.scatter(*point, s=90, facecolors="none", edgecolors="black", linewidths=1.6, zorder=4)
        ax.annotate(
            name[-28:],
            point,
            xytext=(7, 7),
            textcoords="offset points",
            fontsize=8,
            zorder=5,
            parse_math=False,
        )
    what = "Neighbour graph over " + TITLES[view.name] if edges else TITLES[view.name]
    ax.set_title(f"{what} of {len(bank)} class codes", loc="left", fontsize=11)
    if any(view.labels):
        ax.set_xlabel(view.labels[0], fontsize=9)
        ax.set_ylabel(view.labels[1], fontsize=9)
        _plain(ax)
    else:
        ax.set_axis_off()
    legend = ax.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, handletextpad=0.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _variance(manifold: Manifold) -> Any:
    principal = manifold.principal
    figure = _figure(6.0, 3.6)
    ax = figure.subplots()
    numbers = np.arange(1, len(principal.shares) + 1)
    ax.bar(numbers, principal.shares, color="#33658a", width=0.7, label="of this direction")
    ax.plot(numbers, principal.shares.cumsum(), "o-", color="#b4500f", ms=4, label="up to here")
    for share in (0.9, 0.99):
        ax.axhline(share, color="#b9b4a8", lw=0.8, ls="--", zorder=0)
        ax.text(0.42, share, f"{share:.0%}", fontsize=8, va="bottom", color=_SOFT)
    ax.set_xticks(numbers)
    ax.set_xlim(0.4, numbers[-1] + 0.6)
    ax.set_ylim(0, 1.08)
    ax.set_xlabel("principal direction", fontsize=9)
    ax.set_ylabel("share of the variance", fontsize=9)
    ax.set_title(
        f"{principal.participation:.1f} of {len(numbers)} dimensions used (participation ratio)",
        loc="left",
        fontsize=11,
    )
    ax.legend(frameon=False, fontsize=8, loc="center right")
    _plain(ax)
    return figure


def _strips(manifold: Manifold, strips: Sequence[Strip]) -> Any:
    """Rows of pictures; below each row, where a classifier was asked, its probabilities."""
    steps = len(strips[0].positions)
    asked = strips[0].probs is not None
    heights = [1.0, 0.55] * len(strips) if asked else [1.0] * len(strips)
    figure = _figure(1.05 * steps + 1.4, 1.2 * sum(heights) + 0.6)
    grid = figure.add_gridspec(len(heights), steps, height_ratios=heights)
    for i, strip in enumerate(strips):
        row = (2 if asked else 1) * i
        for j, image in enumerate(strip.images):
            ax = figure.add_subplot(grid[row, j])
            pixels = to_rgb(image)
            kind = "nearest" if pixels.shape[0] < 100 else "antialiased"
            ax.imshow(pixels, interpolation=kind)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
            if i == 0:
                ax.set_title(f"{strip.positions[j]:+z.1f} σ", fontsize=8, color=_SOFT)
            if j == 0:
                label = f"{strip.name[-22:]}\nat {strip.own:+z.1f} σ"
                ax.set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center", labelpad=4)
                ax.yaxis.label.set_parse_math(False)
        if strip.probs is not None:
            _probabilities(figure.add_subplot(grid[row + 1, :]), manifold, strip)
    first = strips[0]
    figure.suptitle(
        f"Direction {first.direction + 1}: {first.share:.0%} of the variance",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    return figure


def _probabilities(ax: Any, manifold: Manifold, strip: Strip) -> None:
    assert strip.probs is not None
    places = np.arange(len(strip.positions))
    for index in np.unique(np.append(strip.probs.argmax(axis=1), strip.probs.max(0).argmax())):
        ax.plot(places, strip.probs[:, index], "o-", ms=3, lw=1.4, color=color_of(int(index)))
        at = int(strip.probs[:, index].argmax())
        name = manifold.bank.class_names[int(index)]
        ax.annotate(
            name,
            (at, 1.02),
            fontsize=7,
            ha="center",
            va="bottom",
            color=color_of(int(index)),
            annotation_clip=False,
            parse_math=False,
        )
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.set_ylim(0, 1.25)
    ax.set_xticks([])
    ax.set_yticks([0, 1])
    _plain(ax)
