# SPDX-License-Identifier: Apache-2.0
"""`cae-fast evaluate` on a tiny model with real files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from cli_workspace import Workspace, cae_fast, make_workspace
from PIL import Image

from cae_fast import CAE
from cae_fast.testing import toy_model

NAMES = ("class 0", "class 1", "class 2")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    import cli_workspace

    patch = pytest.MonkeyPatch()
    patch.setattr(cli_workspace, "CLASS_NAMES", NAMES)
    patch.setattr(
        cli_workspace,
        "toy_model",
        lambda **_: toy_model(class_names=NAMES),
    )
    made = make_workspace(tmp_path_factory.mktemp("evaluate"))
    patch.undo()
    return made


def arguments(work: Workspace, out: Path, *more: str) -> list[str]:
    files = [str(work.model), str(work.classifier), str(work.data)]
    return ["evaluate", *files, "--split", "train", "--out", str(out), "--draws", "100", *more]


def test_an_onnx_classifier_is_compared_with_what_needs_no_gradients(
    work: Workspace, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    for file in sorted((work.data / "train").rglob("*.png")):
        mask = np.zeros((16, 16), dtype=bool)
        mask[4:8, 4:8] = True
        target = masks / file.relative_to(work.data)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
    out = tmp_path / "out"
    chosen = "cae,cae-mean-k,cae-weighted,cae-smooth,cae-edit,gradcam,occlusion,lime,uniform"
    done = cae_fast(
        *arguments(work, out, "--methods", chosen, "--masks", str(masks), "--samples", "20"),
        "--limit",
        "6",
        "--all-pairs",
        "--no-second-try",
        "--json",
    )
    assert done.code == 0, done.err
    assert set(done.json["left_out"]) == {"gradcam"}
    assert "wanted a .pt2 file" in done.json["left_out"]["gradcam"]
    found = {(r["kind"], r["method"], r["measure"]): r for r in done.json["summary"]}
    assert found["map", "uniform", "energy_inside"]["mean"] == pytest.approx(1 / 16)
    assert found["map", "uniform", "mask_auc"]["mean"] == 0.5
    assert 0 <= found["counterfactual", "cae", "validity"]["mean"] <= 1
    assert found["map", "lime", "classified"]["mean"] >= 20
    for own in ("cae-mean-k", "cae-weighted", "cae-smooth", "cae-edit"):
        assert found["map", own, "aopc"]["images"] == 6
    said = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert said["about"]["paths"].startswith("path line, reach 1.5, exemplars reliable, k ")
    (stage,) = said["sanity"]  # one matrix
    assert (stage["layers"], stage["of_layers"]) == (1, 1)
    # Hardly anything flips with a model of random weights: nothing is compared, and that is said.
    assert stage["share"] == 0
    assert "sanity check: no image flips under" in done.json["notes"][-1]
    with open(out / "images.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 6
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "occlusion" in page
    assert "Flips of all pairs" in page
    assert "take pixels away tell the truth" in page
    assert "too few images with a mask to say" in page
    assert found["truth", "mask", "deletion"]["images"] == 6
    assert "deletion, asked about the masks: too few" in done.err
    for picture in ("maps.png", "measures.png"):
        assert Image.open(out / picture).size[0] > 300


def test_images_of_some_classes_are_measured(work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = ("--methods", "cae", "--classes", "class 2, class 0", "--limit", "3", "--no-sanity")
    done = cae_fast(*arguments(work, out, *chosen))
    assert done.code == 0, done.err
    with open(out / "images.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert {row["label"] for row in rows} == {"class 0", "class 2"}
    done = cae_fast(
        *arguments(work, out, *chosen[:2], "--classes", "class 1", "--no-sanity"),
        "--overwrite",
        "--json",
    )
    assert done.code == 0, done.err
    assert not any("better than chance" in note for note in done.json["notes"])
    assert any("2 of 3 classes have no image here" in note for note in done.json["notes"])


def test_masks_that_do_not_match_are_named(work: Workspace, tmp_path: Path) -> None:
    first = sorted((work.data / "train").rglob("*.png"))[0].relative_to(work.data)
    target = tmp_path / "masks" / first
    target.parent.mkdir(parents=True)
    for pixels, says in (
        (np.eye(8, dtype=bool), "8x8 pixels, its image 16x16"),
        (np.zeros((16, 16), dtype=bool), "the mask is empty"),
        (np.ones((16, 16), dtype=bool), "the whole image"),
        (np.arange(256, dtype=np.uint8).reshape(16, 16), "256 grey levels"),
    ):
        Image.fromarray(pixels).save(target)
        done = cae_fast(*arguments(work, tmp_path / "o", "--masks", str(tmp_path / "masks")))
        assert done.code == 2
        assert says in done.err
        assert not (tmp_path / "o").exists()
    (tmp_path / "none").mkdir()
    done = cae_fast(*arguments(work, tmp_path / "o", "--masks", str(tmp_path / "none")))
    assert done.code == 2
    assert "has none of the images' masks" in done.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--methods", "cae,magic"), "unknown magic"),
        (("--samples", "1"), "--samples must be at least 10"),
        (("--mean-k", "0"), "--mean-k must be at least 1"),
        (("--smooth-sigma", "-1"), "--smooth-sigma must be at least 0"),
        (("--limit", "0"), "--limit must be at least 1"),
        (("--classes", "class 0,cat"), "unknown cat; known are class 0, class 1, class 2"),
        (("--classes", ","), "unknown nothing"),
        (("--split", "test"), "test"),
    ],
)
def test_wrong_options_are_one_line(
    work: Workspace, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    done = cae_fast(*arguments(work, tmp_path / "o"), *more)
    assert done.code == 2
    assert says in done.err
    assert "Traceback" not in done.err


def test_a_classifier_at_chance_is_said_before_anything_else(
    work: Workspace, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    files = sorted((work.data / "train").rglob("*.png"))
    for name in NAMES:
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
    for i, row in enumerate(rng.permutation(len(files))):
        name = f"data/train/class {i % 3}/{i}.png"
        (tmp_path / name).write_bytes(files[row].read_bytes())
    config = CAE.load(work.model).config
    assert config.class_names == NAMES
    done = cae_fast(
        "evaluate", str(work.model), str(work.classifier), str(tmp_path / "data"), "--bank",
        str(work.bank), "--split", "train", "--methods", "cae", "--no-sanity", "--draws", "100",
        "--out", str(tmp_path / "o"),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "not clearly better than chance" in done.err
    page = (tmp_path / "o" / "index.html").read_text(encoding="utf-8")
    assert page.index("not clearly better than chance") < page.index("Counterfactuals")
