# SPDX-License-Identifier: Apache-2.0
"""Calls of the classifier to be explained, with the arrays that an explanation works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .arrays import Float32, Kind, as_kind, is_module, kind_of, like, to_numpy
from .backends import Backend
from .backends.cuda import CudaBackend
from .backends.cuda_graph import state_of
from .classifier import Classifier
from .classifier_input import InputForm, module_place
from .errors import ClassifierError
from .model import CAEConfig


@dataclass(frozen=True)
class ClassifierCalls:
    """A classifier for the images of one model, as one user brought them.

    Attributes:
        classifier: Is called.
        config: Of the model.
        backend: That explains.
        template: Images of the user: a classifier without a wish gets arrays of their kind, on
            their device.
    """

    classifier: Classifier
    config: CAEConfig
    backend: Backend
    template: Any

    @property
    def here(self) -> bool:
        """Whether the template is a tensor on the GPU that explains."""
        return isinstance(self.backend, CudaBackend) and self.backend.holds(self.template)

    @property
    def kind(self) -> Kind:
        """Of the arrays that the classifier gets."""
        return self.classifier.arrays or kind_of(self.template)

    @property
    def is_module(self) -> bool:
        """Whether it is a torch module, which says itself where it wants its tensors."""
        return is_module(self.classifier.function)

    @property
    def is_promised(self) -> bool:
        """Whether it is a function of tensors on the GPU that explains, and stays what it is."""
        return self.classifier.capture and isinstance(self.backend, CudaBackend)

    def state(self) -> tuple[Any, ...] | None:
        """What a graph of the calls depends on; None where they may not be captured.

        A function may call another model tomorrow, which nobody would see: only modules are
        captured, and functions that are promised to stay what they are.
        """
        on_gpu = isinstance(self.backend, CudaBackend) and self.backend.index is not None
        if not on_gpu or not (self.is_module or self.is_promised):
            return None
        module = self.classifier.function if self.is_module else None
        return (id(self.classifier), *state_of(module))

    def to_host(self, images: Any) -> Float32:
        """Images [m, C, S, S] of the backend -> logits [m, K], NumPy."""
        if self.is_promised and not self.is_module:
            images = as_kind(images, "torch").to(self.torch_device)
        elif self.kind == "torch" and not self.here and not self.is_module:
            images = to_numpy(images)  # a function's tensors are where the user's are
        if self.classifier.arrays is None:
            same = kind_of(images) == self.kind
            images = as_kind(images, self.kind) if same else like(images, self.template)
        logits = self.classifier(images)
        self._check(logits)
        return logits

    @property
    def gets_device_tensors(self) -> bool:
        """Whether :meth:`on_device` hands over tensors without a way through the host."""
        return self.kind == "torch" and (self.here or self.is_module or self.is_promised)

    @property
    def torch_device(self) -> str:
        """Where tensors on the GPU that explains are, as torch calls it; the CPU's for others."""
        on_gpu = isinstance(self.backend, CudaBackend) and self.backend.index is not None
        return self.backend.device if on_gpu else "cpu"

    def form(self) -> InputForm | None:
        """How the kernels are to write path points for the classifier; None: as images."""
        backend, place = self.backend, None
        if not isinstance(backend, CudaBackend) or not self.gets_device_tensors:
            return None
        if backend.elsewhere:
            return None  # another decoder draws them
        if self.is_module:
            place = module_place(self.classifier.function)
        if place is not None and str(place[0]) != self.torch_device:
            return None  # it is elsewhere
        return self.classifier.input_form(self.config.in_channels, self.config.image_size)

    def on_device(self, images: Any, form: InputForm | None = None) -> Any:
        """Images in device memory -> logits [m, K], there where that can be.

        Args:
            images: [m, C, S, S]; or what :meth:`form` says, as it lies in memory.
            form: What :meth:`form` said, where they are in it.
        """
        if not self.gets_device_tensors:
            return self.to_host(images)
        tensor = as_kind(images, "torch")
        if form is not None and form.channels_last:
            tensor = tensor.permute(0, 3, 1, 2)
        logits = self.classifier.on_device(tensor, ready=form is not None)
        self._check(logits)
        return logits

    def _check(self, logits: Any) -> None:
        if logits.shape[1] != self.config.num_classes:
            raise ClassifierError(
                f"classifier {self.classifier.name} returns {logits.shape[1]} logits per image, "
                f"the model has {self.config.num_classes} classes "
                f"{list(self.config.class_names)}"
            )
