# SPDX-License-Identifier: Apache-2.0
"""Every kind of map, by name: from the explainer, the shell and the service."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from explain_cases import digits_explainer

import cae_fast as cf
from cae_fast.counterfactual_maps import path_ends
from cae_fast.demo import model_folder
from cae_fast.maps import MAP_KINDS, make_maps
from cae_fast.report import html_fragment


@pytest.fixture(scope="module")
def explainer() -> cf.Explainer:
    return digits_explainer()


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


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_a_function_gets_arrays_of_the_users_kind(
    explainer: cf.Explainer, images: np.ndarray, kind: str
) -> None:
    torch = pytest.importorskip("torch")
    seen: list[type] = []

    def classify(batch: Any) -> Any:
        seen.append(type(batch))
        return torch.from_numpy(explainer.classifier(batch.numpy()))

    mine = cf.Explainer(explainer.model, classify, bank=explainer.bank, backend="cpu")
    found = mine.explain(torch.from_numpy(images), saliency=kind)
    assert set(seen) == {torch.Tensor}
    wanted = explainer.explain(images, saliency=kind).saliency
    np.testing.assert_allclose(found.saliency.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", MAP_KINDS)
def test_maps_do_not_depend_on_how_many_images_are_in_flight(
    explainer: cf.Explainer, images: np.ndarray, kind: str
) -> None:
    most: list[int] = []

    def classify(batch: np.ndarray) -> np.ndarray:
        most.append(len(batch))
        return explainer.classifier(batch)

    one = cf.Explainer(explainer.model, classify, bank=explainer.bank, backend="cpu", max_batch=1)
    found = one.explain(images[:2], saliency=kind).saliency
    assert max(most) == 1
    wanted = explainer.explain(images[:2], saliency=kind).saliency
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_logits_that_are_not_finite_leave_the_plain_map(
    explainer: cf.Explainer, images: np.ndarray
) -> None:
    def classify(batch: np.ndarray) -> np.ndarray:
        logits = explainer.classifier(batch).copy()
        flat = np.abs(np.diff(batch, axis=3)).max(axis=(1, 2, 3)) < 0.3  # only what is blurred is
        logits[flat] = np.nan
        return logits

    mine = cf.Explainer(explainer.model, classify, bank=explainer.bank, backend="cpu")
    found = mine.explain(images, saliency="evidence")
    plain = explainer.explain(images)
    np.testing.assert_array_equal(found.status, plain.status)
    np.testing.assert_array_equal(found.saliency, plain.saliency)


def test_an_end_that_overflows_is_replaced_by_the_counterfactual(
    explainer: cf.Explainer, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explainer.explain(images[:2])
    ends = path_ends(explainer, found, np.arange(2))
    drawn = explainer.path(images[:2], found.exemplar, [1.0], reach=found.reach)
    np.testing.assert_array_equal(ends, np.clip(drawn[:, 0], -1, 1))
    drawn[1, 0, 0, 3, 3] = np.nan  # as half precision does where it overflows
    monkeypatch.setattr(explainer, "path", lambda *_, **__: drawn)
    broken = path_ends(explainer, found, np.arange(2))
    np.testing.assert_array_equal(broken[0], ends[0])
    np.testing.assert_array_equal(broken[1], np.clip(found.counterfactual[1], -1, 1))


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
    asked: list[int] = []

    def classify(batch: np.ndarray) -> np.ndarray:
        asked.append(len(batch))
        return explainer.classifier(batch)

    mine = cf.Explainer(explainer.model, classify, bank=explainer.bank, backend="cpu")
    with pytest.raises(ValueError, match="'mean-k' looks exemplars up in the bank"):
        mine.explain(images, exemplars=images, target="any", saliency="mean-k")
    assert not asked  # before anything is searched


def test_reports_say_which_map_they_show(explainer: cf.Explainer, images: np.ndarray) -> None:
    found = explainer.explain(images[:1], saliency="edit")
    assert found.flipped.all()
    page = html_fragment(found, images[:1], title="-")
    assert "Fewest pixels that change the class" in page
    assert "Where it changes" not in page
    missed = explainer.explain(images[:1], saliency="edit", min_probability=1.0)
    assert list(missed.status) == ["not_flipped"]
    page = html_fragment(missed, images[:1], title="-")
    assert "Where it changes" in page
    assert "Fewest pixels" not in page
