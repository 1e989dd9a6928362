# SPDX-License-Identifier: Apache-2.0
"""The code bank: class codes of known images, from which exemplars are chosen."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .arrays import Float32
from .class_names import agree
from .classifier import Classifier, classifier_from
from .errors import BankError, ImageDecodeError
from .memory import in_groups
from .model import CAE

if TYPE_CHECKING:
    from .data import ImageDataset

IntArray = npt.NDArray[np.int64]
_THUMBNAIL_SIDE = 64


@dataclass(eq=False)
class CodeBank:
    """Class codes of B images with what is known about each.

    Attributes:
        codes: Class codes [B, D], float32, finite.
        names: B distinct image names.
        groups: What belongs together (one patient, one smear); a group never explains itself in
            accuracies.
        labels: Class index of each image by the data set, int64 [B].
        predicted: Class index by the classifier, int64 [B]; -1 where none was asked.
        class_names: K names.
        model_sha256: Hash of the model that made the codes.
        classifier: Name of the classifier asked, or None.
        thumbnails: PNG bytes per image, or None.
        skipped: Images that could not be read when the bank was built, with reasons; not saved.
    """

    codes: Float32
    names: Sequence[str]
    groups: Sequence[str]
    labels: IntArray
    predicted: IntArray
    class_names: tuple[str, ...]
    model_sha256: str
    classifier: str | None = None
    thumbnails: Sequence[bytes] | None = None
    skipped: dict[str, str] = field(default_factory=dict, repr=False)
    _sha256: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Checks every column.

        Raises:
            BankError: A column has a wrong length, dtype or value; the message names it.
        """
        codes = np.asarray(self.codes)
        if codes.ndim != 2 or 0 in codes.shape or codes.dtype.kind != "f":
            raise BankError(
                f"codes must be float [B, D] with B, D >= 1, got {codes.dtype} {list(codes.shape)}"
            )
        with np.errstate(over="ignore"):  # what overflows is refused below
            self.codes = np.ascontiguousarray(codes, dtype=np.float32)
        count = len(codes)
        bad = np.flatnonzero(~np.isfinite(self.codes).all(axis=1))
        if bad.size:
            raise BankError(
                f"column code_* holds NaN or Inf in {bad.size} rows, first in row {bad[0]}"
            )
        self.class_names = tuple(self.class_names)
        if len(self.class_names) < 2 or len(set(self.class_names)) != len(self.class_names):
            raise BankError(
                f"class_names must be at least two distinct names, got {list(self.class_names)}"
            )
        self.names, self.groups = [str(n) for n in self.names], [str(g) for g in self.groups]
        for name, low in (("labels", 0), ("predicted", -1)):
            values = np.asarray(getattr(self, name))
            if values.dtype.kind not in "iu" or values.shape != (count,):
                raise BankError(
                    f"column {name} must be integers [{count}], got {values.dtype} "
                    f"{list(values.shape)}"
                )
            outside = values[(values < low) | (values >= len(self.class_names))]
            if outside.size:
                raise BankError(
                    f"column {name} must be in {low}..{len(self.class_names) - 1}, got {outside[0]}"
                )
            setattr(self, name, values.astype(np.int64))
        for name in ("names", "groups", "thumbnails"):
            column = getattr(self, name)
            if column is not None and len(column) != count:
                raise BankError(f"column {name} has {len(column)} rows, codes have {count}")
        if len(set(self.names)) != count:
            seen: set[str] = set()
            twice = next(n for n in self.names if n in seen or seen.add(n))  # type: ignore[func-returns-value]
            raise BankError(f"column name holds {twice!r} more than once, names must be distinct")

    def __len__(self) -> int:
        """Number of images B."""
        return len(self.codes)

    def __repr__(self) -> str:
        """Size, classes and the model's hash."""
        classes = list(self.class_names)
        return f"CodeBank({len(self)} images, {classes=}, model={self.model_sha256[:12]})"

    @property
    def code_dim(self) -> int:
        """Length D of a code."""
        return int(self.codes.shape[1])

    @property
    def sha256(self) -> str:
        """Hash over codes, names, labels, predictions, class names and the model's hash."""
        if self._sha256 is None:
            digest = hashlib.sha256()
            head = [list(self.names), list(self.groups), list(self.class_names), self.model_sha256]
            digest.update(json.dumps(head, ensure_ascii=True).encode())
            for array in (
                self.codes.astype("<f4"),
                self.labels.astype("<i8"),
                self.predicted.astype("<i8"),
            ):
                digest.update(np.ascontiguousarray(array).data)
            self._sha256 = digest.hexdigest()
        return self._sha256

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Rows that may be exemplars, [B].

        The classifier agrees with the label, or none was asked.
        """
        usable: npt.NDArray[np.bool_] = (self.predicted == self.labels) | (self.predicted < 0)
        return usable

    def usable_counts(self) -> IntArray:
        """Number of rows of each class that may be exemplars, [K]."""
        counts: IntArray = np.bincount(self.labels[self.usable], minlength=len(self.class_names))
        return counts

    @classmethod
    def build(
        cls,
        model: CAE,
        dataset: ImageDataset,
        *,
        classifier: Any = None,
        thumbnails: bool = False,
        backend: str = "auto",
        device: str | None = None,
        batch: int | None = None,
        on_error: Literal["raise", "collect"] = "raise",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> CodeBank:
        """Encodes a data set.

        Args:
            model: The model.
            dataset: Images with labels, by class name the same classes as the model's.
            classifier: What is asked for `predicted`: anything that :class:`cae_fast.Explainer`
                takes.
            thumbnails: Keep a small PNG of each image.
            backend: As in :class:`cae_fast.Explainer`.
            device: As in :class:`cae_fast.Explainer`.
            batch: Images in memory at a time; fewer are taken where memory runs out.
            on_error: "raise" stops at an unreadable image, "collect" leaves it out and says why in
                `skipped`.
            on_progress: Called with (images done, images in all).

        Returns:
            The bank, in the order of the data set.

        Raises:
            BankError: Class names disagree, or a code is not finite.
            ImageDecodeError: An image cannot be read.
            OutOfMemory: One image alone does not fit.
        """
        from .backends import select_backend

        asked = None if classifier is None else classifier_from(classifier)
        labels = None if asked is None else asked.labels
        class_names = agree(
            {
                "data set": dataset.class_names,
                "model": model.config.class_names,
                "classifier": labels,
            },
            error=BankError,
        )
        engine = select_backend(backend, model, device=device, max_batch=batch)
        config = model.config
        # By first row, so that a group that is tried again counts once: rows, codes, classes.
        groups: dict[int, tuple[list[int], Float32, IntArray]] = {}
        pictures: dict[int, bytes] = {}
        skipped: dict[str, str] = {}

        def encode(part: slice, _: int) -> None:
            rows = list(range(part.start, part.stop))
            images, reasons = dataset.load(
                rows, size=config.image_size, channels=config.in_channels, on_error="collect"
            )
            for row, why in zip(rows, reasons, strict=True):
                if why is not None:
                    if on_error == "raise":
                        raise ImageDecodeError(why)
                    skipped[dataset.files[row]] = why
            good = [row for row, why in zip(rows, reasons, strict=True) if why is None]
            if good:
                images = images[[why is None for why in reasons]]
                codes = engine.encode_class(images).astype(np.float32)
                classes = np.full(len(good), -1, dtype=np.int64)
                if asked is not None:
                    classes = _predict(asked, images, len(class_names))
                if thumbnails:
                    pictures.update(zip(good, map(_thumbnail, images), strict=True))
                groups[part.start] = (good, codes, classes)
            if on_progress is not None:
                on_progress(part.stop, len(dataset))

        in_groups(encode, len(dataset), engine.max_batch, what="images to encode")
        if not groups:
            raise BankError(f"the data set {dataset.root} holds no readable images")
        rows, codes, predicted = zip(*groups.values(), strict=True)
        kept = [row for group in rows for row in group]
        bank = cls(
            codes=np.concatenate(codes),
            names=[dataset.files[row] for row in kept],
            groups=[dataset.groups[row] for row in kept],
            labels=np.asarray(dataset.labels, dtype=np.int64)[kept],
            predicted=np.concatenate(predicted),
            class_names=class_names,
            model_sha256=model.sha256,
            classifier=None if asked is None else asked.name,
            thumbnails=[pictures[row] for row in kept] if thumbnails else None,
        )
        bank.skipped = skipped
        return bank

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the bank atomically, as Parquet or CSV by the suffix.

        Raises:
            BankError: The suffix is neither `.parquet` nor `.csv`.
            MissingExtra: Parquet without pyarrow.
        """
        from .bank_files import write_bank

        write_bank(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CodeBank:
        """Reads a bank written by :meth:`save`.

        Raises:
            BankError: Missing, truncated, of another format version, or with bad columns; the
                message names file and column.
            MissingExtra: Parquet without pyarrow.
        """
        from .bank_files import read_bank

        return read_bank(path)

    def check(self, model: CAE) -> None:
        """Refuses a model that did not make this bank.

        Raises:
            BankError: The model's hash or class names differ.
        """
        agree({"model": model.config.class_names, "bank": self.class_names}, error=BankError)
        if self.model_sha256 != model.sha256:
            raise BankError(
                f"the bank was made by model {self.model_sha256[:12]}, this is model "
                f"{model.sha256[:12]}: "
                "encode the images again with this model"
            )

    def nearest(
        self,
        codes: npt.NDArray[np.floating[Any]],
        target_class: npt.ArrayLike,
        k: int = 1,
        *,
        source_class: npt.ArrayLike | None = None,
        exclude_groups: Sequence[str | None] | None = None,
        among: npt.NDArray[np.bool_] | None = None,
    ) -> IntArray:
        """Nearest usable rows of a class in code space.

        Args:
            codes: Class codes [N, D].
            target_class: Class index, one or [N]; -1 is any class but `source_class`.
            k: Rows per code.
            source_class: Needed for -1: one or [N].
            exclude_groups: Group left out for each code, [N]; None leaves none out.
            among: Rows looked at, [B]; None is all that are `usable`.

        Returns:
            Row indices [N, k], nearest first (equal distances: lowest row).

        Raises:
            BankError: A class has fewer than `k` usable rows; the message names it.
            ValueError: Wrong shapes, or k < 1.
        """
        points = np.asarray(codes, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.code_dim:
            raise ValueError(f"codes must be [N, {self.code_dim}], got {list(points.shape)}")
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k must be a positive integer, got {k!r}")
        targets = np.broadcast_to(np.asarray(target_class, dtype=np.int64), len(points))
        sources = np.broadcast_to(
            np.asarray(-1 if source_class is None else source_class), len(points)
        )
        groups = np.asarray(self.groups, dtype=object)
        rows = np.empty((len(points), k), dtype=np.int64)
        usable = self.usable if among is None else among
        for i, point in enumerate(points):
            if targets[i] >= 0:
                allowed, what = (
                    usable & (self.labels == targets[i]),
                    self._class_text(int(targets[i])),
                )
            else:
                allowed, what = usable & (self.labels != sources[i]), "any other class"
            if exclude_groups is not None and exclude_groups[i] is not None:
                allowed = allowed & (groups != exclude_groups[i])
            chosen = np.flatnonzero(allowed)
            if len(chosen) < k:
                raise BankError(
                    f"the bank has {len(chosen)} correctly classified images of {what}, {k} "
                    "needed as exemplars"
                )
            distance = ((self.codes[chosen] - point) ** 2).sum(axis=1)
            rows[i] = chosen[np.argsort(distance, kind="stable")[:k]]
        return rows

    def knn_accuracy(self, k: int = 5) -> float:
        """Share of images whose label the k nearest codes of other groups vote for.

        Args:
            k: Neighbours; a tie goes to the class of the nearest one.

        Returns:
            Accuracy in [0, 1] over the images that have k neighbours outside their group.

        Raises:
            BankError: No image has k neighbours outside its group.
            ValueError: k < 1.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k must be a positive integer, got {k!r}")
        _, group = np.unique(np.asarray(self.groups), return_inverse=True)
        codes = self.codes.astype(np.float64)
        right = counted = 0
        for i in range(len(self)):
            others = np.flatnonzero(group != group[i])
            if len(others) < k:
                continue
            distance = ((codes[others] - codes[i]) ** 2).sum(axis=1)
            near = self.labels[others[np.argsort(distance, kind="stable")[:k]]]
            votes = np.bincount(near, minlength=len(self.class_names))
            winner = next(label for label in near if votes[label] == votes.max())
            right += int(winner == self.labels[i])
            counted += 1
        if not counted:
            raise BankError(f"no image has {k} neighbours outside its own group")
        return right / counted

    def _class_text(self, index: int) -> str:
        known = 0 <= index < len(self.class_names)
        return f"class {self.class_names[index]!r}" if known else f"class {index}"


def _predict(classifier: Classifier, images: Float32, num_classes: int) -> IntArray:
    """Classes of images [N]; the classifier must know as many as the data set."""
    logits = classifier(images)
    if logits.shape[1] != num_classes:
        raise BankError(
            f"classifier {classifier.name} returns {logits.shape[1]} logits, the data set has "
            f"{num_classes} classes"
        )
    predicted: IntArray = logits.argmax(axis=1)
    return predicted


def _thumbnail(image: Float32) -> bytes:
    """A small PNG of one image [C, H, W]."""
    from .pictures import image_png

    return image_png(image, longest_side=_THUMBNAIL_SIDE)
