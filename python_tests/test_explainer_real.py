# SPDX-License-Identifier: Apache-2.0
"""Real images through bank, explainer and report, with a random model and a fitted classifier.

The model is not trained, so nothing is expected of what it shows; that every part fits is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explain_cases import assert_same

import cae_fast as cf
from cae_fast.testing import toy_model


@pytest.fixture(params=["digits", "blood_cells", "brain_tumor_mri", "chest_xray"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with `train` and `test`."""
    if request.param == "digits":
        pytest.importorskip("sklearn")
        from cae_fast.digits import write_digits

        write_digits(tmp_path / "digits", size=16)
        return tmp_path / "digits"
    shared: Path = request.getfixturevalue("shared_dir")
    return shared / "data" / str(request.param)


def some(folder: Path, split: str, each: int) -> cf.ImageDataset:
    """The first images of every class."""
    dataset = cf.ImageDataset.from_folder(folder, split=split)
    labels = np.asarray(dataset.labels)
    rows = [np.flatnonzero(labels == k)[:each] for k in range(len(dataset.class_names))]
    return dataset.subset(np.concatenate(rows))


def fitted(images: Any, labels: Any, names: tuple[str, ...]) -> cf.Classifier:
    """A linear classifier by ridge regression."""
    x = images.reshape(len(images), -1).astype(np.float64)
    goal = np.eye(len(names))[labels]
    weight = x.T @ np.linalg.solve(x @ x.T + 10 * np.eye(len(x)), goal)

    def classify(images: Any) -> Any:
        return np.stack([row @ weight for row in images.reshape(len(images), -1).astype(float)])

    return cf.Classifier(classify, labels=names, name="ridge")


def knn_accuracy_by_hand(bank: cf.CodeBank, k: int) -> float:
    """Each image is voted for by the k nearest of other groups; ties go to the nearest of them."""
    right = []
    for code, group, label in zip(bank.codes, bank.groups, bank.labels, strict=True):
        others = np.array([other != group for other in bank.groups])
        distance = np.linalg.norm(bank.codes.astype(float) - code, axis=1)
        near = [int(bank.labels[i]) for i in np.argsort(distance, kind="stable") if others[i]][:k]
        right.append(max(near, key=near.count) == label)
    return float(np.mean(right))


def status_by_hand(explainer: cf.Explainer, found: cf.Explanation) -> str:
    """What the decoded points of the search's first round, and the reported one, add up to."""
    assert explainer.bank is not None
    ends = explainer.bank.codes[found.exemplar[:, 0]]
    frames = explainer.path(found.images, ends, [0, 0.25, 0.5, 0.75, 1])[0]
    hits = explainer.classifier(frames).argmax(axis=1) == found.target_class
    reported = explainer.classifier(found.counterfactual).argmax()
    assert reported == found.reached_class
    assert (reported == found.target_class) == hits.any()
    if hits[0]:
        return "reconstruction_flips"
    return "flipped" if hits.any() else "not_flipped"


def test_real_images_are_explained(folder: Path, tmp_path: Path) -> None:
    train, test = some(folder, "train", 12), some(folder, "test", 2)
    channels = cf.load_images(train.paths[:1]).shape[1]
    names = tuple(train.class_names)
    model = toy_model(
        image_size=32, in_channels=channels, num_classes=len(names), class_names=names
    )
    images = train.load(size=32, channels=channels)
    classifier = fitted(images, np.asarray(train.labels), names)
    bank = cf.CodeBank.build(model, train, classifier=classifier, thumbnails=True)
    assert bank.usable.mean() > 0.8
    assert bank.knn_accuracy(3) == pytest.approx(knn_accuracy_by_hand(bank, 3))
    bank.save(tmp_path / "bank.csv")

    explainer = cf.Explainer(model, classifier, bank=tmp_path / "bank.csv")
    asked = test.load(size=32, channels=channels)
    found = explainer.explain(asked, names=test.files, frames=3, second_try=False)
    assert (found.target_class != found.source_class).all()
    np.testing.assert_array_equal(found.logits_source, classifier(asked))
    assert found.status.tolist() == [status_by_hand(explainer, row) for row in found]
    assert np.isfinite(found.path_images).all()
    moved = (found.counterfactual != found.reconstruction).any(axis=(1, 2, 3))
    moved |= found.status == "reconstruction_flips"
    np.testing.assert_array_equal(found.saliency.max(axis=(1, 2)), moved)
    assert moved.any()
    np.testing.assert_array_equal(bank.labels[found.exemplar[:, 0]], found.target_class)
    assert_same(explainer.explain(asked[1:2], second_try=False), found[1])
    by_torch = cf.Explainer(model, classifier, bank=bank, backend="torch").explain(
        asked, second_try=False
    )
    assert (by_torch.status == found.status).mean() > 0.9
    found.save(tmp_path / "out")
    assert_same(cf.Explanation.load(tmp_path / "out"), found)
    found.to_html(tmp_path / "page.html")
    assert test.files[0] in (tmp_path / "page.html").read_text(encoding="utf-8")
