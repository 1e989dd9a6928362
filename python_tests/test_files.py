# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all, also when the writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

import cae_fast as cf
from cae_fast import files
from cae_fast.files import atomic_directory, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    """The umask decides, not the temporary file's private mode."""
    before = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"new")
        with atomic_directory(tmp_path / "d") as folder:
            (folder / "x").write_bytes(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o755
    assert names(tmp_path) == ["a.bin", "d"]


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    """Neither a file nor a folder changes when its writer fails."""
    (tmp_path / "a.bin").write_bytes(b"old")
    with atomic_directory(tmp_path / "d") as folder:
        (folder / "old").touch()

    def fail(writer: AbstractContextManager[Path]) -> None:
        with writer as path:
            (path / "half" if path.is_dir() else path).write_bytes(b"half")
            raise RuntimeError

    for writer in (
        atomic_write(tmp_path / "a.bin"),
        atomic_directory(tmp_path / "d", overwrite=True),
    ):
        with pytest.raises(RuntimeError):
            fail(writer)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path / "d") == ["old"]
    assert names(tmp_path) == ["a.bin", "d"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    """Foreign files of the old folder go with it, with and without the single-step exchange."""
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for name in ("old", "new"):
        with atomic_directory(tmp_path / "d", overwrite=True) as folder:
            (folder / name).touch()
    assert names(tmp_path / "d") == ["new"]
    assert names(tmp_path) == ["d"]


def test_the_exchange_is_real(tmp_path: Path) -> None:
    """Two folders swap names in one system call, and a missing one is no exchange."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"from-{name}").touch()
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["from-b"]
    assert not files._exchange(tmp_path / "a", tmp_path / "none")


def test_refusals_name_the_path(tmp_path: Path) -> None:
    """Folders for files, files for folders, missing parents and non-empty folders are refused."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(cf.CAEError, match="full is a folder"), atomic_write(tmp_path / "full"):
        pass
    with pytest.raises(cf.CAEError, match="none does not exist"), atomic_write(tmp_path / "none/x"):
        pass
    with pytest.raises(cf.CAEError, match="file is a file"), atomic_directory(tmp_path / "file"):
        pass
    with pytest.raises(cf.CAEError, match="full is not empty"), atomic_directory(tmp_path / "full"):
        pass
    with atomic_directory(tmp_path / "deep/er") as folder:
        (folder / "x").touch()
    assert names(tmp_path / "deep/er") == ["x"]


def test_two_writers_of_one_name_leave_each_other_alone(tmp_path: Path) -> None:
    """The sweep of one writer does not touch what a living one is writing."""
    with atomic_write(tmp_path / "a.bin") as first:
        first.write_bytes(b"first")
        with atomic_write(tmp_path / "a.bin") as second:
            second.write_bytes(b"second")
        assert first.exists()
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    assert names(tmp_path) == ["a.bin"]


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from cae_fast.files import atomic_directory, atomic_write
    root = Path(sys.argv[1])
    print("ready", flush=True)
    while True:
        for letter in "ab":
            with atomic_write(root / "file") as path:
                with open(path, "w") as out:
                    for _ in range(20):
                        out.write(letter * 1000)
                        out.flush()
            with atomic_directory(root / "folder", overwrite=True) as folder:
                for i in range(8):
                    (folder / str(i)).write_text(letter)
    """
)


def test_kill_at_any_moment_leaves_old_or_new(tmp_path: Path) -> None:
    """100 kills: every state seen is whole, the names never vanish, and leftovers are swept."""
    generator = np.random.default_rng(3)
    script = f"import sys; sys.path[:0] = {sys.path!r}\n{WRITER}"
    interrupted = 0
    for _ in range(100):
        with subprocess.Popen(
            [sys.executable, "-S", "-c", script, tmp_path], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while not (tmp_path / "folder").is_dir():
                time.sleep(0.001)
            time.sleep(float(generator.uniform(0, 0.03)))
            writer.send_signal(signal.SIGKILL)
        interrupted += any(name.startswith(".") for name in names(tmp_path))
        content = (tmp_path / "file").read_text()
        assert content in ("a" * 20_000, "b" * 20_000)
        letters = [(tmp_path / "folder" / str(i)).read_text() for i in range(8)]
        assert letters in (["a"] * 8, ["b"] * 8)
    assert interrupted > 10
    with atomic_write(tmp_path / "file") as path:
        path.write_text("last")
    with atomic_directory(tmp_path / "folder", overwrite=True) as folder:
        (folder / "last").touch()
    assert names(tmp_path) == ["file", "folder"]


def test_parents_made_for_a_folder_go_again_when_it_fails(tmp_path: Path) -> None:
    """A failure leaves no empty folders above the output either."""
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "new" / "deep") as folder:
        (folder / "x").write_text(str(1 // 0))
    assert names(tmp_path) == []
