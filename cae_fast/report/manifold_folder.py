# SPDX-License-Identifier: Apache-2.0
"""From a code bank to a folder of views: what `cae-fast manifold` does."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cae_fast.arrays import Float32
from cae_fast.backends import Backend, select_backend
from cae_fast.bank import CodeBank
from cae_fast.classifier import Classifier
from cae_fast.errors import BankError, CAEError, MissingExtra
from cae_fast.explainer import Explainer
from cae_fast.files import atomic_directory, check_output_directory
from cae_fast.images import load_images
from cae_fast.manifold.directions import make_strips
from cae_fast.manifold.graph import NeighbourGraph
from cae_fast.manifold.measures import Principal, centre_accuracy, knn_accuracies
from cae_fast.manifold.views import graph_edges, make_views
from cae_fast.model import CAE
from cae_fast.pictures import image_png
from cae_fast.report.from_files import image_files, image_names
from cae_fast.report.manifold_data import Manifold, Placed
from cae_fast.report.manifold_figures import check_matplotlib, write_figures
from cae_fast.report.manifold_page import manifold_html

_NEIGHBOURS = 5
_THUMBNAIL = 64
_MOST_STRIPS = 3  # images whose strips are drawn


@dataclass(frozen=True)
class ManifoldOptions:
    """What is asked for besides the views.

    Attributes:
        images: Image files, and folders of them, to place; needs a model.
        data: Folder that the bank was made of, for pictures at the model's size; None takes the
            bank's thumbnails.
        views: Names, None for all that can be had.
        explain: Bank rows that get an explanation, evenly from all classes; new images all do.
        path: Kind of the explanations' paths.
        seed: Of t-SNE and UMAP.
        backend: As in `cf.Explainer`.
        title: Heading of the page.
    """

    images: Sequence[str | os.PathLike[str]] = ()
    data: str | os.PathLike[str] | None = None
    views: Sequence[str] | None = None
    explain: int = 40
    path: str = "line"
    seed: int = 0
    backend: str = "auto"
    title: str = "Class-associated manifold"


def write_manifold(
    bank: CodeBank,
    out: str | os.PathLike[str],
    *,
    model: CAE | None = None,
    classifier: Classifier | None = None,
    options: ManifoldOptions | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifold:
    """Measures and draws a bank: `index.html`, PNG files, `manifold.json`, `coordinates.csv`.

    Args:
        bank: The bank.
        out: Folder to write; it appears whole or not at all.
        model: The bank's; without it nothing is decoded or placed.
        classifier: Asked about what is decoded, and explained; needs the model.
        options: See the class.
        overwrite: Replace a folder that is not empty.
        on_progress: Called with (explanations done, in all).

    Returns:
        What was found.

    Raises:
        BankError: The bank is of another model.
        ImageDecodeError: An image to place cannot be read.
        MissingExtra: matplotlib is not installed, or what a view that was asked for needs.
        ValueError: A wrong option; a folder that is not empty.
        OSError: The file system refused.
    """
    options = options or ManifoldOptions()
    check_output_directory(out, overwrite=overwrite)
    check_matplotlib()
    if model is None and (options.images or classifier is not None or options.data is not None):
        given = "images to place" if options.images else "a classifier" if classifier else "data"
        raise CAEError(f"{given} can be used with the bank's model only: give --model as well")
    if isinstance(options.explain, bool) or options.explain < 0:
        raise CAEError(f"explain must be at least 0, got {options.explain}")
    if model is not None:
        bank.check(model)
    files = image_files(options.images)
    backend = None if model is None else select_backend(options.backend, model)
    new, placed = _place(bank, model, backend, classifier, files)
    views, missing = make_views(bank.codes, placed.codes, names=options.views, seed=options.seed)
    notes = [f"{name}: {why}" for name, why in missing.items()]
    edges, parts = None, None
    try:
        graph = NeighbourGraph.of(bank)
        edges, parts = graph_edges(graph), graph.parts
    except MissingExtra as error:
        notes.append(f"neighbour graph: {error}")
    try:
        centre: float | None = centre_accuracy(bank)
    except BankError:
        centre = None
    found = Manifold(
        bank=bank,
        principal=Principal.of(bank.codes),
        views=views,
        missing=missing,
        edges=edges,
        parts=parts,
        knn=knn_accuracies(bank),
        centre=centre,
        placed=placed,
        notes=notes,
    )
    if model is not None and backend is not None:
        pictures = _Pictures(bank, model, options.data)
        _decode_strips(found, backend, classifier, new, pictures)
        if classifier is not None:
            found = _explain(found, model, classifier, new, pictures, options, on_progress)
    with atomic_directory(out, overwrite=overwrite) as temporary:
        figures = write_figures(temporary, found)
        (temporary / "index.html").write_text(manifold_html(found, options.title), encoding="utf-8")
        said = json.dumps(found.figures() | {"figures": figures}, indent=2, allow_nan=False)
        (temporary / "manifold.json").write_text(said + "\n", encoding="utf-8")
        _write_coordinates(temporary / "coordinates.csv", found)
    return found


def _place(
    bank: CodeBank,
    model: CAE | None,
    backend: Backend | None,
    classifier: Classifier | None,
    files: Sequence[Path],
) -> tuple[Float32, Placed]:
    if model is None or backend is None or not files:
        none = np.empty((0, bank.code_dim), dtype=np.float32)
        nobody = np.empty(0, dtype=np.int64)
        nothing = Placed([], none, nobody, nobody.reshape(0, 1), np.empty(0), [])
        return np.empty((0, 1, 1, 1), dtype=np.float32), nothing
    config = model.config
    images = load_images(files, size=config.image_size, channels=config.in_channels)
    codes = np.concatenate(
        [
            backend.encode_class(np.ascontiguousarray(images[i : i + backend.max_batch]))
            for i in range(0, len(images), backend.max_batch)
        ]
    ).astype(np.float32)
    predicted = np.full(len(images), -1, dtype=np.int64)
    if classifier is not None:
        predicted = classifier(images).argmax(axis=1).astype(np.int64)
    gaps = np.linalg.norm(codes[:, None].astype(np.float64) - bank.codes[None], axis=2)
    nearest = np.argsort(gaps, axis=1, kind="stable")[:, :_NEIGHBOURS]
    usual = _usual_gap(bank)
    apart = gaps.min(axis=1) / usual if usual > 0 else np.zeros(len(gaps))
    pictures = [image_png(image, longest_side=_THUMBNAIL) for image in images]
    return images, Placed(image_names(files), codes, predicted, nearest, apart, pictures)


def _usual_gap(bank: CodeBank) -> float:
    """Median distance of the bank's rows to their nearest other, of at most a thousand."""
    some = np.random.default_rng(0).permutation(len(bank))[:1000]
    codes = bank.codes.astype(np.float64)
    nearest = []
    for row in some:
        gaps = np.linalg.norm(codes - codes[row], axis=1)
        gaps[row] = np.inf
        nearest.append(gaps.min())
    median = float(np.median(nearest))
    return median if np.isfinite(median) else 0.0


class _Pictures:
    """Pictures of bank rows at the model's size."""

    def __init__(self, bank: CodeBank, model: CAE, data: str | os.PathLike[str] | None) -> None:
        self._bank, self._config = bank, model.config
        self._data = None if data is None else Path(data)
        if self._data is not None and not self._data.is_dir():
            raise CAEError(f"{self._data}: no such folder, wanted the one the bank was made of")
        self.why_none = ""
        if data is None:
            if bank.thumbnails is None:
                self.why_none = "the bank keeps no pictures (encode --thumbnails, or give --data)"
            elif self._config.image_size > _THUMBNAIL:
                self.why_none = (
                    f"the bank's pictures are smaller than the model's {self._config.image_size} "
                    "pixels (give --data)"
                )

    def load(self, rows: Sequence[int]) -> Float32:
        """Images [n, C, S, S]."""
        size, channels = self._config.image_size, self._config.in_channels
        if self._data is not None:
            paths = [self._data / self._bank.names[row] for row in rows]
            return load_images(paths, size=size, channels=channels)
        assert self._bank.thumbnails is not None
        opened = [
            Image.open(io.BytesIO(self._bank.thumbnails[row]), formats=["PNG"]) for row in rows
        ]
        return load_images(opened, size=size, channels=channels)


def _decode_strips(
    found: Manifold,
    backend: Backend,
    classifier: Classifier | None,
    new: Float32,
    pictures: _Pictures,
) -> None:
    """Strips of the new images, else of the most central row of each class."""
    names = found.placed.names[:_MOST_STRIPS]
    images = new[: len(names)]
    if not names:
        if pictures.why_none:
            found.notes.append(f"strips along the directions: {pictures.why_none}")
            return
        rows = _central_rows(found.bank)[:_MOST_STRIPS]
        images, names = pictures.load(rows), [found.bank.names[row] for row in rows]
    found.strips.extend(make_strips(backend, classifier, found.bank.codes, images, names))


def _central_rows(bank: CodeBank) -> list[int]:
    """Of each class the usable row nearest to the class's centre."""
    rows = []
    for label in range(len(bank.class_names)):
        own = np.flatnonzero(bank.usable & (bank.labels == label))
        if len(own):
            gaps = np.linalg.norm(bank.codes[own] - bank.codes[own].mean(axis=0), axis=1)
            rows.append(int(own[gaps.argmin()]))
    return rows


def _explain(
    found: Manifold,
    model: CAE,
    classifier: Classifier,
    new: Float32,
    pictures: _Pictures,
    options: ManifoldOptions,
    on_progress: Callable[[int, int], None] | None,
) -> Manifold:
    """Explanations of some rows and of the new images."""
    from dataclasses import replace

    bank = found.bank
    rows: list[int] = []
    if pictures.why_none and options.explain:
        found.notes.append(f"explanations of the bank's rows: {pictures.why_none}")
    elif options.explain:
        rows = _spread(bank, options.explain)
    parts = [pictures.load(rows)] if rows else []
    images = np.concatenate([*parts, new]) if len(new) else (parts[0] if parts else None)
    if images is None:
        return found
    explainer = Explainer(model, classifier, bank=bank, backend=options.backend)
    asked: dict[str, Any] = {"path": options.path, "frames": 5}
    explained = explainer.explain(
        images,
        names=[bank.names[row] for row in rows] + found.placed.names,
        on_progress=on_progress,
        **asked,
    )
    points = rows + [len(bank) + i for i in range(len(new))]
    return replace(found, explanations=explained, explained=points)


def _spread(bank: CodeBank, wanted: int) -> list[int]:
    """Up to `wanted` rows, as many of each class as there are, evenly through its order."""
    classes = [np.flatnonzero(bank.labels == c) for c in range(len(bank.class_names))]
    classes = [rows for rows in classes if len(rows)]
    each = max(1, wanted // len(classes))
    chosen: list[int] = []
    for rows in classes:
        at = np.unique(np.rint(np.linspace(0, len(rows) - 1, min(each, len(rows)))).astype(int))
        chosen += rows[at].tolist()
    return chosen[:wanted]


def _write_coordinates(path: Path, found: Manifold) -> None:
    bank, placed = found.bank, found.placed
    names = bank.class_names
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        axes = [f"{view.name}_{axis}" for view in found.views for axis in "xy"]
        writer.writerow(["name", "group", "label", "predicted", "placed", *axes])
        points: npt.NDArray[np.float64] = (
            np.concatenate(
                [np.concatenate([view.points, view.placed]) for view in found.views], axis=1
            )
            if found.views
            else np.empty((len(bank) + len(placed.names), 0))
        )
        for i, row in enumerate(points):
            if i < len(bank):
                known = (bank.names[i], bank.groups[i], names[bank.labels[i]])
                predicted = int(bank.predicted[i])
            else:
                known = (placed.names[i - len(bank)], "", "")
                predicted = int(placed.predicted[i - len(bank)])
            said = "" if predicted < 0 else names[predicted]
            numbers = [f"{value:.6g}" for value in row]
            writer.writerow([*known, said, int(i >= len(bank)), *numbers])
