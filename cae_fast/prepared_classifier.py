# SPDX-License-Identifier: Apache-2.0
"""A torch classifier made quick for a GPU, if it still decides the same."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .arrays import as_kind, is_module, to_numpy
from .classifier import Classifier
from .errors import ClassifierError


def prepare(classifier: Classifier, images: Any, *, device: Any, dtype: str) -> Classifier:
    """See :meth:`cae_fast.Classifier.prepared`."""
    import torch

    module = classifier.function
    if not is_module(module):
        raise ClassifierError(
            f"classifier {classifier.name} is no torch.nn.Module: only those can be prepared"
        )
    if dtype not in ("float16", "bfloat16"):
        raise ClassifierError(f"dtype must be 'float16' or 'bfloat16', got {dtype!r}")
    if not len(images):
        raise ClassifierError("images to check the prepared classifier on must be at least one")
    quick, folded = _folded(copy.deepcopy(module).eval())
    where = device if device is not None else _device_of(module)
    quick = quick.to(device=where, memory_format=torch.channels_last).to(getattr(torch, dtype))
    prepared = copy.copy(classifier)
    prepared.replace_function(quick, name=f"{classifier.name} ({dtype})")
    wanted = classifier(as_kind(images, "torch"))
    found = prepared(as_kind(images, "torch"))
    difference = float(np.abs(wanted - found).max())
    other = np.flatnonzero(wanted.argmax(axis=1) != found.argmax(axis=1))
    if len(other) or not np.isfinite(found).all():
        raise ClassifierError(
            f"classifier {classifier.name} decides otherwise in {dtype}: {len(other)} of "
            f"{len(wanted)} images change class, logits move by up to {difference:g}; use it as it "
            "is"
        )
    prepared.metadata = classifier.metadata | {
        "prepared": {
            "dtype": dtype,
            "batch_norms_folded": folded,
            "checked_images": len(to_numpy(images)),
            "largest_logit_difference": difference,
        }
    }
    return prepared


def _folded(module: Any) -> tuple[Any, bool]:
    """The module with batch norms folded into convolutions; as it is where it cannot be traced."""
    import torch
    from torch.fx.experimental import optimization

    if not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules()):
        return module, False
    try:
        return optimization.fuse(module, inplace=False), True
    except Exception:  # whatever symbolic tracing says of a user's module
        return module, False


def _device_of(module: Any) -> Any:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return "cpu"
