# SPDX-License-Identifier: Apache-2.0
"""From image files to a folder of explanations: what `cae-fast explain` and the demo do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt

from cae_fast.decoding import SUFFIXES
from cae_fast.errors import CAEError, ImageDecodeError
from cae_fast.files import check_output_directory
from cae_fast.images import load_images, load_original
from cae_fast.report.folder import write_folder

if TYPE_CHECKING:
    from cae_fast.bank import CodeBank
    from cae_fast.explainer import Explainer
    from cae_fast.explanation import Explanation
    from cae_fast.maps import MapKind


def explain_files(
    explainer: Explainer,
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    target: Any = None,
    exemplars: Any = None,
    path: str = "line",
    tolerance: float = 1 / 256,
    k: int | None = None,
    reach: float | None = None,
    second_try: bool = True,
    search: str = "bisection",
    saliency: str = "difference",
    frames: int = 9,
    title: str = "Explanations",
    notes: Sequence[str] = (),
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Explain image files and write the folder of `write_folder`.

    A file that cannot be read is a `rejected` row.

    Args:
        explainer: With a bank.
        sources: Image files, and folders whose image files are taken at any depth.
        out: Folder to write; it appears whole or not at all.
        target: As in `cf.Explainer.explain`.
        exemplars: As in `cf.Explainer.explain`.
        path: As in `cf.Explainer.explain`.
        tolerance: As in `cf.Explainer.explain`.
        k: As in `cf.Explainer.explain`.
        reach: As in `cf.Explainer.explain`.
        second_try: As in `cf.Explainer.explain`.
        search: As in `cf.Explainer.explain`.
        saliency: As in `cf.Explainer.explain`.
        frames: Frames decoded along each path for the path strip; 0 leaves the strip out.
        title: Heading of the page.
        notes: Paragraphs for the head of the page.
        overwrite: Replace a folder that is not empty.
        on_progress: Called with (images done, images in all).

    Returns:
        The explanations, in the order of the files.

    Raises:
        ImageDecodeError: None of the files can be read.
        ValueError: No such file, no image in a folder, `out` is a file or not empty, or an option
            is out of range.
        OSError: The file system refused.
    """
    check_output_directory(out, overwrite=overwrite)
    if isinstance(frames, bool) or frames < 0 or frames == 1 or frames > 65:
        raise CAEError(f"frames must be 0 or in 2..65, got {frames}")
    files = image_files(sources)
    config = explainer.model.config
    images, reasons = load_images(
        files, size=config.image_size, channels=config.in_channels, on_error="collect"
    )
    if all(reason is not None for reason in reasons):
        raise ImageDecodeError(
            f"none of the {len(files)} images can be read; the first: {reasons[0]}"
        )
    explanation = explainer.explain(
        images,
        target=target,
        exemplars=exemplars,
        path=cast(Literal["line", "graph"], path),
        tolerance=tolerance,
        k=k,
        reach=reach,
        second_try=second_try,
        search=cast(Literal["bisection", "margin"], search),
        saliency=cast("MapKind", saliency),
        names=image_names(files),
        frames=frames,
        rejected=reasons,
        on_progress=on_progress,
    )
    write_folder(
        out,
        explanation,
        title=title,
        originals=Originals(files, reasons),
        exemplar_images=exemplar_pictures(explainer.bank, explanation.exemplar),
        notes=notes,
        overwrite=overwrite,
    )
    return explanation


class Originals(Sequence[npt.NDArray[np.uint8] | None]):
    """Pictures at their own size, read when they are asked for: thousands would fill the memory."""

    def __init__(self, files: Sequence[Path], reasons: Sequence[str | None]) -> None:
        """Remember the files; those with a reason cannot be read."""
        self._files = files
        self._reasons = reasons

    def __len__(self) -> int:
        """Number of files."""
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.uint8] | None: ...

    @overload
    def __getitem__(self, index: slice) -> Originals: ...

    def __getitem__(self, index: int | slice) -> npt.NDArray[np.uint8] | Originals | None:
        """RGB pixels [H, W, 3] of a file, None where it cannot be read."""
        if isinstance(index, slice):
            return Originals(self._files[index], self._reasons[index])
        return None if self._reasons[index] else load_original(self._files[index])


def image_files(sources: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Image files of files and folders, each folder's sorted, nothing twice.

    Raises:
        ValueError: A source does not exist, or there is no image in a folder.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(
                path
                for path in source.rglob("*")
                if path.suffix.lower() in SUFFIXES
                and path.is_file()
                and not any(part.startswith(".") for part in path.relative_to(source).parts)
            )
            if not found:
                raise CAEError(
                    f"{source}: no image in this folder (wanted {', '.join(sorted(SUFFIXES))})"
                )
            files += found
        elif source.exists():
            files.append(source)
        else:
            raise CAEError(f"{source}: no such file or folder")
    return list(dict.fromkeys(files))


def image_names(files: Sequence[Path]) -> list[str]:
    """Names of files for people: relative to the folder that they share, and valid Unicode."""
    if len(files) == 1:
        names = [files[0].name]
    else:
        absolute = [file.absolute() for file in files]
        shared = Path(os.path.commonpath([file.parent for file in absolute]))
        names = [file.relative_to(shared).as_posix() for file in absolute]
    return [os.fsencode(name).decode("utf-8", errors="replace") for name in names]


def exemplar_pictures(
    bank: CodeBank | None, rows: npt.NDArray[np.int64]
) -> list[bytes | None] | None:
    """Thumbnails of each image's nearest exemplar; None where the bank keeps none."""
    if bank is None or bank.thumbnails is None:
        return None
    thumbnails = bank.thumbnails
    nearest = np.asarray(rows)[:, 0].tolist()
    return [thumbnails[row] if row >= 0 else None for row in nearest]
