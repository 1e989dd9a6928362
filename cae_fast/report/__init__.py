# SPDX-License-Identifier: Apache-2.0
"""Explanations for people: an HTML page, a figure, a folder of pictures and a table."""

from __future__ import annotations

from cae_fast.path_search import STATUSES
from cae_fast.report.case import STATUS_LABELS, Case, cases, sentence
from cae_fast.report.figure import plot
from cae_fast.report.folder import write_folder
from cae_fast.report.page import Frames, html_fragment, write_html
from cae_fast.report.table import table_rows, write_csv, write_parquet

__all__ = [
    "STATUSES",
    "STATUS_LABELS",
    "Case",
    "Frames",
    "cases",
    "html_fragment",
    "plot",
    "sentence",
    "table_rows",
    "write_csv",
    "write_folder",
    "write_html",
    "write_parquet",
]
