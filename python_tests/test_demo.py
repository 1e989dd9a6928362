# SPDX-License-Identifier: Apache-2.0
"""The demonstration: on a toy bundle, and on the bundled models themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_workspace import cae_fast, make_workspace
from PIL import Image

from cae_fast import demo


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as those of the bundled models."""
    folder = make_workspace(tmp_path_factory.mktemp("bundle")).folder
    shutil.copytree(folder / "images", folder / "samples")
    (folder / "card.json").write_text('{"targets": {"0.png": "any"}}')
    return folder


@pytest.fixture
def toy_models(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(demo, "model_folder", lambda name: bundle)
    return bundle


def test_writes_a_page_and_a_report_for_each_model(toy_models: Path, tmp_path: Path) -> None:
    result = demo.run(tmp_path / "demo")
    assert result.index == tmp_path / "demo" / "index.html"
    page = result.index.read_text(encoding="utf-8")
    for name in demo.MODELS:
        assert f'href="{name}/index.html"' in page
        assert result.reports[name].read_text(encoding="utf-8").count("<article") == 4
        assert result.seconds_per_image[name] > 0
        assert sum(result.totals[name].values()) == 4
    cells = result.reports["blood_cells"].read_text(encoding="utf-8")
    assert "made by the model itself" in cells
    assert "10.1016/j.dib.2020.105474" in cells
    assert "CC BY 4.0" in cells
    table = (tmp_path / "demo" / "digits" / "table.csv").read_text(encoding="utf-8")
    assert table.count("any other class") == 1


def test_replaces_its_own_folder_only(toy_models: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo.run(out, model="digits")
    (out / "old.txt").write_text("old")
    demo.run(out, model="digits")
    assert not (out / "old.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        demo.run(other)
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_the_old_demo(
    toy_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    demo.run(out, model="digits")
    before = (out / "index.html").read_bytes()

    def fail(*args: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "_landing_page", fail)
    with pytest.raises(OSError, match="No space"):
        demo.run(out, model="digits")
    assert (out / "index.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize(("mode", "model"), [("L", "digits"), ("RGB", "blood_cells")])
def test_own_images_get_the_model_that_suits(
    toy_models: Path, tmp_path: Path, mode: str, model: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "broken.png").write_bytes(b"broken")
    Image.new(mode, (20, 24), 200 if mode == "L" else (200, 30, 60)).save(data / "one.png")
    done = cae_fast("demo", "--out", str(tmp_path / "demo"), "--data", str(data), "--json")
    assert done.code == 0
    assert list(done.json["totals"]) == [model]
    assert f"bundled {model} model" in done.json["model_choice"]
    assert "rejected" in done.json["totals"][model]
    report = (tmp_path / "demo" / model / "index.html").read_text(encoding="utf-8")
    assert "say nothing" in report
    assert "made by the model itself" not in report
    named = demo.run(tmp_path / "named", data, "digits")
    assert list(named.totals) == ["digits"]


def test_prints_the_page_and_the_time(toy_models: Path, tmp_path: Path) -> None:
    done = cae_fast("demo", "--out", str(tmp_path / "demo"))
    assert done.code == 0
    assert done.out.splitlines()[-1] == str(tmp_path / "demo" / "index.html")
    assert "per explanation" in done.out


@pytest.mark.parametrize("name", demo.MODELS)
def test_bundled_model_is_complete(name: str) -> None:
    folder = demo.model_folder(name)
    for file in ("model.safetensors", "classifier.onnx", "bank.csv", "card.json"):
        assert (folder / file).is_file()
    assert list((folder / "samples").glob("*.png"))


def test_bundled_models_fit_in_twelve_megabytes() -> None:
    folder = demo.model_folder("digits").parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12e6


def test_the_demo_itself_explains_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from cae_fast.cli import main\n"
        f"sys.argv = ['cae-fast', 'demo', '--out', {str(tmp_path / 'demo')!r}, '--json']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["totals"]) == set(demo.MODELS)
    for totals in said["totals"].values():
        assert totals.get("flipped", 0) >= sum(totals.values()) / 2
