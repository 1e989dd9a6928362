# SPDX-License-Identifier: Apache-2.0
"""What an explanation says, for a batch of images, and how it is kept and shown."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, kind_of, like, to_numpy
from .saliency import resize_map

FORMAT_VERSION = 1
#: Fields with one row per image.
ROWS = (
    "counterfactual",
    "reconstruction",
    "difference",
    "saliency",
    "t_flip",
    "bracket",
    "source_class",
    "target_class",
    "reached_class",
    "logits_source",
    "logits_counterfactual",
    "evaluations",
    "exemplar",
    "images",
)


@dataclasses.dataclass(eq=False)
class Explanation:
    """Explanations of N images.

    Arrays are of the kind of the images explained (NumPy, torch, CuPy), on their device.

    Attributes:
        status: str [N]: flipped, not_flipped, already_target, reconstruction_flips, non_finite or
            rejected.
        counterfactual: Decoded image at the reported point, [N, C, H, W]; the image itself where it
            is `already_target`; NaN where nothing is reported.
        reconstruction: Decoded image at t = 0, [N, C, H, W]; NaN where nothing was decoded.
        difference: counterfactual - reconstruction, signed, [N, C, H, W]; to the image for
            `reconstruction_flips` or where that was asked for; zeros where nothing is reported.
        saliency: [N, H, W] in [0, 1]: sum over channels of abs(difference) divided by its maximum;
            or the kind of map that `meta["parameters"]["saliency"]` names.
        t_flip: [N]: upper end of the bracket, NaN unless flipped.
        bracket: [N, 2]: not flipped at the first, flipped at the second; NaN unless flipped.
        source_class: int64 [N]: predicted for the image; -1 where unknown.
        target_class: int64 [N]: asked for; -1 is any other class (or unknown).
        reached_class: int64 [N]: predicted at the reported point; -1 where there is none.
        logits_source: [N, K] of the image.
        logits_counterfactual: [N, K] of the reported point; NaN where there is none.
        path_t: N arrays [T_i]: every point that was classified, ascending.
        path_logits: N arrays [T_i, K].
        evaluations: int64 [N]: decoder calls spent on the search.
        exemplar: int64 [N, k]: bank rows used, -1 where none.
        images: The images explained, [N, C, H, W].
        names: N names.
        class_names: K names.
        meta: Versions, hashes, parameters, seconds per stage; "rejected" maps rows to reasons.
        exemplar_names: N tuples of bank names; empty where the exemplar is no bank row.
        reconstructed_class: int64 [N]: predicted for the image decoded from its own codes; -1 where
            unknown; None of explanations made by other versions.
        second_path: N arrays [V, D] or [0, D]: the class codes of the path that is told of where it
            is a second one, which `explain(..., second_try=True)` took; empty where it is the first
            one, from the image's own code. Or empty itself: none is.
        frame_t: Positions [F] of `path_images`, or None.
        path_images: [N, F, C, H, W] along the whole path, or None.
    """

    status: npt.NDArray[np.str_]
    counterfactual: Any
    reconstruction: Any
    difference: Any
    saliency: Any
    t_flip: Any
    bracket: Any
    source_class: Any
    target_class: Any
    reached_class: Any
    logits_source: Any
    logits_counterfactual: Any
    path_t: list[Any]
    path_logits: list[Any]
    evaluations: Any
    exemplar: Any
    images: Any
    names: list[str]
    class_names: tuple[str, ...]
    meta: dict[str, Any]
    exemplar_names: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    reconstructed_class: Any = None
    second_path: list[Any] = dataclasses.field(default_factory=list)
    frame_t: Any = None
    path_images: Any = None

    @property
    def flipped(self) -> Any:
        """`status == "flipped"`, bool [N]."""
        return like(self.status == "flipped", self.counterfactual)

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.status)

    def __getitem__(self, key: int | slice | Sequence[int] | npt.NDArray[Any]) -> Explanation:
        """Explanations of some of the images, always batched: an index gives N = 1."""
        key = key if kind_of(key) == "numpy" else to_numpy(key)
        rows = np.atleast_1d(np.arange(len(self))[key])
        picked: dict[str, Any] = {name: getattr(self, name)[rows] for name in ROWS}
        rejected = self.meta.get("rejected", {})
        kept = {new: rejected[old] for new, old in enumerate(rows.tolist()) if old in rejected}
        return dataclasses.replace(
            self,
            **picked,
            status=self.status[rows],
            path_t=[self.path_t[i] for i in rows],
            path_logits=[self.path_logits[i] for i in rows],
            names=[self.names[i] for i in rows],
            exemplar_names=[self.exemplar_names[i] for i in rows] if self.exemplar_names else [],
            second_path=[self.second_path[i] for i in rows] if self.second_path else [],
            **{name: array[rows] for name, array in self._known("reconstructed_class")},
            **{name: array[rows] for name, array in self._known("path_images")},
            meta=self.meta | {"rejected": kept},
        )

    def __iter__(self) -> Iterator[Explanation]:
        """Explanations of single images, each with N = 1."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        """Number of images of each status."""
        kinds, counts = np.unique(self.status, return_counts=True)
        said = ", ".join(f"{count} {kind}" for kind, count in zip(kinds, counts, strict=True))
        return f"Explanation({len(self)} images: {said})"

    def numpy(self) -> Explanation:
        """The same with NumPy arrays on the host."""
        return self._map(to_numpy)

    @property
    def searched_again(self) -> npt.NDArray[np.bool_]:
        """Of which images the path is a second one, NumPy, bool [N]."""
        again = [len(path) > 0 for path in self.second_path] or [False] * len(self)
        return np.array(again, dtype=np.bool_)

    @property
    def start_class(self) -> npt.NDArray[np.int64]:
        """Classes read at t = 0 of the paths that are told of, NumPy, int64 [N]; -1: not asked."""
        return np.array(
            [
                int(to_numpy(logits)[0].argmax()) if len(t) and float(t[0]) == 0 else -1
                for t, logits in zip(self.path_t, self.path_logits, strict=True)
            ],
            dtype=np.int64,
        )

    @property
    def reach(self) -> float:
        """Length of its paths over their distance to the exemplars; 1 where `meta` has none."""
        return float(self.meta.get("parameters", {}).get("reach", 1.0))

    def like(self, template: Any) -> Explanation:
        """The same with arrays of the kind and on the device of `template`."""
        return self._map(lambda array: like(array, template))

    def _map(self, convert: Any) -> Explanation:
        fields: dict[str, Any] = {name: convert(getattr(self, name)) for name in ROWS}
        for name, array in self._known("reconstructed_class", "frame_t", "path_images"):
            fields[name] = convert(array)
        return dataclasses.replace(
            self,
            **fields,
            path_t=[convert(array) for array in self.path_t],
            path_logits=[convert(array) for array in self.path_logits],
            second_path=[convert(array) for array in self.second_path],
        )

    def _known(self, *names: str) -> list[tuple[str, Any]]:
        """Of fields that may be None those that are not."""
        return [(name, value) for name in names if (value := getattr(self, name)) is not None]

    def saliency_at(self, index: int, height: int, width: int) -> Float32:
        """Saliency map of one image at another resolution, such as its original's.

        [height, width], NumPy.
        """
        return resize_map(to_numpy(self.saliency[index]), height, width)

    def table_rows(self) -> list[dict[str, Any]]:
        """One row of plain values per image, for tables; None where undefined."""
        from .report import table_rows

        return table_rows(self.numpy())

    def to_json(self, *, indent: int | None = None) -> str:
        """Everything but the images as valid JSON: undefined numbers are null.

        Args:
            indent: Spaces per level; None writes one line.
        """
        host = self.numpy()
        value = {
            "format": FORMAT_VERSION,
            "class_names": self.class_names,
            "explanations": [
                {
                    "name": host.names[i],
                    "status": str(host.status[i]),
                    "flipped": bool(host.status[i] == "flipped"),
                    **{
                        name: getattr(host, name)[i]
                        for name in ROWS
                        if getattr(host, name).ndim <= 2
                    },
                    "path_t": host.path_t[i],
                    "path_logits": host.path_logits[i],
                    **{name: value[i] for name, value in host._known("reconstructed_class")},
                    "second_path": host.second_path[i] if host.second_path else [],
                    "exemplar_names": host.exemplar_names[i] if host.exemplar_names else (),
                }
                for i in range(len(host))
            ],
            "meta": self.meta,
        }
        return json.dumps(_plain(value), allow_nan=False, indent=indent)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes `explanation.npz` (all arrays), `explanation.json` and `images/*.png`.

        The folder appears whole or not at all.

        Args:
            folder: The folder; :meth:`load` reads it again.
            overwrite: Replace a folder that is not empty.

        Raises:
            CAEError: `folder` is a file, or not empty and `overwrite` is false.
            OSError: The file system refused.
        """
        from .explanation_files import save_explanation

        save_explanation(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Explanation:
        """Reads a folder written by :meth:`save`; arrays are NumPy.

        Raises:
            CAEError: A file is missing, damaged or of another format version.
        """
        from .explanation_files import load_explanation

        return load_explanation(folder)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Explanations",
        originals: Sequence[Any] | None = None,
        exemplar_images: Sequence[Any] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Writes one self-contained HTML page.

        Arguments as in :func:`cae_fast.report.write_html`.
        """
        from .report import write_html

        host = self.numpy()
        write_html(
            path,
            host,
            host.images,
            title=title,
            originals=originals,
            exemplar_images=exemplar_images,
            frames=host._frames(),
            notes=notes,
        )

    def plot(self) -> Any:
        """A matplotlib figure of the explanations.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from .report import plot

        host = self.numpy()
        return plot(host, host.images)

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from .report import html_fragment

        host = self.numpy()
        return html_fragment(host, host.images, frames=host._frames())

    def _frames(self) -> Any:
        from .report import Frames

        return None if self.path_images is None else Frames(t=self.frame_t, images=self.path_images)


def _plain(value: Any) -> Any:
    """JSON values: arrays as lists, undefined numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
