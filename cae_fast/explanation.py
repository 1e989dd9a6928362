# SPDX-License-Identifier: Apache-2.0
"""What an explanation says, for a batch of images, and how it is kept and shown."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, kind_of, like, to_numpy
from .errors import CAEError
from .files import atomic_directory
from .saliency import resize_map

FORMAT_VERSION = 1
#: Fields with one row per image.
_ROWS = (
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
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    AttributeError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)
_PICTURES = ("image", "reconstruction", "counterfactual", "saliency")


@dataclasses.dataclass(frozen=True)
class Codes:
    """Both codes of N images.

    Attributes:
        individual: What stays the image's own, [N, 4w, S / 4, S / 4].
        class_code: What the classes differ in, [N, D].
    """

    individual: Any
    class_code: Any


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
        picked: dict[str, Any] = {name: getattr(self, name)[rows] for name in _ROWS}
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
            path_images=None if self.path_images is None else self.path_images[rows],
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
    def reach(self) -> float:
        """Length of its paths over their distance to the exemplars; 1 where `meta` has none."""
        return float(self.meta.get("parameters", {}).get("reach", 1.0))

    def like(self, template: Any) -> Explanation:
        """The same with arrays of the kind and on the device of `template`."""
        return self._map(lambda array: like(array, template))

    def _map(self, convert: Any) -> Explanation:
        fields: dict[str, Any] = {name: convert(getattr(self, name)) for name in _ROWS}
        for name in ("frame_t", "path_images"):
            array = getattr(self, name)
            fields[name] = None if array is None else convert(array)
        return dataclasses.replace(
            self,
            **fields,
            path_t=[convert(array) for array in self.path_t],
            path_logits=[convert(array) for array in self.path_logits],
        )

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
                        for name in _ROWS
                        if getattr(host, name).ndim <= 2
                    },
                    "path_t": host.path_t[i],
                    "path_logits": host.path_logits[i],
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
        host = self.numpy()
        arrays: dict[str, Any] = {name: getattr(host, name) for name in _ROWS}
        arrays["status"] = host.status
        arrays["path_offsets"] = np.cumsum([0, *(len(t) for t in host.path_t)])
        # What is joined begins with nothing, so that no image at all is fine too.
        arrays["path_t"] = np.concatenate([np.empty(0, np.float32), *host.path_t])
        no_logits = np.empty((0, host.logits_source.shape[1]), np.float32)
        arrays["path_logits"] = np.concatenate([no_logits, *host.path_logits])
        if host.path_images is not None:
            arrays |= {"frame_t": host.frame_t, "path_images": host.path_images}
        with atomic_directory(folder, overwrite=overwrite) as temporary:
            np.savez_compressed(temporary / "explanation.npz", **arrays)
            text = self.to_json(indent=1)
            (temporary / "explanation.json").write_text(text, encoding="utf-8")
            (temporary / "images").mkdir()
            for i in range(len(host)):
                _write_pictures(temporary / "images", host, i)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Explanation:
        """Reads a folder written by :meth:`save`; arrays are NumPy.

        Raises:
            CAEError: A file is missing, damaged or of another format version.
        """
        path = Path(folder)
        try:
            said = json.loads((path / "explanation.json").read_text(encoding="utf-8"))
            if said["format"] != FORMAT_VERSION:
                raise CAEError(
                    f"{path}: format version {said['format']!r}, this version reads "
                    f"{FORMAT_VERSION}"
                )
            with np.load(path / "explanation.npz", allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            offsets = arrays["path_offsets"].tolist()
            parts = [slice(low, high) for low, high in pairwise(offsets)]
            meta = dict(said["meta"])
            meta["rejected"] = {int(row): why for row, why in meta.get("rejected", {}).items()}
            rows = said["explanations"]
            if {len(arrays[name]) for name in (*_ROWS, "status")} | {len(parts)} != {len(rows)}:
                raise CAEError(f"{path}: its arrays and its JSON have different numbers of images")
            return cls(
                **{name: arrays[name] for name in _ROWS},
                status=arrays["status"],
                path_t=[arrays["path_t"][part] for part in parts],
                path_logits=[arrays["path_logits"][part] for part in parts],
                names=[row["name"] for row in rows],
                exemplar_names=[tuple(row["exemplar_names"]) for row in rows],
                class_names=tuple(said["class_names"]),
                meta=meta,
                frame_t=arrays.get("frame_t"),
                path_images=arrays.get("path_images"),
            )
        except CAEError:
            raise
        except _DAMAGE as error:
            raise CAEError(
                f"{path}: not a readable explanation folder ({type(error).__name__}: {error})"
            ) from None

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


def _write_pictures(folder: Path, host: Explanation, i: int) -> None:
    """PNG files of one image; what is no counterfactual is not called one."""
    from .pictures import image_png

    status = str(host.status[i])
    pictures = {
        "image": host.images[i],
        "reconstruction": host.reconstruction[i],
        "counterfactual": host.counterfactual[i],
        "saliency": host.saliency[i][None] * 2 - 1,
    }
    for kind in _PICTURES if status not in ("non_finite", "rejected") else _PICTURES[:1]:
        if status == "not_flipped" and kind in ("counterfactual", "saliency"):
            stem = f"not_a_counterfactual_{'image' if kind == 'counterfactual' else kind}"
        else:
            stem = kind
        (folder / f"{i:05d}_{stem}.png").write_bytes(image_png(pictures[kind]))


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
