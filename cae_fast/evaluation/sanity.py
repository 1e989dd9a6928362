# SPDX-License-Identifier: Apache-2.0
"""A sanity check: a classifier with randomised weights must change the map.

After Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import is_module
from ..classifier import Classifier

Float = npt.NDArray[np.floating[Any]]


def randomised(classifier: Classifier, path: Path | None, *, seed: int = 0) -> Classifier | str:
    """The classifier with the numbers of each weight tensor shuffled, or why that cannot be.

    Tensors of two or more dimensions (convolutions, matrices) are shuffled; norms and biases stay.

    Args:
        classifier: A torch module, a .pt2 file, or an ONNX file.
        path: The file it was loaded from; needed for ONNX.
        seed: Of the shuffling.
    """
    network: Any = classifier.function
    network = getattr(network, "exported", network)
    if is_module(network):
        return _randomised_module(classifier, network, seed)
    if path is not None and path.suffix.lower() == ".onnx":
        return _randomised_onnx(path, seed)
    return f"{classifier.name}: its weights cannot be randomised: wanted a .pt2 or .onnx file"


def _randomised_module(classifier: Classifier, network: Any, seed: int) -> Classifier | str:
    import torch

    if isinstance(network, torch.jit.ScriptModule):
        return f"{classifier.name}: weights of TorchScript are not randomised: wanted a .pt2 file"
    rng = np.random.default_rng(seed)
    shuffled = copy.deepcopy(network)
    with torch.no_grad():
        for weights in shuffled.parameters():
            if weights.ndim >= 2:
                order = torch.from_numpy(rng.permutation(weights.numel()))
                weights.copy_(weights.reshape(-1)[order].reshape(weights.shape))
    fresh = copy.copy(classifier)
    kind: Any = type(classifier.function)
    fn = kind(shuffled) if hasattr(classifier.function, "exported") else shuffled
    fresh.replace_function(fn, name=f"{classifier.name} (randomised)")
    return fresh


def _randomised_onnx(path: Path, seed: int) -> Classifier | str:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        return "randomising an ONNX file needs the package onnx"
    rng = np.random.default_rng(seed)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim >= 2 and values.dtype.kind == "f":
            fresh = rng.permutation(values.reshape(-1)).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(fresh, tensor.name))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        onnx.save_model(model, str(file))
        return Classifier.load(file, name=f"{path.name} (randomised)")


def rank_correlation(first: Float, second: Float) -> Float:
    """Spearman's correlation of maps [N, H, W] pixel by pixel, [N]; NaN for a flat map."""
    result = np.full(len(first), np.nan)
    for i, pair in enumerate(zip(first, second, strict=True)):
        a, b = (_average_ranks(values.reshape(-1)) for values in pair)
        spread = float(a.std() * b.std())
        if spread > 0:
            result[i] = float(((a - a.mean()) * (b - b.mean())).mean()) / spread
    return result


def _average_ranks(values: Float) -> Float:
    """Ranks, the mean one for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Float = (ends - (counts - 1) / 2)[inverse]
    return ranks
