# SPDX-License-Identifier: Apache-2.0
"""A bank as another classifier sees it.

Exemplars are chosen by what the classifier says of the bank's images. A randomised classifier that
kept the bank of the real one would be led along the same paths, and its maps could hardly differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..arrays import Float32, to_numpy
from ..bank import CodeBank
from ..classifier import Classifier
from ..data import ImageDataset
from ..errors import ImageDecodeError
from ..explainer import Explainer
from ..images import load_images

_GROUP = 128  # images read at a time
_KEPT_BYTES = 2**28  # a larger bank's images are read again for each classifier
_CHECKED = 16  # rows whose images must give the bank's codes
_SAME = 0.02  # largest error of a code, as a share of the codes' spread


class BankImages:
    """The images of a bank's rows, in their order.

    Attributes:
        sources: What `load_images` reads, one a row: files, or the bytes of thumbnails.
    """

    def __init__(self, sources: Sequence[Path | bytes], *, size: int, channels: int | None) -> None:
        """Opens nothing yet.

        Args:
            sources: One a row.
            size: Side in pixels.
            channels: 1 or 3; None as the files have.
        """
        self.sources = list(sources)
        self._size, self._channels = size, channels
        self._kept: dict[int, Float32] = {}
        self._room = _KEPT_BYTES

    def rows(self, rows: Sequence[int]) -> Float32:
        """Images of some rows, [n, C, S, S].

        Raises:
            ImageDecodeError: One cannot be read.
        """
        images = load_images(
            [self.sources[row] for row in rows], size=self._size, channels=self._channels
        )
        return np.asarray(images, dtype=np.float32)

    def groups(self) -> Iterator[Float32]:
        """All images, [n, C, S, S] at a time; kept in memory where they are not too many.

        Raises:
            ImageDecodeError: One cannot be read.
        """
        for first in range(0, len(self.sources), _GROUP):
            images = self._kept.get(first)
            if images is None:
                images = self.rows(range(first, min(first + _GROUP, len(self.sources))))
                if images.nbytes <= self._room:
                    self._room -= images.nbytes
                    self._kept[first] = images
            yield images


def bank_images(explainer: Explainer, dataset: ImageDataset | None) -> BankImages | str:
    """The images that a bank was made of, or why they are not at hand.

    They are looked for by name in a data set, then among the bank's thumbnails, and taken only
    where the model gives them the bank's codes.

    Args:
        explainer: With the bank.
        dataset: Where the bank's images may lie.
    """
    bank, config = explainer.bank, explainer.model.config
    assert bank is not None
    channels = config.in_channels if config.in_channels in (1, 3) else None
    tried: list[tuple[str, Sequence[Path | bytes]]] = []
    if dataset is not None:
        place = {file: dataset.root / file for file in dataset.files}
        if all(name in place for name in bank.names):
            tried.append(("files", [place[name] for name in bank.names]))
    if bank.thumbnails is not None:
        tried.append(("thumbnails", bank.thumbnails))
    why = "the bank's images are neither in the data set nor kept as thumbnails"
    for what, sources in tried:
        images = BankImages(sources, size=config.image_size, channels=channels)
        chosen = np.unique(np.linspace(0, len(bank) - 1, _CHECKED).round().astype(int))
        try:
            codes = explainer.encode(images.rows(chosen.tolist())).class_code
        except ImageDecodeError as error:
            why = f"the bank's {what} cannot be read: {error}"
            continue
        spread = float(np.abs(bank.codes - bank.codes.mean(axis=0)).mean())
        if float(np.abs(to_numpy(codes) - bank.codes[chosen]).max()) <= _SAME * spread:
            return images
        why = f"the {what} of the bank's names are not the images that its codes were made of"
    return why


def rejudged(bank: CodeBank, images: BankImages, classifier: Classifier) -> CodeBank:
    """The bank with the classes that a classifier gives its images, as labels and predictions.

    Every row may then be an exemplar of the class that the classifier sees in it.

    Args:
        bank: Of the same model.
        images: Of its rows.
        classifier: Who judges.

    Raises:
        ImageDecodeError: An image cannot be read.
    """
    classes = np.concatenate(
        [to_numpy(classifier(group)).argmax(axis=1) for group in images.groups()]
    ).astype(np.int64)
    return dataclasses.replace(
        bank,
        labels=classes,
        predicted=classes,
        classifier=classifier.name,
        skipped={},
        _sha256=None,
    )
