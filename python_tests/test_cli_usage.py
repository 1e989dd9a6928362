# SPDX-License-Identifier: Apache-2.0
"""The command line's manners: exit codes, one line per error, nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_workspace import Workspace, cae_fast, make_workspace
from PIL import Image

import cae_fast as cf
from cae_fast.cli import failures
from cae_fast.cli.output import Output

VERBS = (
    *("info", "demo", "train", "train-classifier", "import-checkpoint", "encode", "explain"),
    *("manifold", "evaluate", "export", "build-engine", "bench", "serve"),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def caused(error: Exception, cause: Exception) -> Exception:
    """The error as `raise error from cause` leaves it."""
    error.__cause__ = cause
    return error


def one_line(text: str) -> bool:
    return text.startswith("cae-fast: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    done = cae_fast(verb, "--help")
    assert done.code == 0
    assert "--quiet" in done.out
    assert verb == "serve" or "--json" in done.out  # which prints no results


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", "remove an earlier run's own files"),
        ("train-classifier", "Replace FILE.pt2 and FILE.onnx"),
    ],
)
def test_help_says_what_overwrite_removes(verb: str, words: str) -> None:
    assert words in " ".join(cae_fast(verb, "--help").out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--help"),
        (["explian"], "explain"),
        (["explain"], "MODEL"),
        (["info", "--bogus"], "--bogus"),
        (["train", "data"], "--out"),
        (["train", "data", "--out", "run", "--steps", "many"], "--steps"),
        (["train", "data", "--out", "run", "--image-size", "18"], "image_size"),
        (["train", "data", "--out", "run", "--precision", "fp8"], "precision"),
        (["train", "data", "--out", "run", "--resume", "--overwrite"], "resume"),
        (["train", "data", "--out", "run", "--labels", "classifier"], "classifier"),
        (["train-classifier", "data", "--out", "c.h5"], ".pt2"),
        (["import-checkpoint", "missing.pt", "--out", "m.safetensors"], "missing.pt"),
        (["import-checkpoint", "missing.pt", "--out", "m.bin"], ".safetensors"),
        (["encode", "missing.safetensors", "missing", "--out", "b.csv"], "missing"),
        (["encode", "missing.safetensors", "missing", "--out", "b.txt"], ".parquet"),
        (["demo", "--model", "cats"], "digits"),
        (["demo", "--data", "missing"], "missing"),
    ],
)
def test_wrong_usage_is_2_and_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cae_fast(*arguments)
    assert done.code == 2
    assert one_line(done.err), done.err
    assert words in done.err
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--target", "square"], "square"),
        (["--target", "3"], "0..2"),
        (["--target", "-1"], "'-1'"),
        (["--tolerance", "0"], "tolerance"),
        (["--tolerance", "nan"], "tolerance"),
        (["--k", "0"], "k must be"),
        (["--k", "1000"], "1000 needed"),
        (["--frames", "1"], "frames"),
        (["--path", "spiral"], "path must be one of 'line', 'graph'"),
        (["--exemplars", "best"], "got 'best'"),
        (["--backend", "abacus"], "abacus"),
        (["--backend", "tensorrt"], "tensorrt"),
        (["--backend", "cuda"], "cuda"),
        *((["--max-batch", bad], "max") for bad in ("0", "-1", str(2**70), "1.5", "True")),
        (["--bank", "missing.csv"], "missing.csv"),
    ],
)
def test_wrong_options_of_explain(
    workspace: Workspace, tmp_path: Path, change: list[str], words: str
) -> None:
    done = cae_fast(*workspace.explain(tmp_path / "out", *change))
    assert done.code == 2
    assert one_line(done.err), done.err
    assert words in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["model", "classifier", "bank", "image"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 40, None])
def test_damaged_files(
    workspace: Workspace, tmp_path: Path, which: str, content: bytes | None
) -> None:
    files = {
        "model": workspace.model,
        "classifier": workspace.classifier,
        "bank": workspace.bank,
        "image": workspace.images / "0.png",
    }
    bad = tmp_path / f"bad{files[which].suffix}"
    if content is not None:
        bad.write_bytes(content)
    files[which] = bad
    given = [str(files[name]) for name in ("model", "classifier", "image")]
    options = ["--bank", str(files["bank"]), "--out", str(tmp_path / "out")]
    done = cae_fast("explain", *given, *options)
    assert done.code == 2
    assert one_line(done.err), done.err
    assert "bad" in done.err
    assert not (tmp_path / "out").exists()


def test_a_bank_of_another_model(workspace: Workspace, tmp_path: Path) -> None:
    other = cf.CAE.random(cf.CAE.load(workspace.model).config, seed=8)
    other.save(tmp_path / "other.safetensors")
    arguments = workspace.explain(tmp_path / "out")
    arguments[1] = str(tmp_path / "other.safetensors")
    done = cae_fast(*arguments)
    assert done.code == 2
    assert "encode the images again" in done.err


def test_output_folder_in_use(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    done = cae_fast(*workspace.explain(out))
    assert done.code == 2
    assert "--overwrite" in done.err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert cae_fast(*workspace.explain(out, "--overwrite", "--frames", "0")).code == 0
    assert (out / "index.html").is_file()
    assert not (out / "mine.txt").exists()


def test_output_is_a_file(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    done = cae_fast(*workspace.explain(out, "--overwrite"))
    assert done.code == 2
    assert "is a file" in done.err
    assert out.read_text() == "mine"
    done = cae_fast("encode", str(workspace.model), str(workspace.data), "--out", str(tmp_path))
    assert done.code == 2
    assert "folder" in done.err


def test_one_bad_image_among_many_is_a_rejected_row(workspace: Workspace, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in workspace.images.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    whole = (images / "0.png").read_bytes()
    (images / "broken.png").write_bytes(whole[: len(whole) // 2])
    (images / "notes.txt").write_text("no image by its name")
    done = cae_fast(*workspace.explain(tmp_path / "out", "--json", images=images))
    assert done.code == 0
    rows = {row["name"]: row for row in done.json["explanations"]}
    assert set(rows) == {"0.png", "1.png", "2.png", "3.png", "broken.png"}
    assert [name for name, row in rows.items() if row["status"] == "rejected"] == ["broken.png"]
    assert rows["broken.png"]["reason"]
    assert "broken.png" in done.err
    assert "broken.png" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for path in images.iterdir():
        path.write_bytes(b"x")
    done = cae_fast(*workspace.explain(tmp_path / "none", images=images))
    assert done.code == 2
    assert one_line(done.err)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("verb", ["encode", "import-checkpoint", "train", "train-classifier"])
def test_a_failure_leaves_no_folders(workspace: Workspace, tmp_path: Path, verb: str) -> None:
    arguments, file = {
        "encode": ((str(workspace.model), "missing"), "bank.csv"),
        "import-checkpoint": (("missing.pt",), "model.safetensors"),
        "train": (("missing",), "run"),
        "train-classifier": (("missing",), "classifier.onnx"),
    }[verb]
    done = cae_fast(verb, *arguments, "--out", str(tmp_path / "new" / "deep" / file))
    assert done.code == 2
    assert "missing" in done.err
    assert list(tmp_path.iterdir()) == []


def test_folders_of_an_output_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to("circle")
    for parent, words in (
        ("file", "file is a file"),
        ("file/deep", "file is a file"),
        ("circle/deep", os.strerror(errno.ELOOP)),
        ("x" * 300, os.strerror(errno.ENAMETOOLONG)),
    ):
        out = tmp_path / parent / "model.safetensors"
        done = cae_fast("import-checkpoint", "missing.pt", "--out", str(out))
        assert done.code == 2
        assert one_line(done.err), done.err
        assert words in done.err


def test_parquet_without_pyarrow_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "new" / "bank.parquet"
    done = cae_fast("encode", "missing.safetensors", "missing", "--out", str(out))
    assert done.code == 2
    assert "cae_fast[parquet]" in done.err
    assert list(tmp_path.iterdir()) == []


def test_missing_extension_is_2_and_one_line(workspace: Workspace, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['cae_fast._C'] = None\n"
        "from cae_fast.cli import main\n"
        f"sys.argv = ['cae-fast', *{workspace.explain(tmp_path / 'out')!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert one_line(done.stderr), done.stderr
    assert "pip install ." in done.stderr


def test_remarks_of_pillow_are_not_printed(workspace: Workspace, tmp_path: Path) -> None:
    written = io.BytesIO()
    Image.new("L", (16, 16)).save(written, "TIFF")
    (tmp_path / "cut.tif").write_bytes(written.getvalue()[:60])
    arguments = workspace.explain(tmp_path / "out", images=tmp_path / "cut.tif")
    command = [sys.executable, "-m", "cae_fast", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert one_line(done.stderr), done.stderr
    assert "cut.tif" in done.stderr


def test_full_disk_is_1_and_leaves_nothing(workspace: Workspace, tmp_path: Path) -> None:
    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [sys.executable, "-m", "cae_fast", *workspace.explain(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
        timeout=120,
    )
    assert done.returncode == 1
    assert one_line(done.stderr), done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 1),
        (RuntimeError("x.cpp: DefaultCPUAllocator: can't allocate memory: you tried 1 B\nat"), 1),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 B"), 1),
        (caused(cf.ClassifierError("it raised"), MemoryError()), 1),
        (OSError(errno.ENOSPC, "No space left on device", "file"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "file"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "file"), 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "file"), 2),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "file"), 2),
        (cf.ExtensionMissing("not built"), 2),
        (cf.MissingExtra("torch is needed"), 2),
        (cf.BackendUnavailable("no GPU"), 2),
        (ValueError("two\nlines"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("cae_fast.environment.info", fail)
    done = cae_fast("info")
    assert done.code == code
    assert one_line(done.err.lstrip("\n")), done.err


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("defect")

    monkeypatch.setattr("cae_fast.environment.info", fail)
    with pytest.raises(KeyError, match="defect"):
        cae_fast("info")
    assert failures.describe(KeyError("defect")) is None


def test_interrupt_of_a_real_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time, cae_fast.environment as e, cae_fast.cli as c;"
        # Jobs that a shell runs in the background begin with the signal ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        # Another thread may take the signal: give it time to reach this one.
        "e.info = lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(30));"
        "sys.argv = ['cae-fast', 'info']; c.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cae_fast", "info", "--json"]
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_info_as_a_process_prints_json_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, cae_fast.cli as c; sys.argv = ['cae-fast', 'info', '--json']\n"
        "try: c.main()\n"
        "finally: print([m for m in ('torch', 'onnxruntime', 'matplotlib') if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["version"] == cf.__version__
    assert done.stderr.strip() == "[]"


def test_quiet_and_version() -> None:
    assert cae_fast("info", "--quiet") == type(cae_fast("info"))(0, "", "")
    assert cae_fast("--version").out == f"cae-fast {cf.__version__}\n"
    assert "CPU" in cae_fast("info").out


def test_progress_is_off_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("working") as moved:
        moved(1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_and_table_take_brackets_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Output().progress("[/red] working") as moved:
        moved(1, 2)
    assert "[/red] working" in capsys.readouterr().err
    Output().table(("[b]", "c"), [("[/nope]", "[link=x]y")])
    printed = capsys.readouterr().out
    assert "[/nope]" in printed
    assert "[link=x]y" in printed


def test_huge_image_is_refused_from_its_header(workspace: Workspace, tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    done = cae_fast(*workspace.explain(tmp_path / "out", images=tmp_path / "huge.png"))
    assert done.code == 2
    assert one_line(done.err)
    assert "9000" in done.err
