# SPDX-License-Identifier: Apache-2.0
"""A classifier as a torch module that can be differentiated, for methods that need gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from ..arrays import is_module
from ..classifier import Classifier


@dataclass(frozen=True)
class Differentiable:
    """What gradient methods work on.

    Attributes:
        module: Images [N, C, S, S] in [-1, 1] -> logits [N, K], with gradients.
        last_maps: Layer whose output are the last feature maps, or None where none was found.
        has_relu: Whether it has `torch.nn.ReLU` layers, which guided backpropagation hooks into.
    """

    module: Any
    last_maps: Any
    has_relu: bool


def differentiable(classifier: Classifier) -> Differentiable | str:
    """The classifier with its preparation of images, or why it has no gradients.

    A `torch.export` file is a graph of operators: its ReLUs become modules again, and a layer is
    put behind its last four-dimensional value, so that hooks find them.
    """
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    network: Any = classifier.function
    network = getattr(network, "exported", network)
    if not is_module(network):
        return f"{classifier.name} gives no gradients: wanted a .pt2 file or a torch module"
    if isinstance(network, torch.jit.ScriptModule):
        return (
            f"{classifier.name} is TorchScript, whose layers cannot be hooked: wanted a .pt2 file"
        )
    network = copy.deepcopy(network)
    if isinstance(network, torch.fx.GraphModule):
        last = _with_modules(network, torch)
    else:
        network.eval()
        last = _last_convolution(network, torch)
    for weights in network.parameters():
        weights.requires_grad_(False)
    has_relu = any(isinstance(part, torch.nn.ReLU) for part in network.modules())
    return Differentiable(_wrapper(classifier, network, torch), last, has_relu)


def _wrapper(classifier: Classifier, network: Any, torch: Any) -> Any:
    class WithPreparation(torch.nn.Module):  # type: ignore[misc]
        """Preparation, network, logits: what `Classifier` does, with gradients."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Any) -> Any:
            raw = self.network(classifier._prepare(images))
            if not isinstance(raw, torch.Tensor):  # an object, mapping or tuple that holds logits
                raw = raw["logits"] if isinstance(raw, dict) else getattr(raw, "logits", raw[0])
            return classifier._logits(raw, images.shape[0])

    return WithPreparation()


def _with_modules(network: Any, torch: Any) -> Any:
    """Puts modules for ReLUs and behind the last feature maps into an exported graph, in place."""
    graph = network.graph
    relus = (
        torch.ops.aten.relu.default,
        torch.ops.aten.relu_.default,
        torch.relu,
        torch.nn.functional.relu,
    )
    last = None
    for number, node in enumerate(list(graph.nodes)):
        value = node.meta.get("val")
        if node.op == "call_function" and node.target in relus:
            name = f"relu_module_{number}"
            network.add_submodule(name, torch.nn.ReLU())
            with graph.inserting_after(node):
                fresh = graph.call_module(name, (node.args[0],))
            fresh.meta = dict(node.meta)
            node.replace_all_uses_with(fresh)
            graph.erase_node(node)
            node = fresh
        shape = getattr(value, "shape", ())
        called = node.op in ("call_function", "call_module")
        if called and len(shape) == 4 and all(int(side) > 1 for side in shape[2:]):
            last = node
    layer = None
    if last is not None:
        layer = torch.nn.Identity()
        network.add_submodule("last_feature_maps", layer)
        with graph.inserting_after(last):
            behind = graph.call_module("last_feature_maps", (last,))
        last.replace_all_uses_with(behind, delete_user_cb=lambda user: user is not behind)
    graph.lint()
    network.recompile()
    return layer


def _last_convolution(network: Any, torch: Any) -> Any:
    """The last convolution of a module, in the order of its definition."""
    found = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    return found[-1] if found else None
