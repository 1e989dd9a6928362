# SPDX-License-Identifier: Apache-2.0
"""The HTML report: one file, nothing from outside, every name escaped."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.files import atomic_write
from cae_fast.path_search import STATUSES
from cae_fast.report.card import card_html
from cae_fast.report.case import STATUS_LABELS, Case, cases

NOTICE = (
    "<strong>For research, not for diagnosis.</strong> An explanation shows what this classifier "
    "reacts to, which need not be what is true of the subject."
)
_LEAD = (
    "Each image is changed step by step towards a real example of another class, until the "
    "classifier changes its mind. The decoded image at that point is the counterfactual; "
    "where it differs from the reconstruction of the image is what the path changed."
)


@dataclass(frozen=True)
class Frames:
    """Decoded pictures along each image's path.

    Attributes:
        t: Positions, `[T]`, increasing, in [0, 1].
        images: `[N, T, C, H, W]` in [-1, 1].
    """

    t: npt.NDArray[np.floating[Any]]
    images: npt.NDArray[np.floating[Any]]


def write_html(
    path: str | os.PathLike[str],
    explanation: Any,
    images: npt.ArrayLike | None,
    *,
    title: str = "Explanations",
    originals: Sequence[Any] | None = None,
    exemplar_images: Sequence[Any] | None = None,
    frames: Frames | None = None,
    notes: Sequence[str] = (),
    limit: int = 200,
) -> None:
    """Write a `cf.Explanation` as one self-contained HTML file.

    Args:
        path: File to write, atomically.
        explanation: The `cf.Explanation`.
        images: The explained images `[N, C, H, W]` in [-1, 1], or None to leave them out.
        title: Heading of the page.
        originals: N pictures as they were before resizing, to lie under the overlay: each uint8
            `[H, W]` or `[H, W, 3]`, float `[C, H, W]`, a PIL image, PNG bytes, or None.
        exemplar_images: N pictures of the exemplars, in the same forms.
        frames: Decoded frames along the paths.
        notes: Paragraphs for the head of the page, as plain text.
        limit: At most this many images are shown; the page says how many there were.

    Raises:
        ValueError: Counts or shapes disagree with the explanation.
        OSError: The file system refused.
    """
    body = html_fragment(
        explanation,
        images,
        title=title,
        originals=originals,
        exemplar_images=exemplar_images,
        frames=frames,
        notes=notes,
        limit=limit,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page(title, body), encoding="utf-8")


def html_fragment(
    explanation: Any,
    images: npt.ArrayLike | None,
    *,
    title: str = "Explanations",
    originals: Sequence[Any] | None = None,
    exemplar_images: Sequence[Any] | None = None,
    frames: Frames | None = None,
    notes: Sequence[str] = (),
    limit: int = 200,
) -> str:
    """The report as an HTML fragment with its own style sheet, for notebooks and other pages.

    Arguments and errors are those of `write_html`.
    """
    rows = cases(explanation)
    _check_counts(len(rows), images, originals, exemplar_images, frames)
    pixels = None if images is None else np.asarray(images)
    head = _head(explanation, rows, title, notes)
    cards = [
        card_html(
            case,
            explanation,
            image=None if pixels is None else pixels[case.index],
            original=None if originals is None else originals[case.index],
            exemplar=None if exemplar_images is None else exemplar_images[case.index],
            frames=() if frames is None else _frames_of(case, frames),
        )
        for case in rows[:limit]
    ]
    if len(rows) > limit:
        cards.append(
            f'<p class="hidden-note">The first {limit} of {len(rows)} images are shown.</p>'
        )
    return (
        f'<style>{asset("report.css")}</style><main class="cae">{head}{_tools(rows)}'
        f'{"".join(cards)}<p class="page-end">{NOTICE}</p></main>'
    )


def page(title: str, body: str, script_name: str = "report.js") -> str:
    """A whole HTML document around a fragment; only its own script may run, nothing may load."""
    script = asset(script_name)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title></head><body class="cae-page">{body}'
        f"<script>{script}</script></body></html>\n"
    )


def asset(name: str) -> str:
    """Text of a bundled style sheet or script."""
    folder = importlib.resources.files("cae_fast.report") / "assets"
    return (folder / name).read_text(encoding="utf-8")


def _check_counts(
    count: int,
    images: npt.ArrayLike | None,
    originals: Sequence[Any] | None,
    exemplar_images: Sequence[Any] | None,
    frames: Frames | None,
) -> None:
    given = {
        "images": None if images is None else np.asarray(images),
        "originals": originals,
        "exemplar_images": exemplar_images,
        "frames": None if frames is None else frames.images,
    }
    for argument, value in given.items():
        if value is not None and len(value) != count:
            raise ValueError(f"{argument}: {len(value)} given, the explanation has {count}")


def _frames_of(case: Case, frames: Frames) -> list[tuple[float, npt.NDArray[Any]]]:
    if not case.has_path:
        return []
    return list(zip(np.asarray(frames.t).tolist(), frames.images[case.index], strict=True))


def _head(explanation: Any, rows: Sequence[Case], title: str, notes: Sequence[str]) -> str:
    totals = Counter(case.status for case in rows)
    facts = [("Images", str(len(rows)))]
    facts += [(STATUS_LABELS[s], str(totals[s])) for s in STATUSES if totals[s]]
    facts += (
        [("Decodes per image", f"{np.mean([c.evaluations for c in rows]):.1f}")] if rows else []
    )
    seconds = total_seconds(explanation.meta)
    if seconds is not None and rows:
        facts.append(("Time per explanation", duration(seconds / len(rows))))
    if backend := explanation.meta.get("backend"):
        facts.append(("Backend", str(backend)))
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    paragraphs = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    made = "".join(
        f"<tr><th>{escape(key)}</th><td><code>{escape(value)}</code></td></tr>"
        for key, value in _flat(explanation.meta)
    )
    return (
        f'<header><p class="notice">{NOTICE}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{_LEAD}</p><dl class="facts">{items}</dl>{paragraphs}'
        "<details><summary>Model, parameters and timings</summary>"
        f'<div class="scroll" tabindex="0"><table>{made}</table></div></details></header>'
    )


def _tools(rows: Sequence[Case]) -> str:
    if not any(case.has_pictures for case in rows):
        return ""
    present = [s for s in STATUSES if any(case.status == s for case in rows)]
    options = "".join(f'<option value="{s}">{STATUS_LABELS[s]}</option>' for s in present)
    choice = (
        f'<label>Show <select name="status"><option value="">all</option>{options}</select></label>'
        if len(present) > 1
        else ""
    )
    return (
        '<div class="tools" role="group" aria-label="Display" hidden>'
        '<label>Overlay opacity <input type="range" name="opacity" min="0" max="100" value="85">'
        '</label><label>Hide changes below <input type="range" name="threshold" min="0" max="95" '
        f'value="0"></label>{choice}</div>'
    )


def total_seconds(meta: Mapping[str, Any]) -> float | None:
    """Seconds of the whole explanation by its `meta`; None where unknown."""
    total = meta.get("seconds", {}).get("total")
    return None if total is None else float(total)


def duration(seconds: float) -> str:
    """Seconds for people: "42 ms", "1.3 s"."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1.0 else f"{seconds:.1f} s"


def _flat(meta: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in meta.items():
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}: ")
        elif isinstance(value, float):
            yield label, f"{value:.6g}"
        elif value is not None and value != "" and value != []:
            yield (
                label,
                ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value),
            )
