# SPDX-License-Identifier: Apache-2.0
"""Measures and views of a bank's codes, strips along directions, and the verb `manifold`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_workspace import CLASS_NAMES, Workspace, cae_fast, make_workspace
from PIL import Image

import cae_fast as cf
from cae_fast.backends import select_backend
from cae_fast.manifold.choice import default_k
from cae_fast.manifold.directions import make_strips
from cae_fast.manifold.measures import Principal, centre_accuracy, knn_accuracies
from cae_fast.manifold.views import make_views
from cae_fast.testing import random_images, toy_classifier, toy_model


def bank_of(codes: Any, labels: Any, groups: Any = None) -> cf.CodeBank:
    count = len(codes)
    return cf.CodeBank(
        codes=np.asarray(codes, dtype=np.float32),
        names=[f"{i}.png" for i in range(count)],
        groups=[str(i) for i in range(count)] if groups is None else groups,
        labels=np.asarray(labels),
        predicted=np.asarray(labels),
        class_names=("a", "b"),
        model_sha256="0" * 64,
    )


def test_dimensions_are_counted() -> None:
    """Variances 1, 1, 0.02 and 0: two directions and a trace, worked by hand."""
    generator = np.random.default_rng(0)
    axes, _ = np.linalg.qr(generator.normal(size=(4, 4)))
    unit, _ = np.linalg.qr(np.column_stack([np.ones(400), generator.normal(size=(400, 3))]))
    points = unit[:, 1:] * np.sqrt(399 * np.array([1, 1, 0.02]))
    codes = points @ axes[:3] + 5
    principal = Principal.of(codes)
    np.testing.assert_allclose(principal.variance, [1, 1, 0.02, 0], atol=1e-9)
    assert principal.participation == pytest.approx(2.02**2 / 2.0004)
    assert (principal.components(0.9), principal.components(0.991)) == (2, 3)
    np.testing.assert_allclose(principal.axes @ principal.axes.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(principal.restore(principal.project(codes)), codes)


def test_codes_that_do_not_vary_use_no_dimension() -> None:
    principal = Principal.of(np.ones((5, 3)))
    assert principal.participation == 0
    assert principal.components(0.99) == 0
    np.testing.assert_array_equal(principal.shares, 0)
    assert Principal.of(np.ones((1, 3))).participation == 0


def test_accuracies_leave_groups_out() -> None:
    """Twins of one group vouch for each other only until their group is left out."""
    codes = [[0.0], [0.01], [1.0], [1.01]]
    labels = [0, 0, 1, 1]
    alone = bank_of(codes, labels)
    twins = bank_of(codes, labels, ["x", "x", "y", "y"])
    assert knn_accuracies(alone)[1] == 1
    assert knn_accuracies(twins)[1] == 0
    assert knn_accuracies(alone)[15] is None
    assert centre_accuracy(alone) == 1
    with pytest.raises(cf.BankError, match="two groups"):
        centre_accuracy(twins)


def test_a_curved_class_is_not_near_its_centre() -> None:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    generator = np.random.default_rng(0)
    bank = bank_of(np.concatenate([ring, generator.normal(0, 0.1, (40, 2))]), [0] * 40 + [1] * 40)
    assert knn_accuracies(bank)[5] == 1
    assert centre_accuracy(bank) < 0.8


def test_the_default_number_of_exemplars_fits_the_bank() -> None:
    assert default_k(bank_of(np.zeros((3, 1)), [0, 0, 1])) == 1
    assert default_k(bank_of(np.zeros((60, 1)), [0] * 40 + [1] * 20)) == 5
    assert default_k(bank_of(np.zeros((60, 1)), [0] * 60)) == 15
    assert default_k(bank_of(np.zeros((400, 1)), [0, 1] * 200)) == 20


def test_views_keep_neighbours_and_place_new_codes() -> None:
    generator = np.random.default_rng(0)
    codes = np.concatenate([generator.normal(at, 0.1, (20, 3)) for at in (0, 4)])
    new = np.array([codes[3], codes[30] + 0.01])
    views, missing = make_views(codes, new, names=["pca", "tsne"], seed=1)
    assert not missing
    for view in views:
        gaps = np.linalg.norm(view.placed[:, None] - view.points, axis=2)
        assert (gaps.argmin(axis=1) < 20).tolist() == [True, False]
        assert np.isfinite(view.points).all()
    assert views[0].placed[0] == pytest.approx(views[0].points[3])


def test_views_of_few_or_equal_codes() -> None:
    few = np.eye(3)[:, :1]
    views, missing = make_views(few, few[:0], names=None)
    assert [view.name for view in views] == ["pca"]
    assert "at least 5 codes" in missing["tsne"]
    equal, _ = make_views(np.ones((6, 2)), np.ones((1, 2)), names=["pca", "tsne"])
    assert all(np.isfinite(view.points).all() for view in equal)
    with pytest.raises(ValueError, match="views must be of"):
        make_views(few, few[:0], names=["map"])
    with pytest.raises(ValueError, match="at least 5"):
        make_views(few, few[:0], names=["tsne"])


@pytest.mark.slow
def test_umap() -> None:
    pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    codes = np.concatenate([generator.normal(at, 0.1, (15, 3)) for at in (0, 4)])
    (view,), _ = make_views(codes, codes[:1] + 1e-3, names=["umap"])
    near = np.linalg.norm(view.points - view.placed[0], axis=1).argmin()
    assert near < 15


def test_strips_move_one_coordinate() -> None:
    model = toy_model()
    backend = select_backend("cpu", model)
    images = random_images(model.config, 2)
    codes = np.random.default_rng(0).normal(0, [3, 1, 0.1, 0.1], (50, 4)).astype(np.float32)
    classifier = cf.Classifier(toy_classifier(model.config))
    strips = make_strips(backend, classifier, codes, images, ["a", "b"], directions=2)
    assert [(s.direction, s.name) for s in strips] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    principal = Principal.of(codes)
    individual, own = backend.encode(images[1:])
    moved = principal.project(own)
    moved[0, 1] = strips[3].positions[0] * np.sqrt(principal.variance[1])
    code = principal.restore(moved).astype(np.float32)
    expected = backend.decode(individual, code, np.zeros(1, dtype=np.int32))
    np.testing.assert_allclose(strips[3].images[0], expected[0], atol=1e-5)
    assert strips[3].probs is not None
    np.testing.assert_allclose(strips[3].probs.sum(axis=1), 1)
    assert make_strips(backend, None, codes, images[:1], ["a"])[0].probs is None
    assert make_strips(backend, None, codes * 0, images, ["a", "b"]) == []


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def arguments(workspace: Workspace, out: Path, *more: str) -> list[str]:
    return ["manifold", str(workspace.bank), "--out", str(out), "--views", "pca,tsne", *more]


def test_the_verb_writes_everything(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = ("--model", str(workspace.model), "--classifier", str(workspace.classifier))
    options = (*both, "--with", str(workspace.images), "--explain", "3", "--json")
    done = cae_fast(*arguments(workspace, out, *options))
    assert done.code == 0, done.err
    names = {path.name for path in out.iterdir()}
    pictures = {"pca.png", "tsne.png", "graph.png", "variance.png", "direction-1.png"}
    assert pictures | {"index.html", "manifold.json", "coordinates.csv"} <= names
    for name in pictures:
        with Image.open(out / name) as opened:
            assert len(np.unique(np.asarray(opened.convert("L")))) > 20
    found = json.loads((out / "manifold.json").read_text())
    assert {**found, "page": str(out / "index.html")} | {"figures": 0} == done.json | {"figures": 0}
    assert found["explained"] == 3 + 4
    assert 0 < found["participation_ratio"] <= 4
    assert [row["name"] for row in found["placed"]] == ["0.png", "1.png", "2.png", "3.png"]
    with open(out / "coordinates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["images"] + 4
    assert {row["label"] for row in rows} == {*CLASS_NAMES, ""}
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<template data-point=") == 7
    assert "<b>oval" not in page
    again = cae_fast(*arguments(workspace, out))
    assert again.code == 2
    assert "--overwrite" in again.err


def test_a_bank_alone_is_enough(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cae_fast(*arguments(workspace, out))
    assert done.code == 0, done.err
    assert "dimensions used" in done.out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<template" not in page
    assert not (out / "direction-1.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--with", "IMAGES"], "give --model"),
        (["--classifier", "CLASSIFIER"], "give --model"),
        (["--views", "map"], "views must be of pca, tsne, umap"),
        (["--model", "MODEL", "--data", "nowhere"], "no such folder"),
        (["--model", "MODEL", "--with", "nowhere.png"], "no such file"),
        (["--model", "CLASSIFIER"], "safetensors"),
        (["--explain", "-1"], "explain must be"),
        (["--model", "MODEL", "--classifier", "CLASSIFIER", "--path", "arc"], "'line', 'graph'"),
        (["--model", "OTHER"], "the bank was made by model"),
    ],
)
def test_bad_input_is_one_line(
    workspace: Workspace, tmp_path: Path, options: list[str], words: str
) -> None:
    toy_model(seed=7, class_names=CLASS_NAMES).save(tmp_path / "other.safetensors")
    named = {
        "IMAGES": workspace.images,
        "CLASSIFIER": workspace.classifier,
        "MODEL": workspace.model,
        "OTHER": tmp_path / "other.safetensors",
    }
    given = [str(named.get(option, option)) for option in options]
    start = ["manifold", str(workspace.bank), "--out", str(tmp_path / "out")]
    few = [] if "--views" in options else ["--views", "pca"]
    done = cae_fast(*start, *few, *given)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert words in done.err
    assert not (tmp_path / "out").exists()
