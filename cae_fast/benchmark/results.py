# SPDX-License-Identifier: Apache-2.0
"""From a report to ratios, rates, verdicts on the targets, and tables."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from .cases import EAGER, LIBRARIES, PEERS, TARGETS

COLUMNS = (
    "case",
    "cae_fast",
    *PEERS,
    "× eager",
    "× best library",
    "GFLOP/s",
    "of peak",
    "floor",
    "decodes",
)
TARGET_COLUMNS = ("target", "wanted", "measured", "")
# A ratio below this share of the former one is worth a warning.
_FALLEN = 0.85
# A median this many times the fastest round says that something else was running.
_UNSTEADY = 1.5
_NOTHING = "–"


def ratios(row: Mapping[str, Any]) -> dict[str, float]:
    """Times of the peers divided by ours, of medians: above 1, ours is faster.

    Returns:
        By peer; "library" is the fastest of `LIBRARIES` that ran.
    """
    if "ours" not in row:
        return {}
    medians = {
        name: peer["median_s"] for name, peer in row.get("peers", {}).items() if "median_s" in peer
    }
    libraries = [medians[name] for name in LIBRARIES if name in medians]
    if libraries:
        medians["library"] = min(libraries)
    return {name: seconds / row["ours"]["median_s"] for name, seconds in medians.items()}


def rates(row: Mapping[str, Any], peak_gflops: float) -> dict[str, float]:
    """What the reference's arithmetic divided by our time comes to.

    Returns:
        `gflops`; `share_of_peak`, above 1 where fewer operations are executed than counted;
        `floor_s`, the seconds of the operations that must be executed, at the peak. Empty for a row
        without operations.
    """
    if "ours" not in row or "gflop" not in row:
        return {}
    gflops = row["gflop"] / row["ours"]["median_s"]
    return {
        "gflops": gflops,
        "share_of_peak": gflops / peak_gflops,
        "floor_s": row["gflop_floor"] / peak_gflops,
    }


def verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target with what was measured.

    Returns:
        Dictionaries of `target`, `wanted`, `measured` (None where it was not), `met`.
    """
    rows = {row["name"]: row for row in report["rows"]}
    found = []
    for target in TARGETS:
        row = rows.get(target.row, {})
        measured = ratios(row).get(target.beside) if target.beside else None
        if not target.beside and "ours" in row:
            measured = row["ours"]["median_s"]
        met = measured is not None and (
            measured >= target.wanted if target.beside else measured <= target.wanted
        )
        found.append(
            {"target": target.what, "wanted": target.wanted, "measured": measured, "met": met}
        )
    return found


def completed(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with the ratios, rates and verdicts that follow from it."""
    peak = float(report["peak"]["gflops"])
    rows = [{**row, "ratios": ratios(row), **rates(row, peak)} for row in report["rows"]]
    return {**report, "rows": rows, "targets": verdicts(report)}


def milliseconds(seconds: float) -> str:
    """A time with three significant digits, in ms."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def table(report: Mapping[str, Any], *, spread: bool = True) -> list[tuple[str, ...]]:
    """The rows of a report as cells under `COLUMNS`; times in ms.

    Args:
        report: Of a suite.
        spread: Give fastest and slowest beside our medians and eager's.
    """
    return [_cells(row, float(report["peak"]["gflops"]), spread) for row in report["rows"]]


def without_empty_columns(
    columns: tuple[str, ...], rows: list[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table without the columns that say nothing in any row."""
    kept = [i for i in range(len(columns)) if any(row[i] != _NOTHING for row in rows)]
    return tuple(columns[i] for i in kept), [tuple(row[i] for i in kept) for row in rows]


def target_table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The verdicts as cells under `TARGET_COLUMNS`."""
    cells: list[tuple[str, ...]] = []
    for verdict, target in zip(verdicts(report), TARGETS, strict=True):
        sign, unit = ("≥ ", "×") if target.beside else ("≤ ", " s")
        measured = verdict["measured"]
        said = "not measured" if measured is None else f"{measured:.2f}{unit}"
        word = "" if measured is None else "met" if verdict["met"] else "missed"
        cells.append((target.what, f"{sign}{target.wanted:g}{unit}", said, word))
    return cells


def left_out(report: Mapping[str, Any]) -> list[str]:
    """Everything that was not run: one line for each reason, with the peers and cases."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in report["rows"]:
        if "not_run" in row:
            reasons["the case", row["not_run"]].append(row["name"])
        for peer, said in row.get("peers", {}).items():
            if "not_run" in said:
                reasons[peer, said["not_run"]].append(row["name"])
    return [f"{who}: {why} ({'; '.join(names)})" for (who, why), names in reasons.items()]


def unsteady(report: Mapping[str, Any]) -> list[str]:
    """Cases whose rounds differ so much, ours or eager's, that the machine was not idle."""
    names = []
    for row in report["rows"]:
        timed = [row.get("ours", {}), row.get("peers", {}).get(EAGER, {})]
        if any(t["median_s"] > _UNSTEADY * t["fastest_s"] for t in timed if "median_s" in t):
            names.append(row["name"])
    return names


def layouts(report: Mapping[str, Any]) -> str:
    """In which memory formats eager PyTorch was timed, the faster one in each case."""
    chosen = defaultdict(list)
    for row in report["rows"]:
        note = row.get("peers", {}).get(EAGER, {}).get("note")
        if note:
            chosen[note].append(row["name"])
    return "; ".join(f"{note} ({', '.join(names)})" for note, names in chosen.items())


def heading(report: Mapping[str, Any]) -> list[str]:
    """What the figures were measured on and what they say, in lines."""
    machine, peak = report["machine"], report["peak"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    missing = [name for name, v in machine["versions"].items() if not v]
    return [
        f"{machine['cpu']}, {machine['threads']} threads, instruction set {machine['isa']}",
        versions + (f"; not installed: {', '.join(missing)}" if missing else ""),
        f"GEMM peak, measured in this run: {peak['gflops']:.0f} GFLOP/s ({peak['by']})",
        "Times in ms, medians of alternating rounds; ratios: their time / ours. GFLOP/s: arithmetic"
        " of the plain networks / our time. Floor: time at the peak of the operations that the"
        " quickest algorithms must execute.",
        "Explanations: the column eager is the authors' procedure in it, one image after the other;"
        " no classifier on either side.",
    ]


def markdown_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table for a Markdown file."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def eager_ratios(markdown: str) -> dict[str, float]:
    """Ratios to eager by case, from the table of a former RESULTS.md; empty where it has none."""
    found = {}
    where = COLUMNS.index("× eager")
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(COLUMNS) and re.fullmatch(r"\d+(\.\d+)?", cells[where]):
            found[cells[0]] = float(cells[where])
    return found


def fallen(former: Mapping[str, float], report: Mapping[str, Any]) -> list[str]:
    """A line for each case whose ratio to eager fell by more than 15 %."""
    lines = []
    for row in report["rows"]:
        before, now = former.get(row["name"]), ratios(row).get(EAGER)
        if before is not None and now is not None and now < before * _FALLEN:
            lines.append(f"{row['name']}: {now:.2f} times eager, was {before:.2f}")
    return lines


def _cells(row: Mapping[str, Any], peak_gflops: float, spread: bool) -> tuple[str, ...]:
    if "ours" not in row:
        return (row["name"], "not run", *(_NOTHING,) * (len(COLUMNS) - 2))
    peers = row.get("peers", {})
    found, rate = ratios(row), rates(row, peak_gflops)

    def ratio(name: str) -> str:
        return f"{found[name]:.2f}" if name in found else _NOTHING

    return (
        row["name"],
        _time(row["ours"], spread),
        *(_time(peers.get(name, {}), spread and name == EAGER) for name in PEERS),
        ratio(EAGER),
        ratio("library"),
        f"{rate['gflops']:.0f}" if rate else _NOTHING,
        f"{rate['share_of_peak']:.0%}" if rate else _NOTHING,
        milliseconds(rate["floor_s"]) if rate else _NOTHING,
        f"{row['decodes']:g}" if "decodes" in row else _NOTHING,
    )


def _time(timed: Mapping[str, Any], spread: bool) -> str:
    if "not_run" in timed:
        return "not run"
    if "median_s" not in timed:
        return _NOTHING
    median = milliseconds(timed["median_s"])
    if not spread:
        return median
    fastest, slowest = (milliseconds(timed[f"{which}_s"]) for which in ("fastest", "slowest"))
    return f"{median} ({fastest} to {slowest})"
