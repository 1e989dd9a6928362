# SPDX-License-Identifier: Apache-2.0
"""Checks of torch.export archives before torch reads them.

Torch's own loader unpickles some records, falls back to full unpickling where a safe one fails,
loads compiled libraries, and evaluates text as symbolic expressions. A classifier needs none of
these: archives that hold them are refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ClassifierError

#: What `zipfile` raises for damaged archives: bad names, offsets before the file's start, records
#: marked as encrypted or of a compression that is not theirs.
DAMAGE = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    zlib.error,
)
MAX_BYTES = 4 * 1024**3
_TARGET = re.compile(r"(torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\._?sym_\w+)")
_WORD = re.compile(r"[A-Za-z_]\w*")
_SYMBOL = re.compile(r"[suz]f?\d+|[su]\d+")
# What symbolic sizes are made of.
_FUNCTIONS = frozenset(
    (
        "Abs",
        "And",
        "CeilDiv",
        "CeilToInt",
        "CleanDiv",
        "Eq",
        "False",
        "FloatTrueDiv",
        "FloorDiv",
        "FloorToInt",
        "Ge",
        "Gt",
        "Identity",
        "IntTrueDiv",
        "Integer",
        "Le",
        "Lt",
        "Max",
        "Min",
        "Mod",
        "ModularIndexing",
        "Ne",
        "Not",
        "Or",
        "Piecewise",
        "Pow",
        "PowByNatural",
        "PythonMod",
        "Symbol",
        "ToFloat",
        "True",
        "TruncToInt",
        "Where",
        "int_oo",
        "integer",
        "nonnegative",
        "oo",
        "positive",
    )
)
_EXPRESSION_KEYS = frozenset(("expr_str", "as_expr"))


def check_archive(path: Path, torch: Any) -> None:
    """Refuses an archive whose loading would run code.

    Args:
        path: The `.pt2` file.
        torch: The torch module, for its safe unpickler.

    Raises:
        ClassifierError: Not a torch.export archive, damaged, or refused; the message says which
            record.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                raise ClassifierError(f"{path}: expands to more than {MAX_BYTES} bytes: refused")
            _check_records(path, archive, torch)
    except ClassifierError:
        raise
    except DAMAGE as error:
        raise ClassifierError(
            f"{path}: not a torch.export archive, or a damaged one ({error})"
        ) from None


def _check_records(path: Path, archive: zipfile.ZipFile, torch: Any) -> None:
    names = [name.partition("/")[2] for name in archive.namelist()]
    if len(set(names)) != len(names):
        raise ClassifierError(f"{path}: a record occurs twice in it: refused")
    if "models/model.json" not in names:
        raise ClassifierError(
            f"{path}: not a torch.export archive of this format; write it with torch.export.save "
            "of torch >= 2.10"
        )
    for full, name in zip(archive.namelist(), names, strict=True):
        if name.startswith(("data/aotinductor/", "data/executorch/")):
            raise ClassifierError(f"{path}: holds compiled code ({name}): refused")
        if name.startswith(("data/weights/", "data/constants/")) and (
            name.endswith(".pt") or "custom_obj" in name or "opaque_obj" in name
        ):
            raise ClassifierError(f"{path}: holds a pickled record ({name}): refused")
        if name.startswith("data/sample_inputs/"):
            _check_pickle(path, name, archive.read(full), torch)
        elif name.startswith(("data/weights/", "data/constants/")) and name.endswith(".json"):
            for key, value in _items(_json(path, name, archive.read(full))):
                if key == "use_pickle" and value is not False:
                    raise ClassifierError(f"{path}: {name} names pickled tensors: refused")
        elif name.startswith("models/"):
            _check_program(path, name, _json(path, name, archive.read(full)))


def _check_pickle(path: Path, name: str, data: bytes, torch: Any) -> None:
    """Example inputs are pickled: they must be plain tensors and containers."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        raise ClassifierError(
            f"{path}: {name} holds more than tensors, unpickling it could run any code: refused"
        ) from None


def _check_program(path: Path, name: str, program: Any) -> None:
    """The graph may call torch operators only, and its sizes must be plain expressions."""
    for key, value in _items(program):
        if key == "target" and isinstance(value, str) and value and not _TARGET.fullmatch(value):
            raise ClassifierError(
                f"{path}: {name} calls {value[:80]!r}, which is no operator: refused"
            )
        if key in _EXPRESSION_KEYS and isinstance(value, str):
            for word in _WORD.findall(value):
                if word not in _FUNCTIONS and not _SYMBOL.fullmatch(word):
                    raise ClassifierError(
                        f"{path}: {name} holds the expression {value[:80]!r}: refused"
                    )


def _json(path: Path, name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ClassifierError(f"{path}: {name} is not valid JSON: the file is damaged") from None


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value at any depth."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            yield from current.items()
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)
