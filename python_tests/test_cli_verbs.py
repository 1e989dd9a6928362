# SPDX-License-Identifier: Apache-2.0
"""What the verbs do with good input."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_workspace import CLASS_NAMES, Workspace, cae_fast, make_workspace
from PIL import Image

import cae_fast as cf
from cae_fast.authors import authors_names
from cae_fast.cli.explaining import _class_of
from cae_fast.testing import toy_model


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def model_of_the_folders(workspace: Workspace, path: Path) -> cf.CAE:
    """The workspace's model with the class names of its folders, also as a file."""
    named = cf.CAE.load(workspace.model)
    names = ["class 0", "class 1", "class 2"]
    model = cf.CAE(
        cf.CAEConfig.from_dict(named.config.to_dict() | {"class_names": names}), named.weights
    )
    model.save(path)
    return model


def test_explain_writes_what_the_functions_say(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    done = cae_fast(*workspace.explain(out, "--json", "--frames", "4", "--tolerance", "0.1"))
    assert done.code == 0
    explainer = cf.Explainer(
        cf.CAE.load(workspace.model), str(workspace.classifier), bank=workspace.bank
    )
    images = cf.load_images(sorted(workspace.images.iterdir()), size=16, channels=1)
    wanted = explainer.explain(images, tolerance=0.1, frames=4)
    loaded = cf.Explanation.load(out / "explanation")
    np.testing.assert_array_equal(loaded.status, wanted.status)
    np.testing.assert_array_equal(loaded.t_flip, wanted.t_flip)
    np.testing.assert_array_equal(loaded.saliency, wanted.saliency)
    np.testing.assert_array_equal(loaded.path_images, wanted.path_images)
    assert loaded.names == ["0.png", "1.png", "2.png", "3.png"]
    assert [row["status"] for row in done.json["explanations"]] == list(wanted.status)
    assert sum(done.json["totals"].values()) == 4
    assert done.json["seconds_per_image"] > 0
    with open(out / "table.csv", encoding="utf-8", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == list(wanted.status)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<article") == 4
    assert page.count("<script>") == 1
    assert "&lt;b&gt;oval&lt;!--" in page
    assert "<b>" not in page
    assert cf.CAE.load(workspace.model).sha256 in page


def test_explain_shows_the_kind_of_map_that_is_asked_for(
    workspace: Workspace, tmp_path: Path
) -> None:
    done = cae_fast(*workspace.explain(tmp_path / "edit", "--saliency", "edit"))
    assert done.code == 0, done.err
    loaded = cf.Explanation.load(tmp_path / "edit" / "explanation")
    assert loaded.meta["parameters"]["saliency"] == "edit"
    done = cae_fast(*workspace.explain(tmp_path / "out", "--saliency", "heat"))
    assert done.code == 2
    assert done.err.startswith("cae-fast: saliency must be one of difference, mean-k, ")
    assert not (tmp_path / "out").exists()


def test_explain_searches_by_the_margin(workspace: Workspace, tmp_path: Path) -> None:
    for search in ("bisection", "margin"):
        done = cae_fast(*workspace.explain(tmp_path / search, "--search", search))
        assert done.code == 0
        loaded = cf.Explanation.load(tmp_path / search / "explanation")
        assert loaded.meta["parameters"]["search"] == search
    done = cae_fast(*workspace.explain(tmp_path / "out", "--search", "golden"))
    assert done.code == 2
    assert done.err == "cae-fast: search must be one of 'bisection', 'margin', got 'golden'\n"
    assert not (tmp_path / "out").exists()


def test_explain_stops_at_the_exemplar_when_asked(workspace: Workspace, tmp_path: Path) -> None:
    done = cae_fast(*workspace.explain(tmp_path / "out", "--reach", "1"))
    assert done.code == 0
    loaded = cf.Explanation.load(tmp_path / "out" / "explanation")
    assert loaded.meta["parameters"]["reach"] == 1
    done = cae_fast(*workspace.explain(tmp_path / "far", "--reach", "9"))
    assert done.code == 2
    assert done.err == "cae-fast: reach must be a number in [1, 4], got 9.0\n"
    assert not (tmp_path / "far").exists()


def test_printed_names_keep_their_brackets(workspace: Workspace, tmp_path: Path) -> None:
    done = cae_fast(*workspace.explain(tmp_path / "out", "--target", CLASS_NAMES[2]))
    assert done.code == 0
    assert CLASS_NAMES[2] in done.out
    assert str(tmp_path / "out" / "index.html") in done.out
    assert "per explanation" in done.out
    assert cae_fast(*workspace.explain(tmp_path / "two", "--quiet")).out == ""


def test_explain_takes_files_any_target_and_several_exemplars(
    workspace: Workspace, tmp_path: Path
) -> None:
    file = workspace.images / "1.png"
    options = ("--target", "any", "--k", "2", "--frames", "0", "--max-batch", "1", "--json")
    done = cae_fast(*workspace.explain(tmp_path / "out", *options, images=file))
    assert done.code == 0
    (row,) = done.json["explanations"]
    assert row["name"] == "1.png"
    assert row["target_class"] == "any other class"
    assert not list((tmp_path / "out").rglob("path"))


def test_same_names_in_two_folders_stay_apart(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes((workspace.images / "0.png").read_bytes())
    arguments = workspace.explain(tmp_path / "out", "--json", images=tmp_path / "a" / "x.png")
    done = cae_fast(*arguments, str(tmp_path / "b"))
    assert [row["name"] for row in done.json["explanations"]] == ["a/x.png", "b/x.png"]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


def test_names_that_are_no_text_and_command_a_terminal(
    workspace: Workspace, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    good = (workspace.images / "0.png").read_bytes()
    for name in (b"caf\xe9.png", b"\x1b[2Jred.png", b"new\nline.png"):
        (images / os.fsdecode(name)).write_bytes(good)
    (images / "bad\x1b[2J.png").write_bytes(b"x")
    command = [
        sys.executable,
        "-m",
        "cae_fast",
        *workspace.explain(tmp_path / "out", images=images),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert r"\x1b[2Jred.png" in done.stdout
    assert done.stderr.count("\n") == 1
    assert len(cf.Explanation.load(tmp_path / "out" / "explanation")) == 4


def test_overlay_has_the_size_of_the_original(workspace: Workspace, tmp_path: Path) -> None:
    with Image.open(workspace.images / "0.png") as opened:
        opened.resize((50, 40)).save(tmp_path / "big.png")
    done = cae_fast(*workspace.explain(tmp_path / "out", images=tmp_path / "big.png"))
    assert done.code == 0
    (path,) = (tmp_path / "out" / "images" / "big").glob("*overlay.png")
    with Image.open(path) as opened:
        assert opened.size == (50, 40)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_encode_equals_the_bank_of_the_functions(
    workspace: Workspace, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    plain = model_of_the_folders(workspace, tmp_path / "plain.safetensors")
    out = tmp_path / "new" / f"bank{suffix}"
    done = cae_fast(
        "encode",
        str(tmp_path / "plain.safetensors"),
        str(workspace.data),
        "--out",
        str(out),
        "--thumbnails",
        "--json",
    )
    assert done.code == 0, done.err
    bank = cf.CodeBank.load(out)
    dataset = cf.ImageDataset.from_folder(workspace.data, "train")
    wanted = cf.CodeBank.build(plain, dataset)
    np.testing.assert_array_equal(bank.codes, wanted.codes)
    assert list(bank.names) == dataset.files
    assert bank.thumbnails is not None
    assert done.json["images"] == len(dataset)
    assert done.json["model_sha256"] == plain.sha256


def test_encode_leaves_out_what_cannot_be_read(workspace: Workspace, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(workspace.data, data)
    model_of_the_folders(workspace, tmp_path / "plain.safetensors")
    files = sorted((data / "train").rglob("*.png"))
    files[0].write_bytes(b"x")
    (data / "train" / "class 1" / "notes.txt").write_text("no image by its name")
    encode = ("encode", str(tmp_path / "plain.safetensors"), str(data), "--out")
    done = cae_fast(*encode, str(tmp_path / "bank.csv"), "--json")
    assert done.code == 0, done.err
    name = files[0].relative_to(data).as_posix()
    assert done.err.startswith(f"cae-fast: rejected {name}: ")
    assert done.err.count("\n") == 1
    assert list(done.json["rejected"]) == [name]
    assert done.json["images"] == len(files) - 1 == len(cf.CodeBank.load(tmp_path / "bank.csv"))
    assert [line.partition(":")[0] for line in done.json["ignored"]] == ["train/class 1/notes.txt"]
    printed = cae_fast(*encode, str(tmp_path / "again.csv")).out
    assert "passed over 1 " in printed
    assert "notes.txt" in printed
    for file in files:
        file.write_bytes(b"x")
    done = cae_fast(*encode, str(tmp_path / "new" / "none.csv"))
    assert done.code == 2
    assert "no readable images" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_no_folders(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "file")

    monkeypatch.setattr("cae_fast.bank_files.write_bank", fail)
    (tmp_path / "mine").mkdir()
    model_of_the_folders(workspace, tmp_path / "mine" / "plain.safetensors")
    files = (str(tmp_path / "mine" / "plain.safetensors"), str(workspace.data))
    done = cae_fast("encode", *files, "--out", str(tmp_path / "mine" / "new" / "deep" / "b.csv"))
    assert done.code == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["plain.safetensors"]


def test_target_is_a_name_or_else_an_index(workspace: Workspace, tmp_path: Path) -> None:
    done = cae_fast(*workspace.explain(tmp_path / "one", "--target", "1", "--json"))
    assert done.code == 0, done.err
    assert {row["target_class"] for row in done.json["explanations"]} == {CLASS_NAMES[1]}
    assert _class_of("1", ("2", "1", "0")) == "1"
    assert _class_of("1", ("a", "b")) == 1


def test_class_names_that_disagree_are_both_listed(workspace: Workspace, tmp_path: Path) -> None:
    done = cae_fast(
        "encode", str(workspace.model), str(workspace.data), "--out", str(tmp_path / "bank.csv")
    )
    assert done.code == 2
    assert "class 0" in done.err
    assert CLASS_NAMES[0] in done.err


def test_as_a_process_without_torch(workspace: Workspace, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from cae_fast.cli import main\n"
        f"sys.argv = ['cae-fast', *{workspace.explain(tmp_path / 'out', '--json')!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"] == str(tmp_path / "out" / "index.html")


def test_import_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    made = toy_model(num_classes=2, in_channels=3)
    names = authors_names(made.config)
    state = {names[ours]: torch.from_numpy(np.array(a)) for ours, a in made.weights.items()}
    torch.save({"ab": state}, tmp_path / "gen.pt")
    out = tmp_path / "new" / "model.safetensors"
    options = ("--image-size", "16", "--class-names", "a, b", "--json")
    done = cae_fast("import-checkpoint", str(tmp_path / "gen.pt"), "--out", str(out), *options)
    assert done.code == 0, done.err
    model = cf.CAE.load(out)
    assert model.config.class_names == ("a", "b")
    assert done.json["sha256"] == model.sha256
    for name, weight in made.weights.items():
        np.testing.assert_array_equal(model.weights[name], weight)


def test_an_instruction_set_that_the_machine_lacks(workspace: Workspace, tmp_path: Path) -> None:
    """Work is refused with one line; `info`, which is asked what is wrong, answers."""
    environment = os.environ | {"CAE_CPU_ISA": "nonsense"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cae_fast", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = run(*workspace.explain(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "CAE_CPU_ISA must be one of the instruction sets of this machine (port" in done.stderr
    assert 'got "nonsense"' in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = run("info")
    assert done.returncode == 0
    assert "CAE_CPU_ISA" in done.stdout
