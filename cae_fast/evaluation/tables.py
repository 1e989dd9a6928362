# SPDX-License-Identifier: Apache-2.0
"""An evaluation as rows: means with intervals, and every image's numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .bootstrap import bootstrap_mean
from .result import Evaluation, Float
from .truth import FILL_MEASURES, TRUTH_MAPS

_DIGITS = 6


def summary_rows(result: Evaluation, *, draws: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """One row a method and measure: mean, 95 % interval, images.

    Rows of kind "difference" are the CAE's value minus the method's, image by image. Rows of kind
    "truth" are of images with a mask alone (see `truth.measure_truth`) and by the measures that
    take pixels away: of maps of the mask, of all else and of nothing, and of the methods.
    """
    rows = [
        _row("counterfactual", "cae", measure, values, result, draws, seed)
        for measure, values in result.counterfactual.items()
    ]
    for name, measures in result.measures.items():
        for measure, values in measures.items():
            rows.append(_row("map", name, measure, values, result, draws, seed))
    for name, measures in result.measures.items():
        for measure, values in measures.items():
            if name != "cae" and "cae" in result.measures and measure != "classified":
                apart = result.measures["cae"][measure] - values
                rows.append(_row("difference", name, measure, apart, result, draws, seed))
    for name, measure, values in _truth(result):
        rows.append(_row("truth", name, measure, values, result, draws, seed))
    for stage in result.sanity:
        measure = f"rank_correlation:{stage.layers}"
        for name, values in stage.correlation.items():
            rows.append(_row("sanity", name, measure, values, result, draws, seed))
    return rows


def _truth(result: Evaluation) -> Iterator[tuple[str, str, Float]]:
    """Map, measure and values of the images whose masks were measured."""
    if not result.truth:
        return
    for measure in FILL_MEASURES:
        known = np.isfinite(result.truth[TRUTH_MAPS[0]][measure])
        for name in TRUTH_MAPS:
            yield name, measure, result.truth[name][measure]
        for name, measures in result.measures.items():
            yield name, measure, np.where(known, measures[measure], np.nan)


def _row(
    kind: str,
    method: str,
    measure: str,
    values: Any,
    result: Evaluation,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    found = bootstrap_mean(values, result.groups, draws=draws, seed=seed)
    return {
        "kind": kind,
        "method": method,
        "measure": measure,
        "mean": plain(found.mean),
        "low": plain(found.low),
        "high": plain(found.high),
        "images": found.count,
    }


def image_rows(result: Evaluation) -> list[dict[str, Any]]:
    """One row an image: classes, status, and every measure."""
    names = result.class_names
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(result.names):
        row: dict[str, Any] = {
            "image": name,
            "group": result.groups[i],
            "label": names[int(result.labels[i])],
            "predicted": names[int(result.classes[i])],
            "status": str(result.explanation.status[i]),
            "mask_share": None if result.masks[i] is None else plain(result.masks[i].mean()),  # type: ignore[union-attr]
        }
        row |= {key: plain(values[i]) for key, values in result.counterfactual.items()}
        for method, measures in result.measures.items():
            row |= {f"{method}:{key}": plain(values[i]) for key, values in measures.items()}
        for name, measures in result.truth.items():
            row |= {f"{name}:{key}": plain(values[i]) for key, values in measures.items()}
        for stage in result.sanity:
            for method, values in stage.correlation.items():
                row[f"{method}:randomised:{stage.layers}"] = plain(values[i])
        rows.append(row)
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; what is undefined is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plain(value: Any) -> float | None:
    """A number for CSV and JSON, None for NaN."""
    number = float(value)
    return round(number, _DIGITS) if np.isfinite(number) else None
