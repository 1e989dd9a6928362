# SPDX-License-Identifier: Apache-2.0
"""The bank of the bundled digits as other classifiers see it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cae_fast as cf
from cae_fast.data import ImageDataset
from cae_fast.demo import model_folder
from cae_fast.evaluation.sanity_bank import BankImages, bank_images, rejudged

SIDE = 32


@pytest.fixture(scope="module")
def digits() -> cf.Explainer:
    demo = model_folder("digits")
    return cf.Explainer(
        cf.CAE.load(demo / "model.safetensors"),
        cf.Classifier.load(demo / "classifier.onnx"),
        bank=cf.CodeBank.load(demo / "bank.csv"),
        backend="cpu",
    )


def test_a_bank_is_judged_by_what_another_classifier_sees(digits: cf.Explainer) -> None:
    """Thumbnails of full size are the bank's images: the same judge finds the same classes."""
    bank = digits.bank
    assert bank is not None
    pictures = bank_images(digits, None)
    assert isinstance(pictures, BankImages)
    again = rejudged(bank, pictures, digits.classifier)
    assert (again.predicted == bank.predicted).mean() > 0.999
    np.testing.assert_array_equal(again.labels, again.predicted)
    np.testing.assert_array_equal(again.codes, bank.codes)
    assert again.usable.all()

    def second_class(images: Any) -> np.ndarray:
        return np.eye(10, dtype=np.float32)[np.full(len(images), 1)]

    other = rejudged(bank, pictures, cf.Classifier(second_class))
    assert other.usable_counts().tolist() == [0, len(bank), *[0] * 8]
    assert other.sha256 != bank.sha256
    assert (bank.labels != 1).any(), "the bank itself must stay as it is"


def test_images_of_a_bank_are_found_by_name_and_known_by_their_codes(
    digits: cf.Explainer, tmp_path: Path
) -> None:
    bank = digits.bank
    assert bank is not None
    rows = np.arange(0, len(bank), 40)
    few = dataclasses.replace(
        bank,
        codes=bank.codes[rows],
        names=[bank.names[i] for i in rows],
        groups=[bank.groups[i] for i in rows],
        labels=bank.labels[rows],
        predicted=bank.predicted[rows],
        thumbnails=None,
        _sha256=None,
    )
    explainer = cf.Explainer(digits.model, digits.classifier, bank=few, backend="cpu")
    assert bank_images(explainer, None) == (
        "the bank's images are neither in the data set nor kept as thumbnails"
    )
    assert bank.thumbnails is not None
    files = []
    for i in rows:
        file = tmp_path / bank.names[i]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bank.thumbnails[i])
        files.append(bank.names[i])
    dataset = ImageDataset(tmp_path, files, few.labels, few.class_names)
    assert isinstance(bank_images(explainer, dataset.subset(range(3))), str)  # not all of them
    found = bank_images(explainer, dataset)
    assert isinstance(found, BankImages)
    assert found.sources == dataset.paths
    np.testing.assert_array_equal(np.concatenate(list(found.groups())), dataset.load(size=SIDE))
    np.testing.assert_array_equal(np.concatenate(list(found.groups())), dataset.load(size=SIDE))
    (tmp_path / files[0]).write_bytes(bank.thumbnails[rows[1]])  # another image of that name
    said = bank_images(explainer, dataset)
    assert isinstance(said, str)
    assert "are not the images that its codes were made of" in said
    (tmp_path / files[0]).write_bytes(b"no image")
    said = bank_images(explainer, dataset)
    assert isinstance(said, str)
    assert "cannot be read" in said
