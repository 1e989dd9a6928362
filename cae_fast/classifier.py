# SPDX-License-Identifier: Apache-2.0
"""The classifier to be explained, as one callable.

Images in [-1, 1] in, logits out. It is never differentiated.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from .arrays import (
    GREY_WEIGHTS,
    Float32,
    Kind,
    as_kind,
    is_module,
    kind_of,
    like,
    resize_weights,
    to_numpy,
)
from .classifier_input import NARROW_BYTES, InputForm, as_dtype, form_of, inference, module_place
from .classifier_outputs import Outputs, array_of, as_logits
from .errors import ClassifierError


class Classifier:
    """A black box with everything real models need around it.

    Steps, in order: channels (grey <-> RGB), size, normalisation, the function, its outputs as
    logits. They run on arrays of the kind and on the device that the function gets.

    Attributes:
        labels: Class names, or None when unknown.
        num_classes: K; None until known from the labels or the first call.
        name: For messages and reports.
        sha256: Hash of the file it was loaded from, or None.
        arrays: Kind of arrays that the function gets, or None: the kind of the images.
        capture: Whether the function may be captured in a CUDA graph; a module always may.
        metadata: What its file says about it (accuracy and the like); empty for a callable.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        labels: Sequence[str] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        outputs: Outputs = "logits",
        arrays: Kind | None = None,
        batch: int | None = None,
        name: str | None = None,
        capture: bool = False,
    ) -> None:
        """Wraps a function.

        Args:
            fn: Images [N, C, H, W] -> outputs [N, K]: an array, or an object or mapping with
                `logits`. A `torch.nn.Module` gets tensors on its own device and of its own dtype,
                in eval mode, without gradients.
            labels: K distinct class names.
            mean: Subtracted from images in [0, 1], one number or one per channel. Without `mean`
                and `std` the function gets images in [-1, 1].
            std: Divides images in [0, 1] after `mean`.
            size: Height and width the function wants; others are resampled (bilinear, antialiased).
            channels: 1 or 3, when the function wants grey or RGB whatever the images are.
            outputs: "logits"; "probs" (rows of probabilities; one column is the probability of
                class 1); or "sigmoid" (one logit whose sigmoid is the probability of class 1).
            arrays: Kind of arrays the function gets; None: torch for a module, else the kind of the
                images.
            batch: The most images per call of the function.
            name: For messages and reports; by default the function's own.
            capture: The function may be captured in a CUDA graph, as modules are: a GPU then does
                again what a call queued, without a call. By that you promise that it takes torch
                tensors on the explaining GPU, whatever the images are, and does the same with all
                of them: it reads nothing that changes but weights changed in place. After any other
                change make another classifier. What is captured must first find what calls find,
                else it is called: see `Explanation.meta["stepping"]`. Elsewhere it is called.

        Raises:
            ClassifierError: An argument is of a wrong type or out of range.
        """
        if not callable(fn):
            raise ClassifierError(f"a classifier must be callable, got {type(fn).__name__}")
        self.name = name or getattr(fn, "__qualname__", None) or type(fn).__name__
        self.labels = None if labels is None else _checked_labels(labels)
        self.num_classes: int | None = None if self.labels is None else len(self.labels)
        self.sha256: str | None = None
        self.metadata: dict[str, Any] = {}
        if outputs not in ("logits", "probs", "sigmoid"):
            raise ClassifierError(
                f"outputs must be 'logits', 'probs' or 'sigmoid', got {outputs!r}"
            )
        if arrays not in (None, "numpy", "torch", "cupy"):
            raise ClassifierError(f"arrays must be 'numpy', 'torch' or 'cupy', got {arrays!r}")
        if channels not in (None, 1, 3):
            raise ClassifierError(f"channels must be 1 or 3, got {channels!r}")
        if batch is not None and (
            isinstance(batch, bool) or not isinstance(batch, int) or batch < 1
        ):
            raise ClassifierError(f"batch must be a positive integer, got {batch!r}")
        if capture and arrays not in (None, "torch"):
            raise ClassifierError(f"capture=True is for tensors of torch, got arrays={arrays!r}")
        if is_module(fn) and arrays not in (None, "torch"):
            raise ClassifierError(f"a torch module takes arrays='torch', got {arrays!r}")
        self._fn = fn
        self._outputs = outputs
        self.arrays: Kind | None = "torch" if is_module(fn) or capture else arrays
        self.capture = capture
        self._channels = channels
        self._size = _checked_size(size)
        self._mean = _per_channel(mean, "mean")
        self._std = _per_channel(std, "std")
        if self._std is not None and not (self._std > 0).all():
            raise ClassifierError(f"std must be positive, got {std!r}")
        self._batch = batch
        self._pad = False
        self._lock = threading.Lock()
        self._constants: dict[tuple[Any, ...], Any] = {}

    def __repr__(self) -> str:
        """Name and labels."""
        labels = "" if self.labels is None else f", labels={list(self.labels)}"
        return f"Classifier({self.name}{labels})"

    @classmethod
    def load(cls, spec: str | os.PathLike[str], **options: Any) -> Classifier:
        """Loads a classifier: `.onnx`, `.pt2`, TorchScript `.pt`, or `module:function`.

        `module:function` names a function without arguments that returns a callable or a
        :class:`Classifier`, or such an object itself. Pickled modules are never unpickled.

        Args:
            spec: Path or specification.
            **options: Arguments of :class:`Classifier` that override what the file says, and
                `isolate=True`: an `.onnx` that is not trusted runs in a process of its own.

        Raises:
            ClassifierError: No such file, damaged, refused, or of a kind that is not read.
            EngineError: A TensorRT engine that is damaged, unsigned, or for another place.
            BackendUnavailable: A TensorRT engine where none can be run.
            MissingExtra: The library for this kind of file is not installed.
        """
        from .classifier_files import load_classifier

        return load_classifier(spec, options)

    def prepared(self, images: Any, *, device: Any = None, dtype: str = "float16") -> Classifier:
        """This classifier made quick for a GPU: half precision, channels last, batch norms folded.

        Args:
            images: [N, C, H, W] float32 in [-1, 1] on which both must decide the same.
            device: A torch device; None is where the module is.
            dtype: "float16" or "bfloat16".

        Returns:
            Another classifier; its `metadata["prepared"]` says how far logits moved.

        Raises:
            ClassifierError: It is no torch module, or it would decide otherwise for an image.
        """
        from .prepared_classifier import prepare

        return prepare(self, images, device=device, dtype=dtype)

    @property
    def function(self) -> Callable[[Any], Any]:
        """What was wrapped."""
        return self._fn

    def replace_function(self, fn: Callable[[Any], Any], *, name: str) -> None:
        """Makes this a classifier that calls `fn` instead; constants and locks are its own."""
        self._fn, self.name = fn, name
        self._constants, self._lock = {}, threading.Lock()

    def __call__(self, images: Any) -> Float32:
        """Classifies images.

        Args:
            images: [N, C, H, W] float32 in [-1, 1], any kind of array.

        Returns:
            Logits [N, K], float32, NumPy.

        Raises:
            ClassifierError: The function raised, or returned something else than [N, K] numbers.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[0] == 0:
            raise ClassifierError(f"images must be [N, C, H, W] with N >= 1, got {list(shape)}")
        array = as_kind(images, self.arrays or kind_of(images))
        step = self._batch or shape[0]
        parts = [self._classify(array[first : first + step]) for first in range(0, shape[0], step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def input_form(self, channels: int, size: int) -> InputForm | None:
        """How a torch function gets images [N, channels, size, size] of the explaining GPU.

        Returns:
            What :meth:`on_device` takes as `ready`; None where the images serve as they are, or
            only :meth:`on_device` can make of them what the function wants.
        """
        if self._size not in (None, (size, size)):
            return None
        return form_of(self._fn, channels, self._channels, self._mean, self._std)

    def on_device(self, images: Any, *, ready: bool = False) -> Any:
        """Classifies tensors without taking the logits off their device.

        Nothing waits for the device, so that it may be captured in a graph: values are not looked
        at. After a first call, no memory is copied from the host.

        Args:
            images: torch tensor [N, C, H, W] float32 in [-1, 1].
            ready: They are in the form of :meth:`input_form` already.

        Returns:
            Logits [N, K], a float32 tensor where the function returned one, else NumPy.

        Raises:
            ClassifierError: The function raised, or returned something else than [N, K] numbers.
        """
        count = images.shape[0]
        step = self._batch or count
        parts = []
        for first in range(0, count, step):
            part = images[first : first + step]
            raw = self._run(part, ready=ready)
            raw = raw if kind_of(raw) == "torch" else to_numpy(raw)
            parts.append(self._logits(raw[: part.shape[0]] if self._pad else raw, part.shape[0]))
        if len(parts) == 1:
            return parts[0]
        if all(kind_of(part) == "torch" for part in parts):
            import torch

            return torch.cat(parts)
        return np.concatenate([to_numpy(part) for part in parts])

    def _classify(self, images: Any) -> Float32:
        """One call of the function."""
        count = images.shape[0]
        raw = to_numpy(self._run(images))
        logits: Float32 = self._logits(raw[:count] if self._pad else raw, count)
        return logits

    def _run(self, images: Any, *, ready: bool = False) -> Any:
        """What the function makes of images, as an array."""
        count = images.shape[0]
        try:
            prepared = images if ready else self._prepare(images)
            if self._pad and self._batch is not None and count < self._batch:
                prepared = prepared[[*range(count), *([0] * (self._batch - count))]]
            with inference(self._fn, self.arrays):
                return array_of(self._fn(prepared), self.name)
        except (ClassifierError, MemoryError):
            raise
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            raise ClassifierError(
                f"classifier {self.name} raised {type(error).__name__}: {said[0]}"
            ) from error

    def _prepare(self, images: Any) -> Any:
        """Channels, size and normalisation, on whatever kind of array this is."""
        place = module_place(self._fn) if is_module(self._fn) else None
        if place is None:
            return self._prepare_here(images)
        device, dtype = place
        wide = dtype.itemsize > NARROW_BYTES
        images = images.to(device=device, dtype=dtype if wide else None)
        return self._prepare_here(images).to(dtype)  # halves are rounded once, at the end

    def _prepare_here(self, images: Any) -> Any:
        """The same in the dtype that the images are of."""
        have, want = images.shape[1], self._channels
        if want is not None and have != want:
            if (have, want) == (1, 3):
                torch_like = kind_of(images) == "torch"
                images = images.expand(-1, 3, -1, -1) if torch_like else images.repeat(3, axis=1)
            elif (have, want) == (3, 1):
                red, green, blue = GREY_WEIGHTS
                images = images[:, 0:1] * red + images[:, 1:2] * green + images[:, 2:3] * blue
            else:
                raise ClassifierError(
                    f"classifier {self.name} takes {want} channels, images have {have}: only grey "
                    "and RGB convert"
                )
        if self._size is not None and tuple(images.shape[2:]) != self._size:
            for axis, target in ((2, self._size[0]), (3, self._size[1])):
                weights = self._beside(resize_weights(images.shape[axis], target), images)
                images = weights @ images if axis == 2 else images @ weights.T
        if self._mean is None and self._std is None:
            return images
        images = (images + 1) / 2
        for numbers, what in ((self._mean, "mean"), (self._std, "std")):
            if numbers is None:
                continue
            if len(numbers) not in (1, images.shape[1]):
                raise ClassifierError(
                    f"{what} has {len(numbers)} numbers, the images have {images.shape[1]} channels"
                )
            column = self._beside(numbers[:, None, None], images)
            images = images - column if what == "mean" else images / column
        return images

    def _beside(self, constant: Float32, images: Any) -> Any:
        """A constant where the images are and of their dtype; copied to a device once."""
        if kind_of(images) == "numpy":
            return constant.astype(images.dtype, copy=False)
        key = (constant.tobytes(), constant.shape, str(images.device), str(images.dtype))
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = as_dtype(like(constant, images), images)
        return found

    def _logits(self, raw: Any, count: int) -> Any:
        """What the function returned, as logits [N, K] of the same kind."""
        logits = as_logits(raw, count, self._outputs, self.name)
        classes = logits.shape[1]
        with self._lock:
            if self.num_classes is None:
                self.num_classes = classes
        if classes != self.num_classes:
            raise ClassifierError(
                f"classifier {self.name} returned {classes} outputs per image, expected "
                f"{self.num_classes}"
                + ("" if self.labels is None else f" (labels {list(self.labels)})")
            )
        return logits


def classifier_from(value: Any) -> Classifier:
    """A classifier from a Classifier, a callable, a torch module, a path or a specification.

    Raises:
        ClassifierError: The value is none of these, or cannot be loaded.
    """
    if isinstance(value, Classifier):
        return value
    if isinstance(value, str | os.PathLike):
        return Classifier.load(value)
    if isinstance(value, type) or not callable(value):
        raise ClassifierError(
            "classifier must be a callable [N, C, H, W] -> logits [N, K], a cf.Classifier or a "
            "file, "
            f"got {value!r}"
        )
    return Classifier(value)


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not isinstance(labels, Sequence | np.ndarray):
        raise ClassifierError(f"labels must be a list of class names, got {labels!r}")
    names = tuple(labels)
    if (
        len(names) < 2
        or len(set(names)) != len(names)
        or not all(isinstance(n, str) and n for n in names)
    ):
        raise ClassifierError(f"labels must be at least two distinct names, got {list(names)}")
    return names


def _checked_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (
        (size, size)
        if isinstance(size, int)
        else tuple(size)
        if isinstance(size, tuple | list)
        else ()
    )
    if len(pair) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in pair):
        raise ClassifierError(f"size must be a positive integer or (height, width), got {size!r}")
    return cast("tuple[int, int]", pair)


def _per_channel(numbers: float | Sequence[float] | None, what: str) -> Float32 | None:
    if numbers is None:
        return None
    try:
        array = np.atleast_1d(np.asarray(numbers, dtype=np.float32))
    except (TypeError, ValueError):
        array = np.full((1, 1), np.nan, dtype=np.float32)
    if array.ndim != 1 or not 1 <= len(array) <= 4 or not np.isfinite(array).all():
        raise ClassifierError(f"{what} must be one number or one per channel, got {numbers!r}")
    return array
