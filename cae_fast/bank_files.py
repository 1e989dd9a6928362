# SPDX-License-Identifier: Apache-2.0
"""Code banks as files: Parquet or CSV with the same columns and the same metadata.

Columns: name, group, label, predicted, code_0 .. code_{D-1}, and thumbnail where there are any (PNG
bytes; base64 in CSV). Metadata, JSON: in Parquet under the key `cae_fast-bank`, in CSV after `#
cae_fast-bank ` in the first line.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BankError, missing_extra
from .files import atomic_write

if TYPE_CHECKING:
    from .bank import CodeBank

FORMAT_VERSION = 1
METADATA_KEY = "cae_fast-bank"
_PREFIX = f"# {METADATA_KEY} "
_FIXED = ("name", "group", "label", "predicted")
_LARGEST_FIELD = 16 * 1024**2


def write_bank(bank: CodeBank, path: str | os.PathLike[str]) -> None:
    """Writes a bank; see :meth:`cae_fast.CodeBank.save`."""
    suffix = _suffix(Path(path))
    metadata = json.dumps(
        {
            "format": FORMAT_VERSION,
            "rows": len(bank),
            "code_dim": bank.code_dim,
            "class_names": list(bank.class_names),
            "model_sha256": bank.model_sha256,
            "classifier": bank.classifier,
            "sha256": bank.sha256,
        }
    )
    columns: dict[str, Any] = {
        "name": list(bank.names),
        "group": list(bank.groups),
        "label": bank.labels,
        "predicted": bank.predicted,
    }
    columns |= {f"code_{d}": bank.codes[:, d] for d in range(bank.code_dim)}
    if bank.thumbnails is not None:
        columns["thumbnail"] = list(bank.thumbnails)
    if suffix == ".parquet":
        arrow, parquet = _pyarrow()
        table = arrow.table(columns).replace_schema_metadata({METADATA_KEY: metadata})
        with atomic_write(path) as temporary:
            parquet.write_table(table, temporary)
        return
    if "thumbnail" in columns:
        columns["thumbnail"] = [base64.b64encode(png).decode() for png in columns["thumbnail"]]
    text = io.StringIO()
    text.write(f"{_PREFIX}{metadata}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # str() of a float32 is the shortest text that reads back as the same number.
    writer.writerows(zip(*([str(v) for v in column] for column in columns.values()), strict=True))
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def read_bank(path: str | os.PathLike[str]) -> CodeBank:
    """Reads a bank; see :meth:`cae_fast.CodeBank.load`."""
    file = Path(path)
    suffix = _suffix(file)
    if not file.is_file():
        raise BankError(f"{file}: no such bank")
    try:
        text, columns = _read_parquet(file) if suffix == ".parquet" else _read_csv(file)
        return _bank_of(_metadata(text), columns)
    except BankError as error:
        raise BankError(f"{file}: {error}") from None


def check_bank_name(path: str | os.PathLike[str]) -> None:
    """Checks before long work that a bank of this name can be written here.

    Raises:
        BankError: The suffix is neither `.parquet` nor `.csv`.
        MissingExtra: Parquet without pyarrow.
    """
    if _suffix(Path(path)) == ".parquet":
        _pyarrow()


def _suffix(file: Path) -> str:
    if file.suffix.lower() not in (".parquet", ".csv"):
        raise BankError(f"{file}: a bank is a .parquet or .csv file")
    return file.suffix.lower()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("parquet", "pyarrow") from None
    return pyarrow, pyarrow.parquet


def _read_parquet(file: Path) -> tuple[str | None, Mapping[str, Sequence[Any]]]:
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(file)
        recorded = (table.schema.metadata or {}).get(METADATA_KEY.encode())
        text = None if recorded is None else recorded.decode()
        return text, {name: table.column(name).to_pylist() for name in table.column_names}
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise BankError(f"not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _read_csv(file: Path) -> tuple[str | None, Mapping[str, Sequence[Any]]]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BankError("not a text file in UTF-8") from None
    first, _, body = text.partition("\n")
    if not first.startswith(_PREFIX):
        return None, {}
    if not body.endswith("\n"):
        raise BankError("its last line is cut off: the file is truncated")
    limit = csv.field_size_limit(_LARGEST_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(body, newline=""), strict=True))
    except csv.Error as error:
        raise BankError(f"not readable as CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)
    header = rows[0] if rows else []
    if len(set(header)) != len(header):
        raise BankError(f"a column occurs twice: {header}")
    for line, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise BankError(f"row {line} has {len(row)} columns, expected {len(header)}")
    return first.removeprefix(_PREFIX), {
        name: [row[at] for row in rows[1:]] for at, name in enumerate(header)
    }


def _metadata(text: str | None) -> dict[str, Any]:
    if text is None:
        raise BankError(f"not a code bank (its {METADATA_KEY} metadata is missing)")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise BankError("its metadata is not valid JSON")
    if metadata.get("format") != FORMAT_VERSION:
        raise BankError(
            f"format version {metadata.get('format')!r}, this version reads {FORMAT_VERSION}"
        )
    names = metadata.get("class_names")
    rows, code_dim = metadata.get("rows"), metadata.get("code_dim")
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not isinstance(metadata.get("model_sha256"), str)
        or not isinstance(metadata.get("classifier"), str | None)
        or type(rows) is not int
        or type(code_dim) is not int
        or not 1 <= code_dim <= 1024
    ):
        raise BankError(
            "its metadata lacks class_names, model_sha256, rows or code_dim, or they have wrong "
            "types"
        )
    return metadata


def _bank_of(metadata: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> CodeBank:
    """Columns as read -> a checked bank."""
    from .bank import CodeBank

    code_names = [f"code_{d}" for d in range(metadata["code_dim"])]
    missing = [name for name in (*_FIXED, *code_names) if name not in columns]
    extra = [name for name in columns if name not in (*_FIXED, *code_names, "thumbnail")]
    if missing or extra:
        parts = [f"missing column {', '.join(missing)}"] if missing else []
        parts += [f"unknown column {', '.join(extra)}"] if extra else []
        raise BankError("; ".join(parts))
    if len(columns["name"]) != metadata["rows"]:
        raise BankError(
            f"{len(columns['name'])} rows, its metadata says {metadata['rows']}: the file is "
            "truncated"
        )
    if any(not isinstance(value, str) for name in ("name", "group") for value in columns[name]):
        raise BankError("columns name and group must hold texts")
    thumbnails = columns.get("thumbnail")
    bank = CodeBank(
        codes=np.stack([_numbers(columns[name], name, np.float32) for name in code_names], axis=1),
        names=columns["name"],
        groups=columns["group"],
        labels=_numbers(columns["label"], "label", np.int64),
        predicted=_numbers(columns["predicted"], "predicted", np.int64),
        class_names=tuple(metadata["class_names"]),
        model_sha256=metadata["model_sha256"],
        classifier=metadata["classifier"],
        thumbnails=None if thumbnails is None else [_png(value) for value in thumbnails],
    )
    recorded = metadata.get("sha256")
    if recorded is not None and recorded != bank.sha256:
        raise BankError(
            "content does not match the sha256 recorded in it: the file is damaged or was edited"
        )
    return bank


def _numbers(values: Sequence[Any], name: str, dtype: Any) -> Any:
    kind = float if dtype is np.float32 else int
    try:
        if any(
            isinstance(value, float) != (kind is float)
            for value in values
            if not isinstance(value, str)
        ):
            raise ValueError(f"expected {kind.__name__} values")
        with np.errstate(over="ignore"):  # the bank refuses infinities by name
            return np.array([kind(value) for value in values], dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise BankError(f"column {name} holds something else than numbers ({error})") from None


def _png(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        raise BankError("column thumbnail holds something else than base64") from None
