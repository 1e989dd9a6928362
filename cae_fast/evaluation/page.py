# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: one page, its pictures, and the tables behind it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..colors import overlay, to_rgb
from ..errors import missing_extra
from ..files import atomic_directory
from ..pictures import png_bytes
from ..report.pictures import data_uri
from .baselines import BLIND_METHODS, OWN_METHODS, TITLES
from .result import MAP_MEASURES, Evaluation
from .tables import csv_text, image_rows, plain, summary_rows
from .truth import FILL_MEASURES, VERDICTS, Verdict, verdicts

_EXAMPLES = 12
_MASK_COLOUR = (64, 224, 208)
_MEANINGS = {
    "validity": "share of images whose class flips to the target",
    "class_kept": "share that is of its class when decoded from its own codes",
    "start_kept": "share whose path begins with a picture of its class",
    "l1_to_image": "mean absolute change against the image (range of pixels: 2)",
    "l1_to_reconstruction": "the same against the reconstruction",
    "ssim_to_image": "structural similarity to the image",
    "changed_pixels": "share of pixels changed by a twentieth of the range or more",
    "reconstruction_l1": "mean absolute error of the reconstruction",
    "t_flip": "position of the flip on the path",
    "decodes": "decoder calls of an explanation",
    "realism": "distance of the re-encoded code to real codes of its class; real images: about 1",
    "monotonicity": "1: the target's probability never falls along the path",
}
_EXEMPLARS = {
    True: "The randomised classifier also says which images of the bank are exemplars.",
    False: "Exemplars are the real classifier's: paths are then the same, and maps hardly differ.",
}
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;
color:#22211d;background:#fbfaf7}h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.3rem .6rem;
text-align:right;border-bottom:1px solid #ddd8cc}th:first-child,td:first-child{text-align:left}
td small{color:#7a7668}.best{font-weight:700}.note{background:#fff1d6;padding:.5rem .8rem;
border-left:4px solid #b4500f}img{max-width:100%;image-rendering:pixelated}figure{margin:1rem 0}
div.wide{overflow-x:auto}.wide td,.wide th{padding:.3rem .4rem}
.wide td small{display:block;white-space:nowrap}code{background:#efece3;padding:.1rem .3rem}
"""


def write_report(
    folder: str | os.PathLike[str],
    result: Evaluation,
    *,
    title: str,
    about: Mapping[str, Any],
    draws: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Writes index.html, summary.csv, images.csv, evaluation.json, maps.png and measures.png.

    Args:
        folder: Appears whole or not at all.
        result: What was measured.
        title: Heading.
        about: Command, seed, hardware and the like, shown as a list.
        draws: Of the bootstrap.
        seed: Of the bootstrap.
        overwrite: Replace a folder that is not empty.

    Returns:
        The rows of summary.csv.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    rows = summary_rows(result, draws=draws, seed=seed)
    told = verdicts(result, draws=draws, seed=seed)
    grid = examples_png(result)
    chart = _chart_png(result, rows)
    pairs = None
    if result.pairs is not None:
        pairs = [[plain(share) for share in line] for line in result.pairs[0]]
    said = {
        "title": title,
        "about": dict(about),
        "balanced_accuracy": plain(result.accuracy),
        "notes": result.notes,
        "left_out": result.left_out,
        "class_names": list(result.class_names),
        "pairs_flipped": pairs,
        "sanity": [
            {
                "layers": stage.layers,
                "of_layers": stage.of_layers,
                "share": plain(stage.share),
                "bank_judged": stage.bank_judged,
            }
            for stage in result.sanity
        ],
        "truth": {measure: dataclasses.asdict(each) for measure, each in told.items()},
        "summary": rows,
    }
    with atomic_directory(folder, overwrite=overwrite) as beside:
        (beside / "index.html").write_text(
            page_html(result, rows, told, title, about, grid, chart), encoding="utf-8"
        )
        (beside / "summary.csv").write_text(csv_text(rows), encoding="utf-8")
        (beside / "images.csv").write_text(csv_text(image_rows(result)), encoding="utf-8")
        (beside / "evaluation.json").write_text(
            json.dumps(said, indent=1, allow_nan=False, ensure_ascii=False, default=str) + "\n",
            encoding="utf-8",
        )
        Path(beside / "maps.png").write_bytes(grid)
        Path(beside / "measures.png").write_bytes(chart)
    return rows


def page_html(
    result: Evaluation,
    rows: Sequence[Mapping[str, Any]],
    said: Mapping[str, Verdict],
    title: str,
    about: Mapping[str, Any],
    grid: bytes,
    chart: bytes,
) -> str:
    """The page, self-contained."""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in result.notes)
    left = "".join(
        f"<li>{escape(TITLES[name])}: {escape(why)}</li>" for name, why in result.left_out.items()
    )
    facts = "".join(
        f"<li>{escape(k)}: <code>{escape(str(v))}</code></li>" for k, v in about.items()
    )
    masked = sum(mask is not None for mask in result.masks)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{notes}"
        f"<p>{len(result.names)} images, {masked} with a mask. The classifier's balanced accuracy "
        f"on them: {result.accuracy:.3f}. Intervals: 95 %, bootstrap over groups of images.</p>"
        f"<h2>Counterfactuals</h2>{_counterfactual_table(rows)}"
        f"{_pairs_table(result)}"
        "<h2>Saliency maps</h2><p>Classified: images that the classifier is shown for one map, as "
        "a black box.</p>"
        f'<div class="wide">{_map_table(result, rows)}</div>'
        + (f"<h3>Left out</h3><ul>{left}</ul>" if left else "")
        + f'<figure><img alt="Measures by method" src="{data_uri(chart)}"></figure>'
        f"{_truth_table(rows, said)}"
        f"{_sanity_table(result, rows)}"
        "<h2>Maps of the first images of each class</h2>"
        f"<p>{'Turquoise: rim of the mask. ' if masked else ''}"
        "Maps that are zero everywhere are drawn plain.</p>"
        f'<div class="wide"><img alt="Maps by method" src="{data_uri(grid)}"></div>'
        f"<h2>How this was made</h2><ul>{facts}</ul>"
        "<p>Tables: <code>summary.csv</code>, <code>images.csv</code>.</p></body></html>\n"
    )


def _number(row: Mapping[str, Any] | None) -> str:
    if row is None or row["mean"] is None:
        return "–"
    if row["measure"] == "seconds":  # one measurement for all images
        return f"{row['mean']:.3g}"
    return f"{row['mean']:.3g} <small>[{row['low']:.3g}, {row['high']:.3g}]</small>"


def _counterfactual_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(
        f"<tr><td>{row['measure']}<br><small>{_MEANINGS[row['measure']]}</small></td>"
        f"<td>{_number(row)}</td><td>{row['images']}</td></tr>"
        for row in rows
        if row["kind"] == "counterfactual"
    )
    return f"<table><tr><th>measure</th><th>mean</th><th>images</th></tr>{lines}</table>"


def _pairs_table(result: Evaluation) -> str:
    if result.pairs is None:
        return ""
    share, number = result.pairs
    names = [escape(name) for name in result.class_names]
    lines = "".join(
        f"<tr><td>{name}</td>"
        + "".join(
            "<td>–</td>" if not np.isfinite(s) else f"<td>{s:.2f} <small>{n}</small></td>"
            for s, n in zip(share[i], number[i], strict=True)
        )
        + "</tr>"
        for i, name in enumerate(names)
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    flipped = float(np.nansum(share * number) / max(int(number.sum()), 1))
    return (
        f"<h2>Flips of all pairs</h2><p>{flipped:.3f} of {int(number.sum())} flip to the class "
        "asked for. From the class of the row to that of the column; small: images.</p>"
        f'<div class="wide"><table><tr><th></th>{head}</tr>{lines}</table></div>'
    )


def _map_table(result: Evaluation, rows: Sequence[Mapping[str, Any]]) -> str:
    """Methods by measures; the best mean of each measure is bold."""
    found = {(r["method"], r["measure"]): r for r in rows if r["kind"] == "map"}
    methods = list(result.measures)
    shown = [
        measure for measure in MAP_MEASURES if any((method, measure) in found for method in methods)
    ]
    best = {}
    for measure in shown:
        means = {
            method: found[method, measure]["mean"]
            for method in methods
            if found[method, measure]["mean"] is not None
        }
        if measure == "seconds":  # to know nothing takes no time
            means = {name: value for name, value in means.items() if name not in BLIND_METHODS}
        if means and measure != "classified":
            pick = max if MAP_MEASURES[measure] else min
            best[measure] = pick(means, key=lambda method: means[method])
    head = "".join(
        f"<th>{measure}<br><small>{'more' if MAP_MEASURES[measure] else 'less'} is better</small>"
        "</th>"
        for measure in shown
    )
    lines = "".join(
        f"<tr><td>{escape(TITLES[method])}</td>"
        + "".join(
            f"<td{' class=best' if best.get(measure) == method else ''}>"
            f"{_number(found.get((method, measure)))}</td>"
            for measure in shown
        )
        + "</tr>"
        for method in methods
    )
    return f"<table><tr><th>method</th>{head}</tr>{lines}</table>"


def _truth_table(rows: Sequence[Mapping[str, Any]], said: Mapping[str, Verdict]) -> str:
    """Maps of the masks themselves by the measures that take pixels away; empty without masks."""
    if not said:
        return ""
    found = {(r["method"], r["measure"]): r for r in rows if r["kind"] == "truth"}
    names = {"mask": "the mask", "outside": "all but the mask", "random": "random order"} | TITLES
    head = "".join(
        f"<th>{measure}<br><small>{VERDICTS[said[measure].said]}</small></th>"
        for measure in FILL_MEASURES
    )
    lines = "".join(
        f"<tr><td>{escape(names[method])}</td>"
        + "".join(f"<td>{_number(found[method, measure])}</td>" for measure in FILL_MEASURES)
        + "</tr>"
        for method in dict.fromkeys(method for method, _ in found)
    )
    return (
        "<h2>Do measures that take pixels away tell the truth?</h2>"
        f"<p>{found['mask', FILL_MEASURES[0]]['images']} images with a mask that the classifier "
        "reads rightly; the masks are measured as if they were maps. A measure that does not place "
        "them before all else, and before random pixels, says nothing about maps of these images, "
        "if the classifier uses what the masks show.</p>"
        f'<div class="wide"><table><tr><th>map</th>{head}</tr>{lines}</table></div>'
    )


def _sanity_table(result: Evaluation, rows: Sequence[Mapping[str, Any]]) -> str:
    if not result.sanity:
        return ""
    found = {(r["method"], r["measure"]): r for r in rows if r["kind"] == "sanity"}
    methods = list(dict.fromkeys(method for method, _ in found))
    head = "".join(
        f"<th>last {stage.layers} of {stage.of_layers}<br><small>{stage.share:.0%} of the images"
        "</small></th>"
        for stage in result.sanity
    )
    lines = "".join(
        f"<tr><td>{escape(TITLES[method])}</td>"
        + "".join(
            f"<td>{_number(found.get((method, f'rank_correlation:{stage.layers}')))}</td>"
            for stage in result.sanity
        )
        + "</tr>"
        for method in methods
    )
    return (
        "<h2>A randomised classifier must change the map</h2>"
        "<p>Rank correlation with the map under a classifier whose last layers have shuffled "
        "weights, over the images that flip to the same class under both (their share is in the "
        "head); near 0 is what should be, 1 would be a map that does not depend on the classifier. "
        "The randomised logits are centred over the images, or one class would get them all. "
        f"{_EXEMPLARS[result.sanity[0].bank_judged]}</p>"
        f"<table><tr><th>method</th>{head}</tr>{lines}</table>"
    )


def examples_png(result: Evaluation, limit: int = _EXAMPLES) -> bytes:
    """A grid: images in rows, then counterfactual and every method's map; masks outlined."""
    chosen = _examples(result, limit)
    side = result.images.shape[2]
    scale = max(1, round(96 / side))
    lines = []
    for i in chosen:
        image = result.images[i]
        tiles = [to_rgb(image), to_rgb(np.nan_to_num(result.explanation.counterfactual[i]))]
        tiles += [overlay(image, maps[i], alpha=0.8) for maps in result.maps.values()]
        mask = result.masks[i]
        lines.append([_framed(tile, mask, scale) for tile in tiles])
    body = np.concatenate([np.concatenate(line, axis=1) for line in lines])
    titles = ["image", "counterfactual", *(TITLES[name] for name in result.maps)]
    return png_bytes(np.concatenate([_titles(titles, lines[0][0].shape[1]), body]))


def _examples(result: Evaluation, limit: int) -> list[int]:
    """The first images of each class in turn; with masks, those that have one."""
    rows = np.arange(len(result.names))
    if any(mask is not None for mask in result.masks):
        rows = np.array([i for i in rows if result.masks[i] is not None])
    by_class = [list(rows[result.classes[rows] == k]) for k in np.unique(result.classes[rows])]
    chosen: list[int] = []
    while len(chosen) < limit and any(by_class):
        chosen += [int(members.pop(0)) for members in by_class if members]
    return sorted(chosen[:limit])


def _framed(tile: Any, mask: Any, scale: int) -> Any:
    """A tile enlarged, its mask outlined, with a white rim."""
    big = np.repeat(np.repeat(np.array(tile), scale, axis=0), scale, axis=1)
    if mask is not None:
        wide = np.repeat(np.repeat(mask, scale, axis=0), scale, axis=1)
        padded = np.pad(wide, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        big[wide & ~inner] = _MASK_COLOUR
    return np.pad(big, ((2, 2), (2, 2), (0, 0)), constant_values=255)


def _titles(titles: Sequence[str], width: int) -> Any:
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width * len(titles), 28), "white")
    draw = ImageDraw.Draw(strip)
    for column, title in enumerate(titles):
        head, _, tail = title.partition(" ")
        draw.text((column * width + 3, 2), head[: width // 6], fill="black")
        draw.text((column * width + 3, 14), tail[: width // 6], fill="black")
    return np.asarray(strip)


def _chart_png(result: Evaluation, rows: Sequence[Mapping[str, Any]]) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("plots", "matplotlib") from error
    import io

    found = {(r["method"], r["measure"]): r for r in rows if r["kind"] == "map"}
    methods = [name for name in result.measures]
    measures = [
        measure
        for measure in MAP_MEASURES
        if measure != "classified" and any((method, measure) in found for method in methods)
    ]
    columns = 4
    lines = -(-len(measures) // columns) or 1
    figure = Figure(figsize=(14, 0.6 + lines * (0.9 + 0.26 * len(methods))), layout="constrained")
    for position, measure in enumerate(measures):
        ax = figure.add_subplot(lines, columns, position + 1)
        for y, method in enumerate(methods):
            row = found[method, measure]
            if row["mean"] is None:
                continue
            colour = "#b4500f" if method in OWN_METHODS else "#33658a"
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=2)
            ax.plot([row["mean"]], [y], "o", color=colour, ms=5)
        ax.set_yticks(range(len(methods)))
        ax.set_yticklabels(
            [TITLES[m] for m in methods] if position % columns == 0 else [], fontsize=8
        )
        ax.invert_yaxis()
        if measure == "seconds":
            ax.set_xscale("log")
        better = "more" if MAP_MEASURES[measure] else "less"
        ax.set_title(f"{measure} ({better} is better)", fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", color="#ddd8cc", lw=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
