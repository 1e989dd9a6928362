# SPDX-License-Identifier: Apache-2.0
"""`cae-fast explain --ray`: a real local Ray, workers and drivers that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_workspace import Done, cae_fast
from serving_cases import SAMPLES, digits_arguments

import cae_fast as cf
from cae_fast.demo import model_folder
from cae_fast.errors import CAEError
from cae_fast.images import load_images
from cae_fast.ray_jobs import run_files
from cae_fast.ray_jobs.run_files import RunFiles
from cae_fast.ray_jobs.shards import Recipe, explain_shard

ROOT = Path(__file__).resolve().parent.parent
DIGITS = model_folder("digits")
SHARD = 2
IMAGES = 2 * len(SAMPLES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 24 digits, one of which is no picture."""
    images = tmp_path / "images"
    for part in ("a", "b"):
        (images / part).mkdir(parents=True)
        for file in SAMPLES:
            (images / part / file.name).write_bytes(file.read_bytes())
    (images / "b" / SAMPLES[3].name).write_bytes(b"no picture")
    return images


def arguments(images: Path, out: Path, *options: str, classifier: str | None = None) -> list[str]:
    model, chosen, *bank = digits_arguments(classifier)
    return ["explain", model, chosen, str(images), *bank, "--out", str(out), "--ray", *options]


def recipe(**changes: Any) -> Recipe:
    model, classifier, _, bank = digits_arguments()
    options = {"target": None, "tolerance": 1 / 64}
    said = {"options": options, "pictures": False, "isolate": False, **changes}
    return Recipe(model, classifier, bank, "cpu", None, 4, **said)


def begun(images: Path, out: Path, size: int = SHARD) -> RunFiles:
    out.mkdir()
    files = sorted(images.rglob("*.png"))
    names = [f"{file.parent.name}/{file.name}" for file in files]
    return run_files.begin(out, {"shard_size": size}, files, names)


def read_rows(out: Path) -> list[dict[str, Any]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    return [
        row
        for shard in sorted((out / "shards").glob("[0-9]*.parquet"))
        for row in parquet.read_table(shard).to_pylist()
    ]


def written(out: Path) -> dict[str, int]:
    """When each file of a shard and each marker was written, ns."""
    files = [*(out / "shards").glob("[0-9]*.parquet"), *(out / "done").glob("[0-9]*.json")]
    return {file.name: file.stat().st_mtime_ns for file in files}


def wait(what: Callable[[], Any], driver: subprocess.Popen[str], seconds: float = 90) -> Any:
    """What `what` returns once that is true, while a driver runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    raise AssertionError(f"nothing in {seconds} s")


def start(command: list[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_tests")])
    return subprocess.Popen(
        [sys.executable, "-m", "cae_fast", *command],
        env={**os.environ, "PYTHONPATH": path, "CAE_TEST_SLEEP_S": "0.05"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def end(driver: subprocess.Popen[str], processes: list[psutil.Process]) -> None:
    """Kills what is left of a driver and of the Ray it started."""
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.ray
@pytest.mark.slow
def test_killed_drivers_and_workers_lose_and_repeat_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--workers", "2", "--shard-size", str(SHARD), "--json", "--backend", "cpu")
    command = arguments(folder, out, *options, classifier="serving_faults:classifier")

    def markers() -> list[Path]:
        return sorted((out / "done").glob("[0-9]*.json"))

    first = start(command)
    try:
        wait(markers, first)
        ray_processes = psutil.Process(first.pid).children(recursive=True)
    except BaseException:
        end(first, [])
        raise
    end(first, ray_processes)
    shards = IMAGES // SHARD
    before = {path.stem for path in markers()}
    assert 1 <= len(before) < shards, "it was to be killed in the middle"
    assert not (out / "summary.json").exists()
    kept = {name: at for name, at in written(out).items() if name.partition(".")[0] in before}

    second = start(command)
    ray_processes = []
    try:
        new = wait(lambda: [p for p in markers() if p.stem not in before], second)[0]
        ray_processes = psutil.Process(second.pid).children(recursive=True)
        worker = json.loads(new.read_text())["pid"]
        assert worker in {process.pid for process in ray_processes}
        os.kill(worker, signal.SIGKILL)
        printed, errors = second.communicate(timeout=120)
    finally:
        end(second, ray_processes)
    assert second.returncode == 0, errors

    result = json.loads(printed)
    assert result["shards_before"] == len(before)
    assert (result["shards_total"], result["images"]) == (shards, IMAGES)
    assert result["totals"]["rejected"] == 1
    assert {name: at for name, at in written(out).items() if name in kept} == kept
    assert json.loads((out / "summary.json").read_text())["totals"] == result["totals"]
    assert sorted(path.stem for path in (out / "shards").iterdir()) == [
        path.stem for path in markers()
    ]
    pids = {json.loads(path.read_text())["pid"] for path in markers() if path.stem not in before}
    assert len(pids - {worker}) >= 1, "another worker went on"
    _same_as_one_call(folder, read_rows(out))


def _same_as_one_call(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The rows are those of one call of the explainer, in the order of the files."""
    files = sorted(folder.rglob("*.png"))
    explainer = cf.Explainer(
        cf.CAE.load(DIGITS / "model.safetensors"),
        cf.Classifier.load(DIGITS / "classifier.onnx"),
        bank=DIGITS / "bank.csv",
        backend="cpu",
    )
    images, reasons = load_images(files, size=32, channels=1, on_error="collect")
    names = [f"{file.parent.name}/{file.name}" for file in files]
    wanted = explainer.explain(images, names=names, rejected=reasons).table_rows()
    for row, plain in zip(rows, wanted, strict=True):
        assert {key: row[key] for key in ("name", "status", "t_flip", "exemplar", "reason")} == {
            key: plain[key] for key in ("name", "status", "t_flip", "exemplar", "reason")
        }


def test_a_shard_is_done_once_and_again_without_its_marker(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    run = begun(folder, tmp_path / "out", size=5)
    how = recipe(pictures=True)
    explainer = how.explainer()
    assert run.pending() == [0, 1, 2, 3, 4]
    assert [explain_shard(explainer, run, shard, how) for shard in (1, 1, 4)] == [5, 0, 4]
    assert run.pending() == [0, 2, 3]
    shown = read_rows(run.folder)[0]
    assert shown["saliency_png"][:4] == shown["counterfactual_png"][:4] == b"\x89PNG"

    (run.folder / "done" / "000001.json").write_text('{"shard": 1')  # cut off
    (run.folder / "shards" / "000004.parquet").unlink()
    assert run.pending() == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="not done"):
        run.finish()
    for shard in run.pending():
        explain_shard(explainer, run, shard, how)
    assert sum(run.finish().values()) == IMAGES
    assert len(read_rows(run.folder)) == IMAGES


def test_another_run_is_not_continued(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    run = begun(folder, tmp_path / "out")
    assert run_files.continued(run.folder, {"shard_size": SHARD}).shards == run.shards
    with pytest.raises(CAEError, match=r"shard_size 2, not 3; add --overwrite"):
        run_files.continued(run.folder, {"shard_size": 3})
    with (
        run_files.only_one(run.folder),
        pytest.raises(CAEError, match="at work there"),
        run_files.only_one(run.folder),
    ):
        pass
    (run.folder / "run.json").write_text("[]")
    with pytest.raises(CAEError, match="not the record of a run"):
        RunFiles(run.folder)
    run_files.clear(run.folder)
    assert not run_files.was_begun(run.folder)
    (run.folder / "notes.txt").write_text("mine")
    with pytest.raises(CAEError, match=r"notes\.txt"):
        run_files.was_begun(run.folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard-size", "0"), "shard size must be at least 1"),
        (("--workers", "0"), "workers must be at least 1"),
        (("--worker-gpus", "-1"), "gpus of a worker"),
        (("--frames", "9"), "--frames is not for --ray"),
        (("--title", "x"), "--title is not for --ray"),
        (("--target", "eleven"), "eleven"),
        (("--k", "100000"), "100000"),
    ],
)
def test_wrong_options_are_refused_before_ray_starts(
    folder: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    done = cae_fast(*arguments(folder, tmp_path / "out", *options))
    _refused(done, words)
    assert not (tmp_path / "out").exists()


def test_its_options_need_it(folder: Path, tmp_path: Path) -> None:
    command = arguments(folder, tmp_path / "out", "--workers", "2")
    command.remove("--ray")
    _refused(cae_fast(*command), "--workers needs --ray")


def test_missing_ray_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    _refused(cae_fast(*arguments(folder, tmp_path / "out")), "cae_fast[ray]")


def _refused(done: Done, words: str) -> None:
    assert done.code == 2
    assert done.err.startswith("cae-fast: ")
    assert done.err.count("\n") == 1, done.err
    assert words in done.err
