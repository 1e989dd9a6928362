# SPDX-License-Identifier: Apache-2.0
"""The guided path as one inline SVG: probabilities against t above the decoded frames."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from cae_fast.report.case import Case, passed_before, percent, sentence, thousandths

_WIDTH = 900.0
_LEFT, _RIGHT = 60.0, 840.0
_TOP, _BOTTOM = 26.0, 164.0
_BAR = 196.0
_FRAMES = 210.0


def _x(t: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * t


def _y(probability: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * probability


def drawn_classes(case: Case) -> list[tuple[int, str]]:
    """Classes with a curve, as (index, CSS class): source, target, those passed through."""
    goal = case.target_index if case.target_index >= 0 else case.reached_index
    drawn = [(case.source_index, "source")] if case.source_index >= 0 else []
    if goal >= 0 and goal != case.source_index:
        drawn.append((goal, "target"))
    known = {index for index, _ in drawn}
    rows = case.path_probs[np.isfinite(case.path_probs).all(axis=1)]
    passed = sorted({int(k) for k in rows.argmax(axis=1)} - known) if len(rows) else []
    return drawn + [(index, "passed") for index in passed]


def legend(case: Case) -> str:
    """HTML legend of the curves."""
    parts = []
    for index, kind in drawn_classes(case):
        role = {"source": "source", "target": "target", "passed": "passed through"}[kind]
        if kind == "target" and case.target_index < 0:
            role = "reached"
        name = escape(case.class_names[index])
        parts.append(f'<span class="key {kind}"><i></i>{name} <small>{role}</small></span>')
    return f'<p class="legend">Probability of {"".join(parts)}</p>'


def path_svg(case: Case, frames: Sequence[tuple[float, str]] = ()) -> str:
    """SVG of the probability curve, the flip and its bracket, and the path's frames.

    Args:
        case: The image; its path must have points.
        frames: (t, data URI) of decoded frames, in order of t; may be empty.

    Returns:
        An `<svg>` element; colours come from the page's style sheet.
    """
    side = _frame_side([t for t, _ in frames])
    height = _FRAMES + side + 6.0 if frames else _BAR + 10.0
    parts = [
        f'<svg class="path" viewBox="0 0 {_WIDTH:g} {height:.0f}" role="img" '
        f'aria-label="{escape(sentence(case), quote=True)}">',
        *_axes(),
        *_flip_mark(case),
        *(part for index, kind in drawn_classes(case) for part in _curve(case, index, kind)),
        *_bar(case),
    ]
    for t, uri in frames:
        x = _x(t) - side / 2
        parts.append(
            f'<image x="{x:.1f}" y="{_FRAMES:g}" width="{side:.1f}" height="{side:.1f}" '
            f'href="{uri}"><title>decoded at t = {thousandths(t)}</title></image>'
        )
    return "".join([*parts, "</svg>"])


def _frame_side(positions: Sequence[float]) -> float:
    """The largest square that keeps neighbouring frames apart and inside the drawing."""
    gaps = np.diff(np.asarray(positions, dtype=np.float64)) if len(positions) > 1 else np.ones(1)
    room = float(gaps.min()) * (_RIGHT - _LEFT) - 5.0
    return float(np.clip(room, 12.0, 2.0 * (_WIDTH - _RIGHT) - 6.0))


def _axes() -> list[str]:
    parts = []
    for probability, text in ((0.0, "0"), (0.5, "50 %"), (1.0, "100 %")):
        y = _y(probability)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y + 4:.1f}">{text}</text>')
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        label = {0.0: "t = 0", 1.0: "t = 1"}.get(t, f"{t:g}")
        parts.append(f'<text class="tick mid" x="{_x(t):.1f}" y="{_BOTTOM + 21}">{label}</text>')
    return parts


def _flip_mark(case: Case) -> list[str]:
    if case.t_flip is None or case.bracket is None:
        return []
    low, high = _x(case.bracket[0]), _x(case.bracket[1])
    x = _x(case.t_flip)
    anchor, shift = ("end", -7.0) if case.t_flip > 0.7 else ("start", 7.0)
    return [
        f'<rect class="bracket" x="{low:.2f}" y="{_TOP - 20}" width="{max(high - low, 1.0):.2f}" '
        f'height="{_BAR - _TOP + 20:.1f}"><title>bracket {case.bracket[0]:.4f} to '
        f"{case.bracket[1]:.4f}</title></rect>",
        f'<line class="flip" x1="{x:.2f}" x2="{x:.2f}" y1="{_TOP - 20}" y2="{_BAR}"/>',
        f'<text class="flip-label {anchor}" x="{x + shift:.1f}" y="{_TOP - 12}">'
        f"flip at {thousandths(case.t_flip)}</text>",
    ]


def _curve(case: Case, index: int, kind: str) -> list[str]:
    points = [
        (t, float(p))
        for t, p in zip(case.path_t.tolist(), case.path_probs[:, index], strict=True)
        if np.isfinite(p)
    ]
    line = " ".join(f"{_x(t):.2f},{_y(p):.2f}" for t, p in points)
    name = escape(case.class_names[index])
    dots = [
        f'<circle cx="{_x(t):.2f}" cy="{_y(p):.2f}" r="2.6"><title>t = {t:.4f}: {name} '
        f"{percent(p)}</title></circle>"
        for t, p in points
    ]
    return [f'<g class="curve {kind}"><polyline points="{line}"/>', *dots, "</g>"]


def _bar(case: Case) -> list[str]:
    """The strip between curve and frames: before and after the flip, a third class between."""
    split = case.t_flip
    if split is None:
        return [_segment(0.0, 1.0, "unknown")]
    parts = []
    passed = passed_before(case)
    middle = split if passed is None else passed[0]
    if middle > 0.0:
        parts.append(_segment(0.0, middle, "source"))
    if middle < split:
        parts.append(_segment(middle, split, "passed"))
    if split < 1.0:
        parts.append(_segment(split, 1.0, "after"))
    x = _x(split)
    parts.append(
        f'<path class="flip-tip" d="M{x - 5:.1f} {_BAR - 5} h10 l-5 7 z"><title>the flip</title>'
        "</path>"
    )
    return parts


def _segment(start: float, end: float, kind: str) -> str:
    return (
        f'<rect class="bar {kind}" x="{_x(start):.2f}" y="{_BAR}" '
        f'width="{_x(end) - _x(start):.2f}" height="5"/>'
    )
