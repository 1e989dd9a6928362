# SPDX-License-Identifier: Apache-2.0
"""A folder with everything one explanation has to give: page, table, arrays and pictures."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cae_fast.colors import overlay, signed_rgb, to_rgb
from cae_fast.files import atomic_directory
from cae_fast.pictures import png_bytes
from cae_fast.report.case import Case, cases
from cae_fast.report.pictures import Uint8, finite, picture_pixels
from cae_fast.report.table import write_csv, write_parquet
from cae_fast.saliency import resize_map

if TYPE_CHECKING:
    from cae_fast.explanation import Explanation

# How the reported point is called in file names: what is no counterfactual is not named so.
_POINT_NAMES = {
    "flipped": "counterfactual",
    "not_flipped": "nearest_point",
    "reconstruction_flips": "reconstruction",
}


def write_folder(
    folder: str | os.PathLike[str],
    explanation: Explanation,
    *,
    title: str = "Explanations",
    originals: Sequence[Any] | None = None,
    exemplar_images: Sequence[Any] | None = None,
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write page, table, arrays and pictures; the folder appears whole or not at all.

    It gets `index.html`, `table.csv`, `table.parquet` where pyarrow is installed, `explanation/`
    with all arrays for `cf.Explanation.load`, and `images/NAME/*.png` with image, reconstruction,
    counterfactual (`nearest_point` where nothing flipped), signed change, saliency, overlay, and
    `path/*.png`.

    Args:
        folder: The folder to write.
        explanation: The `cf.Explanation`.
        title: Heading of the page.
        originals: Pictures before resizing; see `write_html`. Overlays are of their size.
        exemplar_images: Pictures of the exemplars; see `write_html`.
        notes: Paragraphs for the head of the page.
        overwrite: Replace a folder that is not empty.

    Raises:
        ValueError: The folder is a file or not empty, or counts disagree.
        OSError: The file system refused.
    """
    with atomic_directory(folder, overwrite=overwrite) as temporary:
        host = explanation.numpy()
        host.to_html(
            temporary / "index.html",
            title=title,
            originals=originals,
            exemplar_images=exemplar_images,
            notes=notes,
        )
        write_csv(temporary / "table.csv", host)
        if importlib.util.find_spec("pyarrow"):
            write_parquet(temporary / "table.parquet", host)
        host.save(temporary / "explanation")
        # The same pictures lie in images/, under the names of the images.
        shutil.rmtree(temporary / "explanation" / "images")
        _write_images(temporary / "images", host, originals)


def _write_images(folder: Path, explanation: Explanation, originals: Sequence[Any] | None) -> None:
    rows = cases(explanation)
    for case, name in zip(rows, folder_names([case.name for case in rows]), strict=True):
        pictures = _pictures(
            case,
            explanation,
            explanation.images[case.index],
            None if originals is None else originals[case.index],
        )
        if not pictures:
            continue
        target = folder / name
        target.mkdir(parents=True)
        for stem, pixels in pictures.items():
            (target / f"{stem}.png").write_bytes(png_bytes(pixels))
        if explanation.path_images is not None and case.has_path:
            _write_frames(target / "path", explanation.frame_t, explanation.path_images[case.index])


def folder_names(names: Sequence[str]) -> list[str]:
    """Distinct folder names for images, with nothing in them that a file system minds."""
    used: set[str] = set()
    result = []
    for name in names:
        stem = os.path.splitext(name)[0]
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._")[-80:] or "image"
        candidate, number = plain, 2
        while candidate.lower() in used:
            candidate, number = f"{plain}_{number}", number + 1
        used.add(candidate.lower())
        result.append(candidate)
    return result


def _pictures(
    case: Case, explanation: Explanation, image: npt.NDArray[Any], original: Any
) -> dict[str, Uint8]:
    if case.status == "rejected" or not finite(image):
        return {}
    pictures = {"image": to_rgb(image)}
    point = _POINT_NAMES.get(case.status)
    if point is None:
        return pictures
    i = case.index
    saliency = np.asarray(explanation.saliency[i])
    under = image if original is None else _as_image(original)
    grey = resize_map(saliency, *saliency.shape)
    prefix = "" if case.status == "flipped" else f"{point}_"
    return pictures | {
        "reconstruction": to_rgb(explanation.reconstruction[i]),
        point: to_rgb(explanation.counterfactual[i]),
        f"{prefix}difference": signed_rgb(explanation.difference[i]),
        f"{prefix}saliency": np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=-1),
        f"{prefix}overlay": overlay(under, saliency, alpha=0.8),
    }


def _as_image(picture: Any) -> npt.NDArray[np.float32]:
    pixels = picture_pixels(picture).astype(np.float32)
    return np.moveaxis(pixels / 127.5 - 1.0, -1, 0)


def _write_frames(folder: Path, positions: npt.NDArray[Any], pictures: npt.NDArray[Any]) -> None:
    folder.mkdir()
    for row, (t, picture) in enumerate(zip(positions.tolist(), pictures, strict=True)):
        (folder / f"{row:03d}_t{t:.3f}.png").write_bytes(png_bytes(to_rgb(picture)))
