# SPDX-License-Identifier: Apache-2.0
"""A sanity check: a classifier with randomised weights must change the map.

After Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018: cascading randomisation, from
the output towards the input. DEVIATION: a layer is randomised by shuffling its numbers, which keeps
their distribution, where Adebayo et al. draw new ones.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Float32, is_module, to_numpy
from ..classifier import Classifier

Float = npt.NDArray[np.floating[Any]]


def cascade_depths(layers: int) -> tuple[int, ...]:
    """How many layers, counted from the output, are randomised at each stage.

    The last one, a quarter, half and all of them.
    """
    if layers < 1:
        return ()
    return tuple(sorted({1, -(-layers // 4), -(-layers // 2), layers}))


def layer_count(classifier: Classifier, path: Path | None) -> int | str:
    """Number of weight tensors that :func:`randomised` can shuffle, or why it cannot.

    Args:
        classifier: A torch module, a .pt2 file, or an ONNX file.
        path: The file it was loaded from; needed for ONNX.
    """
    network = _network(classifier)
    if is_module(network):
        import torch

        if isinstance(network, torch.jit.ScriptModule):
            return (
                f"{classifier.name}: weights of TorchScript are not randomised: wanted a .pt2 file"
            )
        number = len(_module_layers(network))
    elif path is not None and path.suffix.lower() == ".onnx":
        try:
            import onnx
        except ImportError:
            return "randomising an ONNX file needs the package onnx"
        number = len(_onnx_layers(onnx.load(str(path))))
    else:
        return f"{classifier.name}: its weights cannot be randomised: wanted a .pt2 or .onnx file"
    return number or f"{classifier.name}: it has no weights that could be randomised"


def randomised(
    classifier: Classifier, path: Path | None, *, layers: int | None = None, seed: int = 0
) -> Classifier | str:
    """The classifier with the numbers of weight tensors shuffled, or why that cannot be.

    Tensors of two or more dimensions (convolutions, matrices) are shuffled, each on its own; norms
    and biases stay.

    Args:
        classifier: A torch module, a .pt2 file, or an ONNX file.
        path: The file it was loaded from; needed for ONNX.
        layers: How many tensors, from the output on; None is all. The order is that of use in a
            graph (.pt2, .onnx), that of definition in a torch module.
        seed: Of the shuffling. A tensor is shuffled alike however many are.
    """
    number = layer_count(classifier, path)
    if isinstance(number, str):
        return number
    taken = number if layers is None else min(layers, number)
    name = f"{classifier.name} (last {taken} of {number} layers randomised)"
    network = _network(classifier)
    if not is_module(network):
        assert path is not None
        return _randomised_onnx(path, taken, seed, name)
    import torch

    shuffled = copy.deepcopy(network)
    with torch.no_grad():
        for place, weights in enumerate(_module_layers(shuffled)[::-1][:taken]):
            order = torch.from_numpy(_order(seed, place, weights.numel()))
            weights.copy_(weights.reshape(-1)[order.to(weights.device)].reshape(weights.shape))
    fresh = copy.copy(classifier)
    fn: Any = shuffled
    if hasattr(classifier.function, "exported"):  # a .pt2 file's, called through its holder
        fn = copy.copy(classifier.function)
        fn.exported = shuffled
    fresh.replace_function(fn, name=name)
    return fresh


def recentred(classifier: Classifier, images: Float32) -> Classifier:
    """The classifier with a constant taken from each logit, so that no class wins everywhere.

    Random weights shift each logit as a whole, mostly by more than it differs between images: one
    class then gets every image and nothing flips. The mean logit of each class over `images` is
    taken away, as a fresh output bias would. Gradients, how logits depend on pixels, stay.

    Args:
        classifier: A randomised one.
        images: [N, C, S, S], N >= 1.
    """
    offset = to_numpy(classifier(images)).mean(axis=0, keepdims=True)

    def function(pictures: Any) -> Float32:
        logits = to_numpy(classifier(np.ascontiguousarray(to_numpy(pictures))))
        return np.asarray(logits - offset, dtype=np.float32)

    return Classifier(function, name=f"{classifier.name}, recentred")


def _network(classifier: Classifier) -> Any:
    return getattr(classifier.function, "exported", classifier.function)


def _order(seed: int, place: int, count: int) -> npt.NDArray[np.int64]:
    """A permutation for the tensor that is `place` tensors before the last."""
    return np.random.default_rng([seed, place]).permutation(count)


def _module_layers(network: Any) -> list[Any]:
    """Weight tensors of a module, from input to output."""
    import torch

    named = dict(network.named_parameters())
    names = list(named)
    if isinstance(network, torch.fx.GraphModule):
        place = {node: i for i, node in enumerate(network.graph.nodes)}
        used = {
            str(node.target): min((place[user] for user in node.users), default=len(place))
            for node in network.graph.nodes
            if node.op == "get_attr"
        }
        names.sort(key=lambda name: used.get(name, -1))
    return [named[name] for name in names if named[name].ndim >= 2]


def _onnx_layers(model: Any) -> list[Any]:
    """Weight initialisers of a model in the order of their first use."""
    used: dict[str, int] = {}
    for place, node in enumerate(model.graph.node):
        for name in node.input:
            used.setdefault(name, place)
    found = [
        tensor
        for tensor in model.graph.initializer
        if len(tensor.dims) >= 2 and tensor.data_type in (1, 10, 11)  # float, float16, double
    ]
    return sorted(found, key=lambda tensor: used.get(tensor.name, -1))


def _randomised_onnx(path: Path, layers: int, seed: int, name: str) -> Classifier:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    for place, tensor in enumerate(_onnx_layers(model)[::-1][:layers]):
        values = numpy_helper.to_array(tensor)
        fresh = values.reshape(-1)[_order(seed, place, values.size)].reshape(values.shape)
        tensor.CopyFrom(numpy_helper.from_array(fresh, tensor.name))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        onnx.save_model(model, str(file))
        return Classifier.load(file, name=name)


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
