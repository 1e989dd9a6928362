# SPDX-License-Identifier: Apache-2.0
"""The manifold as one interactive HTML file: nothing from outside, every name escaped."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from cae_fast.colors import to_rgb
from cae_fast.manifold.directions import Strip
from cae_fast.manifold.views import TITLES
from cae_fast.pictures import png_bytes
from cae_fast.report.card import card_html
from cae_fast.report.case import cases, percent
from cae_fast.report.manifold_data import Manifold, color_of, shape_of
from cae_fast.report.page import NOTICE, asset, page
from cae_fast.report.pictures import data_uri, shrink

_LEAD = (
    "Every point is the class code of one image: what the model holds to be the difference between "
    "the classes, apart from the individual. Near points look alike in that respect."
)
_MOST_POINTS = 5000
_LARGEST_STRIP_PICTURE = 96


def manifold_html(manifold: Manifold, title: str) -> str:
    """The whole page.

    Args:
        manifold: What is shown; of more than 5000 rows, some of each class.
        title: Heading.
    """
    rows = _shown_rows(manifold)
    body = (
        f'<style>{asset("report.css")}{asset("manifold.css")}</style><main class="cae manifold">'
        f"{_head(manifold, title, len(rows))}{_plot(manifold, rows)}{_strips(manifold)}"
        f'<p class="page-end">{NOTICE}</p></main>{_explanations(manifold, rows)}'
        f'<script type="application/json" id="points">{_data(manifold, rows)}</script>'
    )
    return page(title, body, "manifold.js")


def _shown_rows(manifold: Manifold) -> list[int]:
    """Rows of the bank on the page: all, or as many as a page can carry, those explained first."""
    count = len(manifold.bank)
    if count <= _MOST_POINTS:
        return list(range(count))
    first = [row for row in manifold.explained if row < count]
    others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(count), first))
    return sorted([*first, *others[: _MOST_POINTS - len(first)].tolist()])


def _head(manifold: Manifold, title: str, shown: int) -> str:
    bank, principal = manifold.bank, manifold.principal
    facts = [
        ("Images", str(len(bank))),
        ("Classes", str(len(bank.class_names))),
        (
            "Dimensions used",
            f"{principal.participation:.1f} of {bank.code_dim} (participation ratio)",
        ),
        ("90 % of the variance", _directions(principal.components(0.90))),
        ("99 % of the variance", _directions(principal.components(0.99))),
    ]
    facts += [
        (f"{k} nearest of other groups", f"{percent(value)} right")
        for k, value in manifold.knn.items()
        if value is not None
    ]
    if manifold.centre is not None:
        facts.append(("Nearest class centre", f"{percent(manifold.centre)} right"))
    if manifold.parts is not None:
        parts = "in one part" if manifold.parts == 1 else f"in {manifold.parts} parts, bridged"
        facts.append(("Neighbour graph", parts))
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    notes = [f"Not here: {note}." for note in manifold.notes]
    if shown < len(bank):
        notes.insert(0, f"{shown} of {len(bank)} codes are drawn; all are measured.")
    said = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        f'<header><p class="notice">{NOTICE}</p><h1>{escape(title)}</h1><p class="lead">{_LEAD}</p>'
        f'<dl class="facts">{items}</dl>{said}</header>'
    )


def _directions(count: int) -> str:
    return f"{count} direction{'' if count == 1 else 's'}"


def _plot(manifold: Manifold, rows: Sequence[int]) -> str:
    bank = manifold.bank
    if not manifold.views:
        return ""
    options = "".join(f'<option value="{v.name}">{TITLES[v.name]}</option>' for v in manifold.views)
    edges = (
        '<label><input type="checkbox" name="edges"> neighbour graph</label>'
        if manifold.edges is not None
        else ""
    )
    keys = "".join(
        f'<button type="button" class="class-key" data-class="{i}" aria-pressed="true">'
        f'<i class="{shape_of(i)}" style="--key:{color_of(i)}"></i>{escape(name)} '
        f"<small>{int((bank.labels == i).sum())}</small></button>"
        for i, name in enumerate(bank.class_names)
    )
    ringed = (
        " Ringed points have an explanation: click one, or step to it with the arrow keys."
        if manifold.explained
        else ""
    )
    return (
        '<div class="tools" role="group" aria-label="View" hidden><label>View '
        f'<select name="view">{options}</select></label>{edges}'
        '<button type="button" name="reset">Whole view</button></div>'
        f'<div class="keys" role="group" aria-label="Classes shown">{keys}</div>'
        '<div class="stage"><canvas id="map" tabindex="0" role="img" '
        f'aria-label="{len(rows)} class codes in the plane"></canvas>'
        '<div id="hover" class="hover" hidden></div></div>'
        f'<p class="hint"><span id="note"></span> Scroll to zoom, drag to move.{ringed}</p>'
        '<section id="shown" class="shown" aria-live="polite"></section>'
    )


def _strips(manifold: Manifold) -> str:
    if not manifold.strips:
        return ""
    parts = []
    for direction, strips in itertools.groupby(manifold.strips, key=lambda s: s.direction):
        listed = list(strips)
        drawn = "".join(_strip(manifold, strip) for strip in listed)
        parts.append(
            f'<article class="case"><header><h2>Direction {direction + 1}</h2>'
            f'<span class="badge">{percent(listed[0].share)} of the variance</span></header>'
            f"{drawn}</article>"
        )
    said = (
        "An image's code is moved along one principal direction of the bank, all its other "
        "coordinates kept, from the 2nd to the 98th percentile; σ is the bank's standard deviation."
    )
    return f'<section><h2 class="part">What changes along each direction</h2><p>{said}</p>' + (
        "".join(parts) + "</section>"
    )


def _strip(manifold: Manifold, strip: Strip) -> str:
    small = strip.images.shape[-1] < 100
    nearest = int(np.abs(strip.positions - strip.own).argmin())
    frames = []
    for j, image in enumerate(strip.images):
        uri = data_uri(png_bytes(shrink(to_rgb(image), _LARGEST_STRIP_PICTURE)))
        said = ""
        if strip.probs is not None:
            top = int(strip.probs[j].argmax())
            name = escape(manifold.bank.class_names[top])
            share = float(strip.probs[j, top])
            said = (
                f'<span class="answer"><i style="--key:{color_of(top)};--share:{share:.3f}"></i>'
                f"{name} {percent(share)}</span>"
            )
        own = " own" if j == nearest else ""
        frames.append(
            f'<figure class="step{own}"><img src="{uri}" alt="decoded at '
            f'{strip.positions[j]:+z.1f} standard deviations"><figcaption>'
            f"{strip.positions[j]:+z.1f} σ{said}</figcaption></figure>"
        )
    kind = " pixels" if small else ""
    return (
        f'<p class="strip-name">{escape(strip.name)}, at {strip.own:+z.1f} σ</p>'
        f'<div class="scroll" tabindex="0"><div class="strip{kind}">{"".join(frames)}</div></div>'
    )


def _explanations(manifold: Manifold, rows: Sequence[int]) -> str:
    """Cards of the explained points, unseen until their point is clicked."""
    if manifold.explanations is None:
        return ""
    explained = manifold.explanations.numpy()
    count, position = len(manifold.bank), {row: i for i, row in enumerate(rows)}
    parts = []
    for case, point in zip(cases(explained), manifold.explained, strict=True):
        shown = position[point] if point < count else len(rows) + point - count
        i = case.index
        frames: list[tuple[float, Any]] = []
        if explained.path_images is not None and case.has_path:
            assert explained.frame_t is not None
            frames = list(zip(explained.frame_t.tolist(), explained.path_images[i], strict=True))
        exemplar = None
        if manifold.bank.thumbnails is not None and explained.exemplar[i, 0] >= 0:
            exemplar = manifold.bank.thumbnails[int(explained.exemplar[i, 0])]
        card = card_html(
            case, explained, image=explained.images[i], exemplar=exemplar, frames=frames
        )
        parts.append(f'<template data-point="{shown}">{card}</template>')
    return "".join(parts)


def _data(manifold: Manifold, rows: Sequence[int]) -> str:
    """Points for the script, as JSON that no markup can end."""
    bank, placed = manifold.bank, manifold.placed
    position = {row: i for i, row in enumerate(rows)}
    new = range(len(placed.names))
    count = len(bank)
    points = [
        {
            "name": bank.names[row],
            "group": "" if bank.groups[row] == bank.names[row] else bank.groups[row],
            "label": int(bank.labels[row]),
            "predicted": int(bank.predicted[row]),
            "picture": "" if bank.thumbnails is None else data_uri(bank.thumbnails[row]),
        }
        for row in rows
    ]
    points += [
        {
            "name": placed.names[i],
            "group": "",
            "label": -1,
            "predicted": int(placed.predicted[i]),
            "picture": data_uri(placed.thumbnails[i]),
            "apart": round(float(placed.apart[i]), 2),
            "nearest": [bank.class_names[bank.labels[row]] for row in placed.nearest[i]],
        }
        for i in new
    ]
    explained = [
        position[point] if point < count else len(rows) + point - count
        for point in manifold.explained
    ]
    edges = [] if manifold.edges is None else manifold.edges.tolist()
    data = {
        "classes": [
            {"name": name, "color": color_of(i), "shape": shape_of(i)}
            for i, name in enumerate(bank.class_names)
        ],
        "points": points,
        "views": {
            view.name: {
                "xy": np.round(_unit(view.points[rows], view.placed), 5).ravel().tolist(),
                "note": view.note,
                "labels": view.labels,
            }
            for view in manifold.views
        },
        "edges": [position[i] for pair in edges if set(pair) <= position.keys() for i in pair],
        "explained": explained,
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _unit(points: Any, placed: Any) -> Any:
    """Both together in [0, 1] along their longer side, y upwards as drawn on paper."""
    both = np.concatenate([points, placed])
    low, high = both.min(axis=0), both.max(axis=0)
    scale = float((high - low).max()) or 1.0
    unit = (both - (low + high) / 2) / scale + 0.5
    unit[:, 1] = 1 - unit[:, 1]
    return unit
