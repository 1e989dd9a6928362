# SPDX-License-Identifier: Apache-2.0
"""Second paths: where the first one begins on the wrong side, or leads nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from explain_cases import FIELDS, World, assert_same, bank_of_rows, constant, digits_explainer
from second_cases import SEVEN, SeesSevens, Softly, samples

import cae_fast as cf
from cae_fast.classifier_outputs import softmax
from cae_fast.counterfactual_maps import path_ends
from cae_fast.demo import model_folder
from cae_fast.minimal_edits import minimal_edits
from cae_fast.saliency import difference_saliency
from cae_fast.second_search import START_PROBABILITY


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.float32]:
    return samples()


@pytest.fixture(scope="module")
def astray(images: npt.NDArray[np.float32]) -> cf.Explainer:
    """Of some samples the reconstruction is read as a seven, though no sample is."""
    return digits_explainer(SeesSevens(images))


@pytest.fixture(scope="module")
def both(
    astray: cf.Explainer, images: npt.NDArray[np.float32]
) -> tuple[cf.Explanation, cf.Explanation]:
    """Explanations towards sevens without and with a second try."""
    once, twice = (astray.explain(images, SEVEN, frames=3, second_try=on) for on in (False, True))
    return once, twice


def wrong_starts(once: cf.Explanation) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(once.status == "reconstruction_flips")
    assert 2 <= len(rows) < len(once) - 2
    return rows


def test_a_path_begins_anew_where_the_image_is_read_as_itself(
    both: tuple[cf.Explanation, cf.Explanation],
) -> None:
    once, twice = both
    rows = wrong_starts(once)
    assert (once.reconstructed_class[rows] == SEVEN).all()
    assert (twice.reconstructed_class == once.reconstructed_class).all()
    begun = np.flatnonzero(twice.searched_again & (once.status == "reconstruction_flips"))
    assert len(begun) >= 2
    for i in begun:
        assert twice.path_t[i][0] == 0
        chance = softmax(twice.path_logits[i][0])
        assert chance.argmax() == twice.source_class[i]
        assert chance.max() > START_PROBABILITY - 1e-3
        assert twice.status[i] in ("flipped", "not_flipped")
    assert (twice.status == "flipped").sum() > (once.status == "flipped").sum()
    assert (twice.evaluations[rows] > once.evaluations[rows]).all()


def test_a_second_path_is_the_path_that_is_told_of(
    astray: cf.Explainer,
    images: npt.NDArray[np.float32],
    both: tuple[cf.Explanation, cf.Explanation],
) -> None:
    twice = both[1]
    individual = astray.encode(images).individual
    rows = np.flatnonzero(twice.searched_again & (twice.status == "flipped"))
    assert len(rows)
    for i in rows:
        start, end = twice.second_path[i]
        t = twice.t_flip[i]
        codes = np.stack([start, (1 - t) * start + t * end, end]).astype(np.float32)
        decoded = astray.decode(individual[[i, i, i]], codes)
        np.testing.assert_allclose(decoded[0], twice.reconstruction[i], atol=1e-5)
        np.testing.assert_allclose(decoded[1], twice.counterfactual[i], atol=1e-4)
        shown = twice.path_images[i]
        np.testing.assert_allclose(shown[[0, 2]], decoded[[0, 2]], atol=1e-5)
        middle = astray.path_between(images[[i]], twice.second_path[i][None], [0.5])[0, 0]
        np.testing.assert_allclose(shown[1], middle, atol=1e-5)
        # Unlike the end, which is as far beyond the exemplars as of first paths.
        mean = astray.bank.codes[twice.exemplar[i]].mean(axis=0)
        np.testing.assert_allclose(end, start + twice.reach * (mean - start), atol=1e-4)
    ends = path_ends(astray, twice, rows)
    np.testing.assert_allclose(ends, np.clip(twice.path_images[rows, -1], -1, 1), atol=1e-5)
    difference, saliency = difference_saliency(
        twice.counterfactual[rows], twice.reconstruction[rows]
    )
    np.testing.assert_array_equal(twice.difference[rows], difference)
    np.testing.assert_array_equal(twice.saliency[rows], saliency)


def test_images_that_the_first_path_explains_are_left_alone(
    both: tuple[cf.Explanation, cf.Explanation],
) -> None:
    once, twice = both
    same = np.flatnonzero(once.status == "flipped")
    same = same[once.reconstructed_class[same] == once.source_class[same]]
    assert len(same) >= 2
    assert not twice.searched_again[same].any()
    assert_same(once[same], twice[same])
    np.testing.assert_array_equal(once.path_images[same], twice.path_images[same])


def test_edits_take_pixels_from_the_end_of_the_second_path(
    astray: cf.Explainer, both: tuple[cf.Explanation, cf.Explanation]
) -> None:
    twice = both[1]
    rows = np.flatnonzero(twice.searched_again & (twice.status == "flipped"))
    part = twice[rows]
    edits = minimal_edits(astray, part)
    assert edits.flipped.any()
    for i in np.flatnonzero(edits.flipped):
        changed = edits.images[i] != part.images[i]
        pasted = np.abs(edits.images[i] - path_ends(astray, part, np.array([i]))[0])[changed]
        assert pasted.max() < 1e-6 or not edits.edit[i].any()
    assert edits.flipped.mean() > minimal_edits(astray, both[0][rows]).flipped.mean()


def test_a_path_that_leads_nowhere_is_led_to_the_middle_of_the_class(
    images: npt.NDArray[np.float32],
) -> None:
    explainer = digits_explainer()
    asked: dict[str, Any] = {"exemplars": "nearest", "k": 1, "reach": 1, "target": 0}
    once = explainer.explain(images, second_try=False, **asked)
    twice = explainer.explain(images, **asked)
    stuck = np.flatnonzero(once.status == "not_flipped")
    assert len(stuck)
    assert (twice.status[stuck] == "flipped").any()
    bank = explainer.bank
    assert bank is not None
    of_class = np.flatnonzero(bank.usable & (bank.labels == 0))
    middle = bank.codes[of_class].mean(axis=0)
    central = of_class[((bank.codes[of_class] - middle) ** 2).sum(axis=1).argmin()]
    for i in stuck:
        assert twice.evaluations[i] > once.evaluations[i]
        if twice.status[i] == "flipped":
            assert twice.exemplar[i] == central
            assert twice.exemplar_names[i] == (bank.names[central],)
        else:
            assert_same_but_for_decodes(once[[i]], twice[[i]])


def assert_same_but_for_decodes(one: cf.Explanation, other: cf.Explanation) -> None:
    for name in set(FIELDS) - {"evaluations"}:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert not other.searched_again.any()


def test_what_never_flips_is_told_as_the_first_path_had_it() -> None:
    world = World(count=4)
    explainer = world.explainer(constant([1, 0.5, 0]), bank=world.bank(), backend="cpu")
    once = explainer.explain(world.images, second_try=False)
    twice = explainer.explain(world.images)
    assert set(once.status) == {"not_flipped"}
    assert_same_but_for_decodes(once, twice)
    assert (twice.evaluations > once.evaluations).all()
    assert twice.second_path == []


def test_given_exemplars_are_the_only_ones(images: npt.NDArray[np.float32]) -> None:
    explainer = digits_explainer(SeesSevens(images))
    bank = explainer.bank
    assert bank is not None
    rows = bank.nearest(explainer.encode(images).class_code, SEVEN)
    given = explainer.explain(images, SEVEN, rows)
    assert given.meta["parameters"]["second_try"] is False
    assert not given.searched_again.any()
    assert (given.status == "reconstruction_flips").any()


@pytest.mark.parametrize(
    "asked", [{"path": "graph"}, {"target": "any"}, {"max_batch": 3}], ids=repr
)
def test_all_ways_of_searching(
    images: npt.NDArray[np.float32],
    both: tuple[cf.Explanation, cf.Explanation],
    asked: dict[str, Any],
) -> None:
    options = dict(asked)
    batch = {"max_batch": options.pop("max_batch")} if "max_batch" in options else {}
    explainer = digits_explainer(SeesSevens(images), **batch)
    found = explainer.explain(images, **({"target": SEVEN, "frames": 3} | options))
    again = np.flatnonzero(found.searched_again)
    assert len(again)
    for i in again:
        np.testing.assert_allclose(found.path_images[i, 0], found.reconstruction[i], atol=1e-5)
    if batch:
        assert_same(found, both[1])
    if "path" in asked:
        assert max(len(path) for path in found.second_path) > 2


def test_torch_says_the_same(
    images: npt.NDArray[np.float32], both: tuple[cf.Explanation, cf.Explanation]
) -> None:
    pytest.importorskip("torch")
    folder = model_folder("digits")
    explainer = cf.Explainer(
        cf.CAE.load(folder / "model.safetensors"),
        SeesSevens(images),
        bank=folder / "bank.csv",
        backend="torch",
    )
    found = explainer.explain(images, SEVEN)
    np.testing.assert_array_equal(found.status, both[1].status)
    np.testing.assert_array_equal(found.searched_again, both[1].searched_again)
    np.testing.assert_allclose(found.reconstruction, both[1].reconstruction, atol=1e-3)


def test_folders_and_json_keep_second_paths(
    both: tuple[cf.Explanation, cf.Explanation], tmp_path: Path
) -> None:
    import json

    twice = both[1]
    twice.save(tmp_path / "out")
    read = cf.Explanation.load(tmp_path / "out")
    np.testing.assert_array_equal(read.searched_again, twice.searched_again)
    np.testing.assert_array_equal(read.reconstructed_class, twice.reconstructed_class)
    rows = np.flatnonzero(twice.searched_again)
    for i in rows:
        np.testing.assert_array_equal(read.second_path[i], twice.second_path[i])
    said = json.loads(twice.to_json())["explanations"]
    assert [len(one["second_path"]) > 0 for one in said] == twice.searched_again.tolist()
    table = twice.table_rows()
    assert [row["second_path"] for row in table] == twice.searched_again.tolist()
    assert table[rows[0]]["reconstructed_class"] == str(SEVEN)
    both[0].save(tmp_path / "once")
    assert cf.Explanation.load(tmp_path / "once").second_path == []


@pytest.mark.parametrize(
    "vertices",
    [np.zeros((2, 2, 8)), np.zeros((1, 2, 7)), np.full((1, 2, 8), np.nan), np.zeros((1, 0, 8))],
    ids=lambda value: str(value.shape),
)
def test_wrong_vertices(images: npt.NDArray[np.float32], vertices: Any) -> None:
    with pytest.raises(ValueError, match=r"vertices must be finite class codes \[1, V, 8\]"):
        digits_explainer().path_between(images[:1], vertices, [0.0, 1.0])


def test_a_start_may_move_away_from_the_target(images: npt.NDArray[np.float32]) -> None:
    """Where the bank has no exemplars of the image's own class."""
    whole = digits_explainer()
    bank = whole.bank
    assert bank is not None
    classifier = SeesSevens(images)
    own = int(whole.classifier(images[:1]).argmax())
    without = bank_of_rows(bank, np.flatnonzero(bank.labels != own))
    explainer = cf.Explainer(whole.model, classifier, bank=without, backend="cpu")
    codes = explainer.encode(images[:5]).class_code
    found = explainer.explain(images[:5], SEVEN)
    moved = [i for i in range(5) if found.searched_again[i] and found.source_class[i] == own]
    assert moved
    for i in moved:
        assert found.path_logits[i][0].argmax() == own
        exemplar = without.codes[found.exemplar[i]].mean(axis=0)
        way = found.second_path[i][0] - codes[i]
        assert way @ (exemplar - codes[i]) < 0


@pytest.mark.parametrize("target", [SEVEN, 0, "any"])
def test_starts_of_an_unsure_classifier(images: npt.NDArray[np.float32], target: Any) -> None:
    """It is nowhere as sure as is asked first: any point of the class will do, and no other."""
    explainer = digits_explainer(Softly(SeesSevens(images), by=6))
    once = explainer.explain(images[:5], target, second_try=False)
    twice = explainer.explain(images[:5], target)
    assert (once.start_class != once.source_class).any()
    chance = softmax(explainer.classifier(twice.reconstruction))
    assert chance[np.arange(5), twice.source_class].max() < START_PROBABILITY
    moved = np.flatnonzero(twice.searched_again & (once.start_class != once.source_class))
    assert len(moved)
    np.testing.assert_array_equal(twice.start_class[moved], twice.source_class[moved])


def test_a_class_with_too_few_rows_has_no_middle() -> None:
    """Paths to any other class may lead to rows of several; a second one needs k of one class."""
    world = World(count=4)
    bank = world.bank()
    first = [np.flatnonzero(bank.usable & (bank.labels == label)) for label in range(3)]
    bank = bank_of_rows(bank, np.concatenate([first[0], first[1][:2], first[2][:2]]))
    explainer = world.explainer(constant([1, 0.5, 0]), bank=bank, backend="cpu")
    asked: dict[str, Any] = {"target": "any", "k": 4, "exemplars": "nearest"}
    once = explainer.explain(world.images, second_try=False, **asked)
    assert set(once.status) == {"not_flipped"}
    assert_same(once, explainer.explain(world.images, **asked))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_gpu_searches_again_as_the_host_does(
    gpu: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known of the first path, pictures and maps, is replaced where another is told of."""
    torch = pytest.importorskip("torch")
    world = World(count=4)
    explainer = world.explainer(bank=world.bank(60), backend="cuda", device=gpu, max_batch=4)
    images: Any = world.images
    if kind == "torch":
        images = torch.from_numpy(world.images).to("cpu" if gpu == "emu" else gpu)
    asked: dict[str, Any] = {"target": 1, "tolerance": 1 / 8, "frames": 2, "k": 1, "reach": 1}
    once = explainer.explain(images, second_try=False, **asked).numpy()
    twice = explainer.explain(images, **asked).numpy()
    again = np.flatnonzero(twice.searched_again)
    assert len(again)
    with monkeypatch.context() as patch:
        patch.setattr(explainer, "_on_device", lambda *_: None)
        stepped = explainer.explain(world.images, **asked)
    for name in set(FIELDS) - {"evaluations"}:  # the host looks at more points at a time
        np.testing.assert_array_equal(getattr(twice, name), getattr(stepped, name), name)
    np.testing.assert_array_equal(twice.path_images, stepped.path_images)
    difference, saliency = difference_saliency(twice.counterfactual, twice.reconstruction)
    np.testing.assert_allclose(twice.difference[again], difference[again], atol=1e-6)
    np.testing.assert_allclose(twice.saliency[again], saliency[again], atol=1e-6)
    assert np.abs(twice.difference[again] - once.difference[again]).max() > 1e-3


@pytest.mark.parametrize("wrong", ["no", 1, None], ids=repr)
def test_a_second_try_is_true_or_false(images: npt.NDArray[np.float32], wrong: Any) -> None:
    with pytest.raises(ValueError, match="second_try must be True or False"):
        digits_explainer().explain(images[:1], second_try=wrong)


def test_damaged_second_paths(both: tuple[cf.Explanation, cf.Explanation], tmp_path: Path) -> None:
    both[1].save(tmp_path / "out")
    file = tmp_path / "out" / "explanation.npz"
    with np.load(file) as kept:
        arrays = dict(kept)
    row = int(np.flatnonzero(both[1].searched_again)[0])
    for name, value in (
        (f"second_path_{row}", np.float32(1)),
        ("reconstructed_class", arrays["reconstructed_class"][:2]),
    ):
        np.savez(file, **{**arrays, name: value})
        with pytest.raises(cf.CAEError):
            cf.Explanation.load(tmp_path / "out")
