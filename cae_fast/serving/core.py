# SPDX-License-Identifier: Apache-2.0
"""The work itself: models by name and version, and batches of jobs explained with them.

The same object is used in the serving process and in an engine process. :meth:`EngineCore.load` may
run beside :meth:`EngineCore.explain` in another thread; explaining is for one thread at a time.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cae_fast.arrays import Float32
from cae_fast.bank import CodeBank
from cae_fast.classifier import Classifier
from cae_fast.decoding import SUFFIXES
from cae_fast.errors import CAEError, ClassifierError
from cae_fast.exemplars import average
from cae_fast.explainer import Explainer
from cae_fast.explanation import Explanation
from cae_fast.images import load_images, to_uint8
from cae_fast.manifold.choice import default_k
from cae_fast.manifold.paths import GuidedPaths
from cae_fast.memory import is_out_of_memory
from cae_fast.model import CAE
from cae_fast.serving.jobs import Job, Options, Outcome, stacked
from cae_fast.serving.projection import Plane, shown_points
from cae_fast.serving.settings import ModelFiles

log = logging.getLogger("cae_fast.serving")

_FIELDS = (
    *("status", "t_flip", "bracket", "source_class", "target_class", "reached_class"),
    *("reconstructed_class", "searched_again", "logits_source", "logits_counterfactual"),
    *("evaluations", "exemplar"),
    *("counterfactual", "reconstruction", "saliency"),
)


@dataclass(frozen=True)
class Loaded:
    """A model that explains."""

    explainer: Explainer
    plane: Plane
    canary: Float32
    k: int


class EngineCore:
    """Models, and how batches are explained with them."""

    def __init__(
        self,
        *,
        backend: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        max_batch: int | None = None,
    ) -> None:
        """Without models yet.

        Args:
            backend: As in `cf.Explainer`; so is `device`.
            device: The device.
            threads: Of the CPU engine; None leaves what is set.
            max_batch: The most images or path points in flight, None: the backend's own.
        """
        self._backend, self._device, self._max_batch = backend, device, max_batch
        self._loaded: dict[tuple[str, int], Loaded] = {}
        self._lock = threading.Lock()
        if threads is not None:
            from cae_fast import set_num_threads

            set_num_threads(threads)

    def load(self, name: str, version: int, files: ModelFiles) -> dict[str, Any]:
        """Loads a model beside those that are there, and explains one image with it.

        Returns:
            What the front needs to know of it: plain values and arrays.

        Raises:
            ValueError: A file is missing, damaged, or does not belong to the others, or the first
                explanation failed.
            BackendUnavailable: The backend cannot run here.
        """
        start = time.perf_counter()
        model = CAE.load(files.model)
        bank = CodeBank.load(files.bank)
        explainer = Explainer(
            model,
            Classifier.load(files.classifier),
            bank=bank,
            backend=self._backend,
            device=self._device,
            max_batch=self._max_batch,
        )
        samples = sample_files(files)
        k = _averaged(files, bank)
        loaded = Loaded(explainer, Plane.of(bank.codes), _canary(explainer, samples), k)
        _explain_canary(loaded)
        with self._lock:
            self._loaded[name, version] = loaded
        config = model.config
        return {
            "class_names": list(explainer.class_names),
            "num_classes": config.num_classes,
            "image_size": config.image_size,
            "in_channels": config.in_channels,
            "samples": [sample.name for sample in samples],
            "k": k,
            "backend": explainer.backend.name,
            "device": explainer.backend.device,
            "dtype": explainer.backend.dtype,
            "model_sha256": model.sha256,
            "bank_sha256": bank.sha256,
            "classifier": explainer.classifier.name,
            "classifier_sha256": explainer.classifier.sha256,
            "bank_names": list(bank.names),
            "bank_labels": bank.labels,
            "usable": bank.usable_counts(),
            "points": shown_points(loaded.plane.place(bank.codes), bank.labels),
            "explained": list(loaded.plane.explained),
            "seconds": time.perf_counter() - start,
        }

    def drop(self, name: str, version: int) -> None:
        """Forgets a model; unknown ones are fine."""
        with self._lock:
            self._loaded.pop((name, version), None)

    def canary(self, name: str, version: int) -> None:
        """Explains one image.

        Raises:
            ClassifierError: The result is no explanation.
        """
        _explain_canary(self._get(name, version))

    def explain(self, name: str, version: int, jobs: list[Job]) -> Outcome:
        """Explains jobs with equal options; what fails fails alone.

        Where the batch as a whole is refused, each job is tried by itself.
        """
        start = time.perf_counter()
        outcome = Outcome()
        try:
            loaded = self._get(name, version)
        except CAEError as error:
            outcome.failures = {row: (503, "unavailable", str(error)) for row in range(len(jobs))}
            return outcome
        try:
            outcome.groups.append(_group(loaded, jobs, list(range(len(jobs)))))
        except Exception as error:
            if len(jobs) == 1:
                outcome.failures[0] = _failure(error)
            else:
                for row, job in enumerate(jobs):
                    try:
                        outcome.groups.append(_group(loaded, [job], [row]))
                    except Exception as alone:
                        outcome.failures[row] = _failure(alone)
        outcome.seconds = time.perf_counter() - start
        return outcome

    def _get(self, name: str, version: int) -> Loaded:
        with self._lock:
            found = self._loaded.get((name, version))
        if found is None:
            raise CAEError(f"model {name} is not loaded any more")
        return found


def sample_files(files: ModelFiles) -> list[Path]:
    """Sample images of a model, by name."""
    folder = files.samples_folder
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:64]


def _averaged(files: ModelFiles, bank: CodeBank) -> int:
    """`k` as asked for, else as the card beside the model says, else the explainer's default."""
    if files.k is not None:
        return files.k
    try:
        card = json.loads((Path(files.model).parent / "card.json").read_text(encoding="utf-8"))
        return int(card["k"])
    except (OSError, ValueError, TypeError, KeyError):
        return default_k(bank)


def _canary(explainer: Explainer, samples: list[Path]) -> Float32:
    """One image [1, C, S, S]: the first sample that can be read, else the decoded first code."""
    config = explainer.model.config
    for sample in samples:
        try:
            return load_images(sample, size=config.image_size, channels=config.in_channels)
        except ValueError:
            continue
    return np.zeros((1, *config.image_shape), dtype=np.float32)


def _explain_canary(loaded: Loaded) -> None:
    result = loaded.explainer.explain(loaded.canary, k=loaded.k, tolerance=1 / 16)
    if result.status[0] in ("non_finite", "rejected"):
        raise ClassifierError(
            f"the first explanation came out as {result.status[0]}: model or classifier is broken"
        )


def _group(loaded: Loaded, jobs: list[Job], rows: list[int]) -> dict[str, Any]:
    """Explains jobs together; arrays have one row for each."""
    options = jobs[0].options
    images = stacked(jobs)
    if options.kind == "frames":
        fields = _path_frames(loaded, jobs, images)
        return {"rows": rows, "fields": fields, "ragged": {}, "meta": {}}
    result = loaded.explainer.explain(
        images,
        target=[job.target for job in jobs],
        path=cast(Any, options.path),
        tolerance=options.tolerance,
        k=options.k,
        reach=options.reach,
        second_try=options.second_try,
        min_probability=options.min_probability,
        search=cast(Any, options.search),
        saliency=cast(Any, options.saliency),
        frames=options.frames,
    )
    fields = {name: getattr(result, name) for name in _FIELDS}
    fields["reason"] = np.array([result.meta["rejected"].get(i, "") for i in range(len(jobs))])
    nothing = np.empty((0, loaded.explainer.model.config.code_dim), dtype=np.float32)
    ragged: dict[str, Any] = {
        "path_t": result.path_t,
        "path_logits": result.path_logits,
        "second_path": result.second_path or [nothing] * len(jobs),
    }
    if result.path_images is not None:
        fields |= _frame_fields(loaded, result.path_images)
        ragged["frame_t"] = [result.frame_t] * len(jobs)
    if options.code:
        fields |= _codes(loaded, images, result)
        ragged["exemplar_png"] = _exemplar_files(loaded, result)
    meta = {key: value for key, value in result.meta.items() if key != "rejected"}
    return {"rows": rows, "fields": fields, "ragged": ragged, "meta": meta}


def _frame_fields(loaded: Loaded, frames: Float32) -> dict[str, Any]:
    """Frames [N, F, C, S, S] as pixels, and what the classifier says of each."""
    count, length = frames.shape[:2]
    flat = frames.reshape(-1, *frames.shape[2:])
    logits = np.full((len(flat), loaded.explainer.model.config.num_classes), np.nan, np.float32)
    finite = np.flatnonzero(np.isfinite(flat).all(axis=(1, 2, 3)))
    step = loaded.explainer.backend.max_batch
    for first in range(0, len(finite), step):
        part = finite[first : first + step]
        logits[part] = loaded.explainer.classifier(np.ascontiguousarray(flat[part]))
    pixels = to_uint8(flat)
    return {
        "frames": pixels.reshape(count, length, *pixels.shape[1:]),
        "frame_logits": logits.reshape(count, length, -1),
    }


def frame_positions(options: Options) -> Float32:
    """Positions t [frames] along a path: those grid points that lie nearest to an even spacing."""
    grid = 1
    while grid < 1 / options.tolerance:
        grid *= 2
    steps = np.rint(np.linspace(0, grid, options.frames))
    return (steps / grid).astype(np.float32)


def _path_frames(loaded: Loaded, jobs: list[Job], images: Float32) -> dict[str, Any]:
    """A part of the frames of each job's path."""
    options = jobs[0].options
    positions = frame_positions(options)[options.frame_from : options.frame_to]
    codes = loaded.explainer.encode(images).class_code.astype(np.float32)
    bank = loaded.explainer.bank
    assert bank is not None
    paths = np.stack([codes, codes], axis=1)
    for path, job in zip(paths, jobs, strict=True):
        if job.second_path:
            path[:] = job.second_path
        elif job.rows:
            end = average(bank, np.array([job.rows], dtype=np.int64))
            path[:] = GuidedPaths("line", None, options.reach).vertices(path[:1], end)[0]
    frames = loaded.explainer.path_between(images, paths, positions)
    return _frame_fields(loaded, frames)


def _codes(loaded: Loaded, images: Float32, result: Explanation) -> dict[str, Any]:
    """Places in the plane of images, exemplars and both ends of paths; NaN where there is none."""
    bank = loaded.explainer.bank
    assert bank is not None
    good = result.status != "rejected"
    image, exemplar, start, end = np.full((4, len(images), 2), np.nan, dtype=np.float32)
    if good.any():
        codes = loaded.explainer.backend.encode_class(np.ascontiguousarray(images[good]))
        image[good] = loaded.plane.place(codes)
    used = np.flatnonzero((result.exemplar >= 0).all(axis=1))
    if len(used):
        exemplar[used] = loaded.plane.place(average(bank, result.exemplar[used]))
    start[:], end[:] = image, image + result.reach * (exemplar - image)
    for i in np.flatnonzero(result.searched_again):
        start[i], end[i] = loaded.plane.place(result.second_path[i][[0, -1]])
    return {
        "code_image": image,
        "code_exemplar": exemplar,
        "code_start": start,
        "code_end": end,
    }


def _exemplar_files(loaded: Loaded, result: Explanation) -> list[npt.NDArray[np.uint8]]:
    """PNG files of the nearest exemplars; empty where there is none, or the bank keeps none."""
    bank = loaded.explainer.bank
    files = None if bank is None else bank.thumbnails
    nearest = result.exemplar[:, 0].tolist()
    return [
        np.frombuffer(b"" if files is None or row < 0 else files[row], np.uint8) for row in nearest
    ]


def _failure(error: Exception) -> tuple[int, str, str]:
    """HTTP status, code and message; what concerns the machine goes to the log only."""
    if is_out_of_memory(error):
        log.warning("out of memory: %s", error)
        return 503, "out_of_memory", "out of memory for this request; try again, or a smaller one"
    if isinstance(error, ClassifierError):
        log.error("the classifier failed: %s", error)
        return 500, "classifier_failed", "the classifier failed on this image"
    if isinstance(error, CAEError | ValueError):
        return 400, "bad_request", str(error)
    log.error("an explanation failed", exc_info=error)
    return 500, "internal", "the explanation failed"
