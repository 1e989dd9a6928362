# SPDX-License-Identifier: Apache-2.0
"""The explainer: images in, explanations out, on any backend."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from . import __version__ as _version
from .arrays import checked_images, checked_tensor, like, pixel_faults, to_numpy
from .backends import Backend, select_backend
from .backends.cuda import CudaBackend
from .bank import CodeBank
from .class_names import agree
from .classifier import classifier_from
from .classifier_calls import ClassifierCalls
from .codec import Codec
from .device_search import LARGEST_CODE, DeviceSearcher
from .errors import ClassifierError
from .exemplars import Exemplars
from .explain_job import ExplainJob
from .explanation import Explanation
from .group_search import GroupSearch, OnDevice, stepping_of
from .manifold.paths import GuidedPaths, default_reach
from .maps import Against, MapKind, check_maps, make_maps
from .model import CAE
from .path_search import Clock, search_rules
from .second_search import SecondSearch
from .targets import check_target, row_texts


class Explainer(Codec):
    """Explains a classifier's decisions about images with a model of its classes.

    Attributes:
        model: The model.
        classifier: The classifier, as a :class:`cae_fast.Classifier`.
        bank: The code bank, or None.
        class_names: Names of the K classes, the model's.
        backend: The backend chosen; `backend.name`, `.device`, `.dtype`, `.max_batch`.
    """

    def __init__(
        self,
        model: CAE,
        classifier: Any,
        *,
        bank: CodeBank | str | os.PathLike[str] | None = None,
        backend: str = "auto",
        precision: str = "auto",
        device: str | None = None,
        max_batch: int | None = None,
    ) -> None:
        """Checks that model, classifier and bank belong together, and readies the backend.

        Args:
            model: The model.
            classifier: A callable [N, C, H, W] -> logits [N, K], a :class:`cae_fast.Classifier`, a
                `torch.nn.Module`, or a file (see :meth:`cae_fast.Classifier.load`).
            bank: Where exemplars come from when none are given.
            backend: "auto", "cpu", "cuda", "torch"; "tensorrt" says why it cannot run.
            precision: "auto" or "fp32"; "exact": direct sums on the CPU, a third of the rounding
                error for more than three times the time; "fp64" with the torch backend; "fp16",
                what the cuda backend computes in.
            device: A torch device, for the torch backend; "cuda:N" for the cuda backend. See
                :func:`cae_fast.backends.select_backend`.
            max_batch: The most images, or points of paths, in flight; also the images searched
                together. Fewer are taken where memory runs out.

        Raises:
            ValueError: Wrong arguments.
            ClassifierError: The classifier cannot be loaded, or its labels are not the model's
                classes.
            BankError: The bank belongs to another model or names other classes.
            BackendUnavailable: The backend cannot run here.
            OutOfMemory: The model does not fit, not even with `max_batch` 1.
        """
        if not isinstance(model, CAE):
            raise ValueError(
                f"model must be a cae_fast.CAE (see CAE.load), got {type(model).__name__}"
            )
        self.model = model
        self.classifier = classifier_from(classifier)
        self.bank = CodeBank.load(bank) if isinstance(bank, str | os.PathLike) else bank
        labels = self.classifier.labels
        self.class_names = agree(
            {"model": model.config.class_names, "classifier": labels}, error=ClassifierError
        )
        if self.bank is not None:
            if not isinstance(self.bank, CodeBank):
                raise ValueError(
                    f"bank must be a cae_fast.CodeBank or its file, got {type(bank).__name__}"
                )
            self.bank.check(model)
        self.backend = select_backend(
            backend, model, device=device, precision=precision, max_batch=max_batch
        )
        self._searcher: DeviceSearcher | None = None
        self._rescue: Backend | None = None

    def __repr__(self) -> str:
        """Backend, device, classifier."""
        where = f"{self.backend.name} on {self.backend.device}"
        return f"Explainer({self.model!r}, {self.classifier.name}, backend={where})"

    def explain(
        self,
        images: Any,
        target: Any = None,
        exemplars: Any = None,
        path: Literal["line", "graph"] = "line",
        tolerance: float = 1 / 256,
        k: int | None = None,
        min_probability: float = 0.0,
        coarse: int = 4,
        search: Literal["bisection", "margin"] = "bisection",
        saliency_against: Against = "reconstruction",
        saliency: MapKind = "difference",
        frames: int = 0,
        names: Sequence[str] | None = None,
        rejected: Sequence[str | None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        reach: float | None = None,
        second_try: bool = True,
    ) -> Explanation:
        """Explains images by the point of each guided path where the classifier changes its mind.

        Args:
            images: [N, C, S, S] float32 in [-1, 1], NumPy, torch, CuPy or anything with DLPack; N
                may be 0. An image with NaN, Inf or values out of range is `rejected`, alone.
            target: None (the other class of two, else the runner-up logit; where exemplars come
                from the bank, among the classes with `k` usable rows there), a class index or name,
                "any" (leaving the source class; a class of that name comes first), or one of these
                per image.
            exemplars: Images [N or 1, C, S, S], class codes [N or 1, D], bank rows [N or 1] or [N
                or 1, k]; or how they are chosen among the bank's correctly classified rows of the
                target class: "reliable" (nearest, among rows all of whose neighbours are of their
                class), "nearest", "medoid" (the most central of the k nearest) or
                "reliable-medoid"; None is "reliable".
            path: "line", straight to the exemplar, or "graph", the shortest path over the neighbour
                graph of the bank's codes (extra `manifold`).
            tolerance: Width of the final bracket in t, in [2**-20, 1]; the grid is the smallest
                power of two >= 1 / tolerance.
            k: Nearest rows averaged, or that a medoid is taken of, where exemplars are chosen; None
                is 20, or a quarter of the smallest class's usable rows where that is less.
            reach: Length of a line over its distance to the exemplar, in [1, 4]: it goes on beyond,
                in the same direction, so that more images flip. None is 1.5 where exemplars are
                chosen, 1 where they are given; graphs end at the exemplar.
            second_try: Search images a second time whose reconstruction is not of the image's class
                (from a code that is, towards exemplars of that class or away from the target's), or
                along whose path nothing flips (towards exemplars from the middle of the target
                class); what says more is told. Never where exemplars are given. See
                `Explanation.second_path`.
            min_probability: A point has flipped only when its class has at least this probability,
                in [0, 1].
            coarse: Intervals whose ends are looked at first, a power of two of at most 4096; no
                more than the grid are taken.
            search: How the first interval that flips is narrowed. "bisection" halves it. "margin"
                looks where the lead of the target over the best other class puts the flip: far
                fewer decodes where that lead changes smoothly, at most one more where it does not.
                Where the classifier changes its mind more than once in the interval, the two may
                report different flips.
            saliency_against: What the counterfactual is compared with.
            saliency: Kind of map, see :func:`cae_fast.maps.make_maps`; `difference` stays the raw
                change whatever it is.
            frames: Images decoded along each path for display, evenly in t; 0 or at least 2.
            names: N names for reports.
            rejected: Per image why it is to be refused unseen, or None; as `load_images(...,
                on_error="collect")` returns.
            on_progress: Called with (images done, images in all) of the search.

        Returns:
            One explanation of all images; arrays of the kind and on the device of `images`.

        Raises:
            ValueError: A wrong argument; the message names it.
            ClassifierError: The classifier raised or returned something else than logits [N, K].
            BankError: No bank and no exemplars, or the bank has fewer than `k` usable rows of the
                class asked for (by default: of every class but the image's own).
            OutOfMemory: The results do not fit, or one image alone does not. (A group of images
                that does not is halved; what comes out is the same.)
        """
        clock = Clock()
        with clock("total"):
            calls = ClassifierCalls(self.classifier, self.model.config, self.backend, images)
            check = checked_tensor if calls.here else checked_images
            array = check(images, self.model.config.image_shape)
            count = len(array)
            rules = search_rules(
                self.model.config.num_classes, tolerance, coarse, min_probability, search
            )
            names = row_texts(names, count, "names") or [f"image {i}" for i in range(count)]
            known = row_texts(rejected, count, "rejected") or [None] * count
            with clock("encode"):
                chosen = Exemplars(
                    exemplars,
                    count,
                    k=k,
                    config=self.model.config,
                    backend=self.backend,
                    bank=self.bank,
                )
            if reach is None:
                reach = default_reach(path, looked_up=not chosen.is_given)
            paths = GuidedPaths(path, self.bank, reach)
            drawn = check_maps(saliency, saliency_against, frames, given=chosen.is_given)
            on_device = self._on_device(calls, chosen)
            if not isinstance(second_try, bool):
                raise ValueError(f"second_try must be True or False, got {second_try!r}")
            again = second_try and not chosen.is_given
            group = GroupSearch(
                target=check_target(target, count, self.class_names, rules.num_classes),
                exemplars=chosen,
                paths=paths,
                rules=rules,
                against=saliency_against,
                backend=self.backend,
                classify=calls.to_host,
                clock=clock,
                on_device=on_device,
                second=SecondSearch(chosen, paths, rules, calls.to_host, clock) if again else None,
                draws=drawn > 0,
            )
            job = ExplainJob(
                images=to_numpy(array) if on_device is None else array,
                reasons=[
                    why or fault for why, fault in zip(known, pixel_faults(array), strict=True)
                ],
                search=group,
                frame_steps=np.rint(np.linspace(0, rules.grid, drawn)).astype(np.int32),
                bank_names=None if self.bank is None else self.bank.names,
                class_names=self.class_names,
            )
            result = job.run([str(name) for name in names], on_progress)
            result.meta |= self._meta() | {
                "stepping": stepping_of(on_device, self.backend),
                "computed_in_float32": group.rescued,
                "parameters": {
                    "path": path,
                    "reach": paths.reach,
                    "tolerance": float(tolerance),
                    "grid": rules.grid,
                    "coarse": rules.coarse,
                    "search": rules.search,
                    "min_probability": rules.min_probability,
                    "exemplars": "given" if chosen.choice is None else chosen.choice.name,
                    "k": chosen.k if chosen.choice is None else chosen.candidates,
                    "saliency_against": saliency_against,
                    "saliency": saliency,
                    "second_try": again,
                    "frames": frames,
                },
            }
            result = result.like(images)
            if saliency != "difference":
                with clock("map"):
                    result.saliency = like(make_maps(saliency, self, result).saliency, images)
            if not frames:
                result.path_images = result.frame_t = None
        result.meta["seconds"] = dict(clock.seconds)
        return result

    async def explain_async(self, images: Any, **options: Any) -> Explanation:
        """:meth:`explain` in a thread, so that an event loop goes on meanwhile.

        Same arguments, result and errors.
        """
        return await asyncio.to_thread(self.explain, images, **options)

    def _on_device(self, calls: ClassifierCalls, exemplars: Exemplars) -> OnDevice | None:
        """How groups are searched on the GPU, or None: from the host."""
        backend = self.backend
        too_long = not exemplars.is_given and exemplars.code_dim > LARGEST_CODE
        if not isinstance(backend, CudaBackend) or too_long:
            return None
        self._searcher = self._searcher or DeviceSearcher(backend, self.bank)
        made = calls.on_device, calls.state(), self._float32, calls.form()
        return OnDevice(self._searcher, *made)

    def _float32(self) -> Backend:
        """The CPU engine, for what overflows half precision; made when first needed."""
        self._rescue = self._rescue or select_backend("cpu", self.model, max_batch=1)
        return self._rescue

    def _meta(self) -> dict[str, Any]:
        return {
            "version": _version,
            "model_sha256": self.model.sha256,
            "bank_sha256": None if self.bank is None else self.bank.sha256,
            "classifier": self.classifier.name,
            "classifier_sha256": self.classifier.sha256,
            "backend": self.backend.name,
            "device": self.backend.device,
            "dtype": self.backend.dtype,
            "precision": self.backend.precision,
            "max_batch": self.backend.max_batch,
        }
