# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run in shards: what it covers, and which shards are done.

`run.json` says what was asked for, `files.parquet` which images belong to it (one row group a
shard). `shards/N.parquet` appears whole, and after it `done/N.json`: a shard without its marker is
explained again, one with it never. `summary.json` ends the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cae_fast.errors import CAEError, missing_extra
from cae_fast.files import atomic_write

FORMAT_VERSION = 1
_RECORD, _FILES, _SUMMARY = "run.json", "files.parquet", "summary.json"
_SHARDS, _DONE = "shards", "done"
_OWN = {_RECORD, _FILES, _SUMMARY, _SHARDS, _DONE}
_LOCK = ".lock"


class RunFiles:
    """A run's folder, as its driver and its workers see it.

    Attributes:
        folder: The output folder.
        images: Images in all.
        shards: Shards in all.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Reads the record of a run that was begun.

        Raises:
            CAEError: There is none, or it is not readable.
        """
        self.folder = Path(folder)
        record = read_record(self.folder)
        try:
            self.images, self.shards = int(record["images"]), int(record["shards"])
        except (KeyError, TypeError, ValueError):
            raise CAEError(f"{self.folder / _RECORD}: not the record of a run") from None

    def shard_path(self, shard: int) -> Path:
        """Where the rows of a shard are."""
        return self.folder / _SHARDS / f"{shard:06d}.parquet"

    def files_of(self, shard: int) -> tuple[list[Path], list[str]]:
        """Image files of a shard, and their names in tables."""
        _, parquet = pyarrow_packages()
        with parquet.ParquetFile(self.folder / _FILES) as file:
            rows = file.read_row_group(shard)
        paths = [Path(os.fsdecode(path)) for path in rows.column("path").to_pylist()]
        return paths, rows.column("name").to_pylist()

    def marker(self, shard: int) -> dict[str, Any] | None:
        """What the done-marker of a shard says; None where the shard is not done."""
        try:
            value = json.loads(self._marker_path(shard).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(value, dict) and isinstance(value.get("totals"), dict)
        return value if whole and self.shard_path(shard).is_file() else None

    def mark_done(self, shard: int, said: Mapping[str, Any]) -> None:
        """Writes the done-marker of a shard whose file is there."""
        with atomic_write(self._marker_path(shard)) as temporary:
            temporary.write_text(json.dumps(dict(said)), encoding="utf-8")

    def pending(self) -> list[int]:
        """Shards without a done-marker, ascending."""
        listed = {path.name for path in (self.folder / _DONE).glob("[0-9]*.json")}
        return [
            shard
            for shard in range(self.shards)
            if self._marker_path(shard).name not in listed or self.marker(shard) is None
        ]

    def finish(self) -> dict[str, int]:
        """Writes `summary.json` of a run all of whose shards are done.

        Returns:
            Images of each status.
        """
        totals: Counter[str] = Counter()
        for shard in range(self.shards):
            marker = self.marker(shard)
            if marker is None:
                raise RuntimeError(f"shard {shard} is not done")
            totals.update(marker["totals"])
        value = {"images": self.images, "shards": self.shards, "totals": dict(totals)}
        with atomic_write(self.folder / _SUMMARY) as temporary:
            temporary.write_text(json.dumps(value, indent=2), encoding="utf-8")
        return dict(totals)

    def _marker_path(self, shard: int) -> Path:
        return self.folder / _DONE / f"{shard:06d}.json"


def begin(
    folder: Path, asked: Mapping[str, Any], files: Sequence[Path], names: Sequence[str]
) -> RunFiles:
    """Records a new run.

    Args:
        folder: Of the run; it is there.
        asked: What was asked for, JSON values; with "shard_size".
        files: Image files, in order.
        names: Their names in tables.
    """
    arrow, parquet = pyarrow_packages()
    for name in (_SHARDS, _DONE):
        (folder / name).mkdir(exist_ok=True)
    size = asked["shard_size"]
    table = arrow.table(
        {
            "path": arrow.array([os.fsencode(path.absolute()) for path in files], arrow.binary()),
            "name": arrow.array(names, arrow.string()),
        }
    )
    with atomic_write(folder / _FILES) as temporary:
        parquet.write_table(table, temporary, row_group_size=size)
    record = {
        "format": FORMAT_VERSION,
        "asked": dict(asked),
        "images": len(files),
        "shards": -(-len(files) // size),
    }
    with atomic_write(folder / _RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")
    return RunFiles(folder)


def continued(folder: Path, asked: Mapping[str, Any]) -> RunFiles:
    """The run that was begun in a folder, if the same was asked for.

    Raises:
        CAEError: Something else was asked for; the message names it.
    """
    before = read_record(folder).get("asked")
    before = before if isinstance(before, dict) else {}
    now = json.loads(json.dumps(dict(asked)))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise CAEError(
                f"{folder}: the run there has {name} {_shown(before.get(name))}, not "
                f"{_shown(now.get(name))}; add --overwrite to start over, or choose another folder"
            )
    return RunFiles(folder)


def read_record(folder: Path) -> dict[str, Any]:
    """`run.json` of a folder.

    Raises:
        CAEError: It is missing or damaged.
    """
    file = folder / _RECORD
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CAEError(f"{file}: no such file; no run was begun there") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("format") != FORMAT_VERSION:
        raise CAEError(f"{file}: not the record of a run of format {FORMAT_VERSION}")
    return value


def was_begun(folder: Path) -> bool:
    """Whether a folder holds a run.

    Raises:
        CAEError: It is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise CAEError(f"{folder} is a file, expected a folder to write into")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if _RECORD in names:
        return True
    if foreign := sorted(name for name in names - _OWN if not name.startswith(".")):
        raise CAEError(
            f"{folder} holds {foreign[0]!r}, which is no part of a run; choose another folder"
        )
    return False


def clear(folder: Path) -> None:
    """Removes a run's own files; its record first, so that what is left is no run."""
    for name in (_RECORD, _SUMMARY, _FILES):
        (folder / name).unlink(missing_ok=True)
    for name in (_DONE, _SHARDS):
        shutil.rmtree(folder / name, ignore_errors=True)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keeps a second driver of this machine out of a run's folder, which is made.

    Raises:
        CAEError: Another driver works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CAEError(f"{folder}: another explain --ray is at work there") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def pyarrow_packages() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingExtra: They are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("ray", "pyarrow") from None
    return pyarrow, pyarrow.parquet


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
