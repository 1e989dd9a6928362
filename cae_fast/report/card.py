# SPDX-License-Identifier: Apache-2.0
"""One image of the report: its pictures, its path and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from cae_fast.colors import signed_rgb, to_rgb
from cae_fast.pictures import png_bytes
from cae_fast.report.case import STATUS_LABELS, Case, percent, sentence, thousandths
from cae_fast.report.curve import drawn_classes, legend, path_svg
from cae_fast.report.pictures import (
    Uint8,
    data_uri,
    finite,
    heat_pixels,
    picture_pixels,
    shrink,
)

# Pictures below this side are drawn with visible pixels instead of being blurred.
_PIXELATED_BELOW = 100
_LARGEST_TILE = 512
_LARGEST_FRAME = 144
_NAMES_SHOWN = 3


def card_html(
    case: Case,
    explanation: Any,
    *,
    image: npt.NDArray[Any] | None,
    original: Any = None,
    exemplar: Any = None,
    frames: Sequence[tuple[float, npt.NDArray[Any]]] = (),
) -> str:
    """HTML of one image.

    Args:
        case: The image in plain values.
        explanation: The `cf.Explanation`, for its pictures.
        image: `[C, H, W]` in [-1, 1], or None.
        original: The picture before resizing, or None.
        exemplar: A picture of the exemplar, or None.
        frames: (t, `[C, H, W]`) along the path.
    """
    small = int(np.shape(explanation.reconstruction)[-1]) < _PIXELATED_BELOW
    warn = case.status in ("not_flipped", "non_finite", "rejected", "reconstruction_flips")
    classes = f"case {case.status}{' warn' if warn else ''}{' pixels' if small else ''}"
    return (
        f'<article class="{classes}" data-status="{case.status}">'
        f'<header><h2>{_heading(case)}</h2><span class="name">{escape(case.name)}</span>'
        f'<span class="badge">{STATUS_LABELS[case.status]}</span></header>'
        f'<p class="says">{escape(sentence(case))}</p>'
        f"{_tiles(case, explanation, image, original, exemplar)}{_path(case, frames)}"
        f"{_footer(case)}</article>"
    )


def _heading(case: Case) -> str:
    source, reached = escape(case.source), escape(case.reached)
    if case.status in ("flipped", "reconstruction_flips"):
        return f'<span class="from">{source}</span> → <span class="to">{reached}</span>'
    if case.status == "not_flipped":
        return f'<span class="from">{source}</span>, not {escape(case.target)}'
    return source if case.source_index >= 0 else "No explanation"


def _tiles(
    case: Case,
    explanation: Any,
    image: npt.NDArray[Any] | None,
    original: Any,
    exemplar: Any,
) -> str:
    i = case.index
    tiles = []
    if image is not None and finite(image) and case.status != "rejected":
        note = f"read as {case.source}" if case.source_index >= 0 else ""
        tiles.append(_tile("Image", note, to_rgb(image)))
    if case.has_pictures:
        reconstruction, counterfactual = (
            explanation.reconstruction[i],
            explanation.counterfactual[i],
        )
        changed = case.status in ("flipped", "not_flipped")
        if case.status != "already_target":
            note = "t = 0, from a code near the image's" if case.start_moved else "t = 0"
            note += "" if changed else f", read as {case.reached}"
            tiles.append(_tile("Reconstruction", note, to_rgb(reconstruction)))
        if changed:
            name = "Counterfactual" if case.status == "flipped" else "Nearest point"
            note = f"t = {thousandths(case.shown_t)}, " if case.shown_t is not None else ""
            note += f"read as {case.reached}"
            if case.status == "not_flipped":
                note += ", not a counterfactual"
            tiles.append(_tile(name, note, to_rgb(counterfactual), kind="reached"))
        if case.status != "already_target":
            under = reconstruction if image is None else image
            tiles.append(_overlay_tile(explanation.saliency[i], under, original, case.map_name))
            tiles.append(_change_tile(explanation.difference[i]))
        tiles += _exemplar_tile(case, exemplar)
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _change_tile(difference: npt.NDArray[Any]) -> str:
    # Colours are scaled to the picture's own strongest change, so its size has to be said.
    strongest = float(np.abs(difference.mean(axis=0)).max(initial=0.0)) / 2.0
    note = f"blue darker, orange brighter, by {percent(strongest)} of full scale at most"
    return _tile("Signed change", note, signed_rgb(difference))


def _named(exemplars: Sequence[str]) -> str:
    """The exemplars' names, the nearest first; the table has all of them."""
    more = len(exemplars) - _NAMES_SHOWN
    return ", ".join(exemplars[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _exemplar_tile(case: Case, exemplar: Any) -> list[str]:
    if case.status == "already_target" or exemplar is None:
        return []
    at = "the path's far end" if case.exemplar_t == 1 else f"t = {case.exemplar_t:.3g} of the path"
    role = at if len(case.exemplars) == 1 else f"the nearest of those averaged; their mean: {at}"
    return [_tile("Exemplar", f"{role}: {_named(case.exemplars)}", picture_pixels(exemplar))]


def _tile(name: str, note: str, pixels: Uint8, kind: str = "") -> str:
    uri = data_uri(png_bytes(shrink(pixels, _LARGEST_TILE)))
    return (
        f'<figure class="tile {kind}"><div class="frame">'
        f'<img src="{uri}" alt="{escape(name, quote=True)}"></div>'
        f"<figcaption>{escape(name)}<small>{escape(note)}</small></figcaption></figure>"
    )


def _overlay_tile(
    saliency: npt.NDArray[Any], image: npt.NDArray[Any], original: Any, name: str
) -> str:
    pixels = to_rgb(image) if original is None else picture_pixels(original)
    under = shrink(pixels, _LARGEST_TILE)
    heat = heat_pixels(saliency, (under.shape[0], under.shape[1]))
    return (
        '<figure class="tile"><div class="frame">'
        f'<img class="under" src="{data_uri(png_bytes(under))}" alt="">'
        f'<img class="heat" src="{data_uri(png_bytes(heat))}" alt="saliency map over the image">'
        f"</div><figcaption>{escape(name)}"
        "<small>yellow most, purple least</small></figcaption></figure>"
    )


def _path(case: Case, frames: Sequence[tuple[float, npt.NDArray[Any]]]) -> str:
    if not case.has_path:
        return ""
    shown = [
        (t, data_uri(png_bytes(shrink(to_rgb(picture), _LARGEST_FRAME)))) for t, picture in frames
    ]
    return (
        f'{legend(case)}<div class="scroll" tabindex="0" role="group" '
        f'aria-label="Path from the image towards the exemplar">{path_svg(case, shown)}</div>'
        f"<details><summary>All {len(case.path_t)} evaluated points</summary>"
        f'<div class="scroll" tabindex="0">{_points_table(case)}</div></details>'
    )


def _points_table(case: Case) -> str:
    indices = [index for index, _ in drawn_classes(case)]
    head = "".join(f'<th scope="col">{escape(case.class_names[k])}</th>' for k in indices)
    rows = "".join(
        f"<tr><td>{t:.4f}</td>"
        + "".join(f"<td>{percent(float(probs[k]))}</td>" for k in indices)
        + "</tr>"
        for t, probs in zip(case.path_t.tolist(), case.path_probs, strict=True)
    )
    return f'<table><tr><th scope="col">t</th>{head}</tr>{rows}</table>'


def _footer(case: Case) -> str:
    facts = [f"{case.evaluations} decode{'' if case.evaluations == 1 else 's'}"]
    if case.bracket is not None:
        facts.append(f"bracket {case.bracket[0]:.4f} to {case.bracket[1]:.4f}")
    if case.exemplars and case.status != "already_target":
        at = "" if case.exemplar_t == 1 else f" at t = {case.exemplar_t:.3g}"
        facts.append(f"exemplar{at} {_named(case.exemplars)}")
    return f"<footer>{escape(' · '.join(facts))}</footer>"
