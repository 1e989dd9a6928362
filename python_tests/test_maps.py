# SPDX-License-Identifier: Apache-2.0
"""Every kind of map, by name: from the explainer, the shell and the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cae_fast as cf
from cae_fast.demo import model_folder
from cae_fast.maps import MAP_KINDS, make_maps
from cae_fast.report.from_files import explain_files


@pytest.fixture(scope="module")
def explainer() -> cf.Explainer:
    folder = model_folder("digits")
    return cf.Explainer(
        cf.CAE.load(folder / "model.safetensors"),
        cf.Classifier.load(folder / "classifier.onnx"),
        bank=folder / "bank.csv",
        backend="cpu",
    )


@pytest.fixture(scope="module")
def images(explainer: cf.Explainer) -> np.ndarray:
    files = sorted((model_folder("digits") / "samples").glob("*.png"))[:4]
    return cf.load_images(files, size=explainer.model.config.image_size)


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_the_explainer_gives_the_map_by_its_name(
    explainer: cf.Explainer, images: np.ndarray, kind: str
) -> None:
    plain = explainer.explain(images, frames=17)
    found = explainer.explain(images, saliency=kind)
    assert found.meta["parameters"]["saliency"] == kind
    assert found.path_images is None
    np.testing.assert_array_equal(found.saliency, make_maps(kind, explainer, plain).saliency)
    np.testing.assert_array_equal(found.difference, plain.difference)
    assert (kind == "difference") == bool(np.array_equal(found.saliency, plain.saliency))


def test_maps_are_of_the_kind_that_went_in(explainer: cf.Explainer, images: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    found = explainer.explain(torch.from_numpy(images), saliency="edit")
    assert isinstance(found.saliency, torch.Tensor)
    wanted = explainer.explain(images, saliency="edit").saliency
    np.testing.assert_array_equal(found.saliency.numpy(), wanted)


def test_frames_that_were_asked_for_stay(explainer: cf.Explainer, images: np.ndarray) -> None:
    found = explainer.explain(images[:1], saliency="weighted", frames=5)
    assert found.path_images.shape[1] == 5


def test_no_image_gives_no_map(explainer: cf.Explainer, images: np.ndarray) -> None:
    for kind in MAP_KINDS:
        assert explainer.explain(images[:0], saliency=kind).saliency.shape == (0, 32, 32)


def test_a_kind_that_is_none_is_refused(explainer: cf.Explainer, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"saliency must be one of difference, .*got 'heat'"):
        explainer.explain(images, saliency="heat")
    with pytest.raises(ValueError, match="saliency must be one of"):
        explainer.explain(images, saliency=None)
    with pytest.raises(ValueError, match="no k nearest"):
        explainer.explain(images, exemplars=images, target="any", saliency="mean-k")


def test_reports_say_which_map_they_show(
    explainer: cf.Explainer, images: np.ndarray, tmp_path: Path
) -> None:
    file = sorted((model_folder("digits") / "samples").glob("*.png"))[0]
    explain_files(explainer, [file], tmp_path / "out", saliency="edit", frames=0)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Fewest pixels that change the class" in page
    assert "Where it changes" not in page
