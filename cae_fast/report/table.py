# SPDX-License-Identifier: Apache-2.0
"""Explanations as a table: one row an image, as CSV and as parquet."""

from __future__ import annotations

import csv
import os
from typing import Any

from cae_fast.errors import missing_extra
from cae_fast.files import atomic_write
from cae_fast.report.case import Case, cases

COLUMNS = (
    "name",
    "status",
    "flipped",
    "source_class",
    "target_class",
    "reached_class",
    "t_flip",
    "bracket_low",
    "bracket_high",
    "source_probability",
    "target_probability",
    "evaluations",
    "exemplar",
    "exemplar_t",
    "reconstructed_class",
    "second_path",
    "reason",
)


def table_rows(explanation: Any) -> list[dict[str, Any]]:
    """Rows of plain values, in the order of `COLUMNS`; None where undefined.

    The probabilities are those of the source and target class at the reported point.
    """
    return [_row(case) for case in cases(explanation)]


def _row(case: Case) -> dict[str, Any]:
    low, high = case.bracket if case.bracket is not None else (None, None)
    point = case.shown_t
    goal = case.target_index if case.target_index >= 0 else case.reached_index
    return {
        "name": case.name,
        "status": case.status,
        "flipped": case.status == "flipped",
        "source_class": case.source,
        "target_class": case.target,
        "reached_class": case.reached,
        "t_flip": case.t_flip,
        "bracket_low": low,
        "bracket_high": high,
        "source_probability": None if point is None else case.probability(case.source_index, point),
        "target_probability": None if point is None else case.probability(goal, point),
        "evaluations": case.evaluations,
        "exemplar": "; ".join(case.exemplars),
        "exemplar_t": case.exemplar_t if case.exemplars else None,
        "reconstructed_class": case.reconstructed,
        "second_path": case.second_path,
        "reason": case.reason,
    }


def write_csv(path: str | os.PathLike[str], explanation: Any) -> None:
    """Write the table as CSV (UTF-8, one heading line, empty where undefined), atomically."""
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table_rows(explanation))


def write_parquet(path: str | os.PathLike[str], explanation: Any) -> None:
    """Write the table as parquet, atomically.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    schema = table_schema()
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_write(path) as temporary:
        pq.write_table(pa.Table.from_pylist(table_rows(explanation), schema), temporary)


def table_schema() -> Any:
    """Names and types of the columns, a `pyarrow.Schema`.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise missing_extra("parquet", "pyarrow") from error
    places = ("t_flip", "bracket_low", "bracket_high", "exemplar_t")
    kinds = {
        "flipped": pa.bool_(),
        "second_path": pa.bool_(),
        "evaluations": pa.int64(),
        **dict.fromkeys((*places, "source_probability", "target_probability"), pa.float64()),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
