# SPDX-License-Identifier: Apache-2.0
"""The explanation as a value: parts of it, saved and loaded, as JSON, page, figure and table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explain_cases import FIELDS, TARGET, World, assert_same
from PIL import Image

import cae_fast as cf


@pytest.fixture(scope="module")
def mixed() -> cf.Explanation:
    """Every status but already_target and reconstruction_flips."""
    world = World(5)

    def moody(images: Any) -> Any:
        logits = world.classifier(images)
        for i, image in enumerate(np.asarray(images)):
            if np.array_equal(image, world.images[1]):
                logits[i, 0] = np.nan
        return logits

    images = world.images.copy()
    images[2, 0, 0, 0] = np.inf
    images[3] = world.images[3] * 0.5
    return world.explainer(moody, bank=world.bank()).explain(
        images,
        TARGET,
        world.ends,
        frames=3,
        names=["a", "b<i>", "c", "d", "e"],
    )


def test_what_is_explained_is_mixed(mixed: cf.Explanation) -> None:
    assert {"flipped", "non_finite", "rejected"} <= set(mixed.status)
    assert "5 images" in repr(mixed)


def test_parts(mixed: cf.Explanation) -> None:
    one = mixed[2]
    assert len(one) == 1
    assert one.names == ["c"]
    assert list(one.meta["rejected"]) == [0]
    assert mixed[0].meta["rejected"] == {}
    assert mixed[1:4].status.tolist() == mixed.status[1:4].tolist()
    assert mixed[[4, 2]].meta["rejected"] == {1: mixed.meta["rejected"][2]}
    assert mixed[-1].names == ["e"]
    assert mixed[mixed.flipped].flipped.all()
    assert [part.names[0] for part in mixed] == mixed.names
    assert mixed[3:].path_images.shape[0] == 2
    with pytest.raises(IndexError):
        mixed[5]


def test_save_and_load(mixed: cf.Explanation, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    mixed.save(folder)
    again = cf.Explanation.load(folder)
    assert_same(again, mixed)
    np.testing.assert_array_equal(again.images, mixed.images)
    np.testing.assert_array_equal(again.path_images, mixed.path_images)
    for name in ("names", "class_names", "exemplar_names"):
        assert getattr(again, name) == getattr(mixed, name)
    assert again.meta == mixed.meta
    pictures = sorted(path.name for path in (folder / "images").iterdir())
    assert "00000_counterfactual.png" in pictures
    assert "00002_image.png" in pictures
    assert "00002_counterfactual.png" not in pictures
    assert "00001_saliency.png" not in pictures
    assert Image.open(folder / "images" / "00000_saliency.png").size == (16, 16)
    assert not [path for path in tmp_path.iterdir() if path != folder]
    with pytest.raises(cf.CAEError, match="not empty"):
        mixed.save(folder)
    mixed[0].save(folder, overwrite=True)
    assert len(cf.Explanation.load(folder)) == 1
    torch_version = mixed.like(torch.zeros(1))
    torch_version.save(tmp_path / "torch")
    assert_same(cf.Explanation.load(tmp_path / "torch"), mixed)


@pytest.mark.parametrize("template", [np.zeros(1), torch.zeros(1)], ids=["numpy", "torch"])
def test_a_selection_of_nothing(mixed: cf.Explanation, template: Any, tmp_path: Path) -> None:
    result = mixed.like(template)
    flipped = result[result.flipped]
    assert len(flipped) == (mixed.status == "flipped").sum()
    nothing = flipped[flipped.status == "not_flipped"]
    nothing.save(tmp_path / "out")
    again = cf.Explanation.load(tmp_path / "out")
    assert len(again) == 0
    assert_same(again, nothing.numpy())
    assert again.class_names == mixed.class_names
    assert not list((tmp_path / "out" / "images").iterdir())
    assert json.loads(nothing.to_json())["explanations"] == []
    nothing.to_html(tmp_path / "page.html")
    assert "<article" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert nothing.table_rows() == []
    assert "0 images" in repr(nothing)


def test_what_did_not_flip_is_not_called_a_counterfactual(tmp_path: Path) -> None:
    world = World(1)
    found = world.explainer(lambda x: [[1, 0, 0]] * len(x)).explain(world.images, 1, world.ends)
    found.save(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "images").iterdir()}
    assert names == {
        "00000_image.png",
        "00000_reconstruction.png",
        "00000_not_a_counterfactual_image.png",
        "00000_not_a_counterfactual_saliency.png",
    }


def test_load_refuses_damage(mixed: cf.Explanation, tmp_path: Path) -> None:
    with pytest.raises(cf.CAEError, match="not a readable explanation folder"):
        cf.Explanation.load(tmp_path)
    mixed.save(tmp_path / "out")
    npz, text = tmp_path / "out" / "explanation.npz", tmp_path / "out" / "explanation.json"
    data = npz.read_bytes()
    npz.write_bytes(data[: len(data) // 2])
    with pytest.raises(cf.CAEError, match="not a readable explanation folder"):
        cf.Explanation.load(tmp_path / "out")
    npz.write_bytes(data)
    said = json.loads(text.read_text())
    text.write_text(json.dumps(said | {"explanations": said["explanations"][:2]}))
    with pytest.raises(cf.CAEError, match="different numbers of images"):
        cf.Explanation.load(tmp_path / "out")
    text.write_text("[" * 100_000)
    with pytest.raises(cf.CAEError, match="not a readable explanation folder"):
        cf.Explanation.load(tmp_path / "out")
    text.write_text(json.dumps(said | {"format": 99}))
    with pytest.raises(cf.CAEError, match="format version 99"):
        cf.Explanation.load(tmp_path / "out")


def test_save_into_a_file(mixed: cf.Explanation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(cf.CAEError, match="is a file"):
        mixed.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_json_is_valid_and_complete(mixed: cf.Explanation) -> None:
    said = json.loads(mixed.to_json(), parse_constant=lambda text: pytest.fail(f"{text} in JSON"))
    assert said["class_names"] == ["0", "1", "2"]
    assert said["meta"]["rejected"].keys() == {"2"}
    first, poisoned, refused = said["explanations"][:3]
    assert first["t_flip"] == pytest.approx(float(mixed.t_flip[0]))
    assert first["flipped"] is True
    assert len(first["path_t"]) == len(first["path_logits"]) == first["evaluations"]
    assert poisoned["t_flip"] is None
    assert refused["bracket"] == [None, None]
    assert refused["logits_source"] == [None] * 3
    pictures = {"counterfactual", "reconstruction", "difference", "saliency"}
    written = set(FIELDS) - pictures - {"searched_again"} | {"second_path"}
    assert written <= first.keys()


def test_saliency_at_the_original_resolution(mixed: cf.Explanation) -> None:
    large = mixed.saliency_at(0, 40, 64)
    assert large.shape == (40, 64)
    assert large.dtype == np.float32
    assert 0 <= large.min() < large.max() <= 1
    np.testing.assert_allclose(mixed.saliency_at(0, 16, 16), mixed.saliency[0], atol=1e-6)


@pytest.mark.parametrize("template", [np.zeros(1), torch.zeros(1)], ids=["numpy", "torch"])
def test_page_figure_and_table(mixed: cf.Explanation, template: Any, tmp_path: Path) -> None:
    shown = mixed.like(template)
    shown.to_html(tmp_path / "page.html", title="A & B", notes=["one note"])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A &amp; B" in page
    assert "one note" in page
    assert "b&lt;i&gt;" in page
    assert "b<i>" not in page
    fragment = shown._repr_html_()
    assert "b&lt;i&gt;" in fragment
    rows = shown.table_rows()
    assert [row["status"] for row in rows] == mixed.status.tolist()
    assert rows[2]["reason"] == mixed.meta["rejected"][2]
    figure = shown.plot()
    figure.savefig(tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").size[0] > 100
