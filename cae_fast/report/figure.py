# SPDX-License-Identifier: Apache-2.0
"""Explanations as a matplotlib figure (extra `plots`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.colors import overlay, signed_rgb, to_rgb
from cae_fast.errors import missing_extra
from cae_fast.report.case import STATUS_LABELS, Case, cases, sentence
from cae_fast.report.curve import drawn_classes

_COLORS = {"source": "#33658a", "target": "#b4500f", "passed": "#7a7668"}


def plot(explanation: Any, images: npt.ArrayLike | None = None, *, limit: int = 8) -> Any:
    """Draw one row an image: image, reconstruction, counterfactual, overlay, change, path.

    Args:
        explanation: The `cf.Explanation`.
        images: The explained images `[N, C, H, W]` in [-1, 1]; None draws reconstructions alone.
        limit: At most this many rows.

    Returns:
        A `matplotlib.figure.Figure`, made without pyplot: show it in a notebook, or `savefig`.

    Raises:
        MissingExtra: matplotlib is not installed.
        ValueError: `images` are not as many as the explanation has.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("plots", "matplotlib") from error
    rows = cases(explanation)
    given = None if images is None else np.asarray(images)
    if given is not None and len(given) != len(rows):
        raise ValueError(f"images: {len(given)} given, the explanation has {len(rows)}")
    rows = rows[:limit]
    figure = Figure(figsize=(12.0, 2.5 * max(len(rows), 1)), layout="constrained")
    if not rows:
        return figure
    axes = figure.subplots(len(rows), 6, squeeze=False, width_ratios=[1, 1, 1, 1, 1, 1.9])
    for case, line in zip(rows, axes, strict=True):
        _draw_pictures(line[:5], case, explanation, given)
        _draw_curve(line[5], case)
    return figure


def _draw_pictures(
    axes: Any, case: Case, explanation: Any, images: npt.NDArray[Any] | None
) -> None:
    for ax in axes:
        ax.set_axis_off()
    # The end of a long name tells images apart.
    axes[0].set_title(f"{case.name[-24:]}\n{case.source}", fontsize=8, parse_math=False)
    i = case.index
    if images is not None and case.status != "rejected":
        axes[0].imshow(to_rgb(images[i]))
    if not case.has_pictures:
        text = axes[1].text(0, 0.5, sentence(case), fontsize=8, parse_math=False)
        text.set_in_layout(False)
        return
    under = explanation.reconstruction[i] if images is None else images[i]
    if case.status == "flipped":
        point = f"counterfactual\n{case.reached}"
    else:
        point = f"{STATUS_LABELS[case.status]}\n{case.reached}"
    pictures = {
        "reconstruction": to_rgb(explanation.reconstruction[i]),
        point: to_rgb(explanation.counterfactual[i]),
        case.map_name.lower(): overlay(under, explanation.saliency[i], alpha=0.8),
        "signed change": signed_rgb(explanation.difference[i]),
    }
    for ax, (label, pixels) in zip(axes[1:], pictures.items(), strict=True):
        ax.imshow(pixels)
        ax.set_title(label, fontsize=8, parse_math=False)


def _draw_curve(ax: Any, case: Case) -> None:
    if not case.has_path:
        ax.set_axis_off()
        return
    for index, kind in drawn_classes(case):
        name = case.class_names[index]
        # matplotlib hides labels that start with an underscore and typesets dollar signs.
        label = name.replace("$", r"\$")
        label = f" {label}" if label.startswith("_") else label
        ax.plot(
            case.path_t, case.path_probs[:, index], "o-", ms=3, color=_COLORS[kind], label=label
        )
    if case.bracket is not None and case.t_flip is not None:
        ax.axvspan(*case.bracket, color=_COLORS["target"], alpha=0.25)
        ax.axvline(case.t_flip, color="black", lw=1, ls="--")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.05), xlabel="t")
    ax.legend(fontsize=7, frameon=False)
