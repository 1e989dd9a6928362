# SPDX-License-Identifier: Apache-2.0
"""Folders of explanations: all arrays, the rest as JSON, pictures to look at."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CAEError
from .explanation import FORMAT_VERSION, ROWS, Explanation
from .files import atomic_directory

_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    AttributeError,
    IndexError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)
_PICTURES = ("image", "reconstruction", "counterfactual", "saliency")


def save_explanation(
    explanation: Explanation, folder: str | os.PathLike[str], *, overwrite: bool
) -> None:
    """Writes a folder; see :meth:`Explanation.save`."""
    host = explanation.numpy()
    arrays: dict[str, Any] = {name: getattr(host, name) for name in ROWS}
    arrays["status"] = host.status
    arrays["path_offsets"] = np.cumsum([0, *(len(t) for t in host.path_t)])
    # What is joined begins with nothing, so that no image at all is fine too.
    arrays["path_t"] = np.concatenate([np.empty(0, np.float32), *host.path_t])
    no_logits = np.empty((0, host.logits_source.shape[1]), np.float32)
    arrays["path_logits"] = np.concatenate([no_logits, *host.path_logits])
    if host.path_images is not None:
        arrays |= {"frame_t": host.frame_t, "path_images": host.path_images}
    if host.reconstructed_class is not None:
        arrays["reconstructed_class"] = host.reconstructed_class
    arrays |= {f"second_path_{i}": path for i, path in enumerate(host.second_path) if len(path)}
    with atomic_directory(folder, overwrite=overwrite) as temporary:
        np.savez_compressed(temporary / "explanation.npz", **arrays)
        text = explanation.to_json(indent=1)
        (temporary / "explanation.json").write_text(text, encoding="utf-8")
        (temporary / "images").mkdir()
        for i in range(len(host)):
            _write_pictures(temporary / "images", host, i)


def load_explanation(folder: str | os.PathLike[str]) -> Explanation:
    """Reads a folder; see :meth:`Explanation.load`."""
    path = Path(folder)
    try:
        said = json.loads((path / "explanation.json").read_text(encoding="utf-8"))
        if said["format"] != FORMAT_VERSION:
            raise CAEError(
                f"{path}: format version {said['format']!r}, this version reads {FORMAT_VERSION}"
            )
        with np.load(path / "explanation.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        offsets = arrays["path_offsets"].tolist()
        parts = [slice(low, high) for low, high in pairwise(offsets)]
        meta = dict(said["meta"])
        meta["rejected"] = {int(row): why for row, why in meta.get("rejected", {}).items()}
        rows = said["explanations"]
        named = {name for name in (*ROWS, "status", "reconstructed_class") if name in arrays}
        if {len(arrays[name]) for name in named} | {len(parts)} != {len(rows)}:
            raise CAEError(f"{path}: its arrays and its JSON have different numbers of images")
        return Explanation(
            **{name: arrays[name] for name in ROWS},
            status=arrays["status"],
            path_t=[arrays["path_t"][part] for part in parts],
            path_logits=[arrays["path_logits"][part] for part in parts],
            names=[row["name"] for row in rows],
            exemplar_names=[tuple(row["exemplar_names"]) for row in rows],
            class_names=tuple(said["class_names"]),
            meta=meta,
            reconstructed_class=arrays.get("reconstructed_class"),
            second_path=_second_paths(arrays, len(rows)),
            frame_t=arrays.get("frame_t"),
            path_images=arrays.get("path_images"),
        )
    except CAEError:
        raise
    except _DAMAGE as error:
        raise CAEError(
            f"{path}: not a readable explanation folder ({type(error).__name__}: {error})"
        ) from None


def _second_paths(arrays: dict[str, Any], count: int) -> list[Any]:
    """Paths of `count` images, of which few are in the file; none where none is."""
    stored = {i: arrays.get(f"second_path_{i}") for i in range(count)}
    known = [path for path in stored.values() if path is not None]
    if not known:
        return []
    nothing = np.empty((0, known[0].shape[1]), dtype=np.float32)
    return [nothing if path is None else path for path in stored.values()]


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
