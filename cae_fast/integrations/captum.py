# SPDX-License-Identifier: Apache-2.0
"""Class association embedding as a Captum attribution method (extra `captum`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import to_numpy
from ..errors import missing_extra
from ..explainer import Explainer
from .class_scores import explain_scores, rebound

if TYPE_CHECKING:
    from ..explanation import Explanation

#: Value of the flat map of an image that has nothing to show: Captum's own plots refuse zeros.
FLAT = 1e-3


def _base() -> Any:
    try:
        from captum.attr import Attribution
        from captum.log import log_usage
    except ImportError as error:
        raise missing_extra("captum", error.name or "captum") from error
    return Attribution, log_usage


_Attribution: Any
_log_usage: Any
_Attribution, _log_usage = _base()


class ClassAssociationEmbedding(_Attribution):  # type: ignore[misc]
    """`attribute(inputs, target)` for images [N, C, S, S] of the model's size in [-1, 1].

    Attributes:
        explanation: The last call's :class:`cae_fast.Explanation`: which images flipped, the
            counterfactuals, the paths. Captum's calls have no place for it.
    """

    explanation: Explanation | None = None

    def __init__(self, forward_func: Any, explainer: Explainer) -> None:
        """Explains a classifier.

        Args:
            forward_func: Images [N, C, S, S] -> logits [N, K], a torch module or function; it is
                never differentiated. None: the explainer's own classifier.
            explainer: Whose model, bank and backend are used.
        """
        chosen = explainer.classifier if forward_func is None else forward_func
        super().__init__(chosen)
        self._explainer = rebound(explainer, forward_func)

    @property
    def multiplies_by_inputs(self) -> bool:
        """False: a map is a difference of images."""
        return False

    def has_convergence_delta(self) -> bool:
        """False: maps do not sum to a difference of scores."""
        return False

    @_log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        baselines: Any = None,
        additional_forward_args: Any = None,
        counter_target: Any = None,
        **options: Any,
    ) -> Any:
        """Attributions of the score of class `target`.

        They are the magnitude of what the counterfactual changes, per pixel and channel: positive
        where the image is of class `target` (what changes speaks for it), negative where it is not
        (what would have to change speaks against it). An image with nothing to show (nothing could
        be decoded, or nothing differs) gets the flat map 1e-3.

        Args:
            inputs: Tensor [N, C, S, S], or a tuple of one. Values are clipped to [-1, 1].
            target: A class or N of them, int, tensor or list; None: the predicted.
            baselines: Exemplars: images [N or 1, C, S, S] or one class code [1, D]; None: the
                nearest of the bank.
            additional_forward_args: Class codes [N, D] of exemplars, one an image.
            counter_target: Class or classes to reach from `target`; None: the runner-up.
            **options: Of `Explainer.explain`, such as `k` or `saliency_against`; not `saliency`:
                attributions are by channel.

        Returns:
            Float tensor of the shape, device and dtype of `inputs`, finite; a tuple for a tuple.

        Raises:
            ValueError: Wrong inputs, a class out of range, or exemplars given twice.
        """
        import torch

        if "saliency" in options:
            raise ValueError("attribute() takes no saliency: attributions are by channel")
        is_tuple = isinstance(inputs, tuple)
        if is_tuple and len(inputs) != 1:
            raise ValueError(f"inputs must be one tensor of images, got {len(inputs)}")
        images = inputs[0] if is_tuple else inputs
        if not isinstance(images, torch.Tensor) or images.ndim != 4:
            raise ValueError("inputs must be a tensor [N, C, S, S]")
        exemplars = _only(baselines, "baselines")
        codes = _only(additional_forward_args, "additional_forward_args")
        if exemplars is not None and codes is not None:
            raise ValueError("exemplars given twice: baselines and additional_forward_args")
        given = codes if exemplars is None else exemplars
        count = len(images)
        found, sign = explain_scores(
            self._explainer,
            to_numpy(images.detach().float()),
            _classes(target, count, "target"),
            _classes(counter_target, count, "counter_target"),
            exemplars=None if given is None else to_numpy(given.detach().float()),
            **options,
        )
        self.explanation = found
        maps = np.nan_to_num(np.abs(found.difference), posinf=0.0, neginf=0.0)
        maps *= sign[:, None, None, None]
        maps[~(np.abs(maps) > 0).any(axis=(1, 2, 3))] = FLAT
        result = torch.from_numpy(maps).to(device=images.device, dtype=images.dtype)
        return (result,) if is_tuple else result


def _only(value: Any, name: str) -> Any:
    """A tensor, the one of a tuple, or None."""
    if isinstance(value, tuple):
        if len(value) != 1:
            raise ValueError(f"{name} must be one tensor, got {len(value)}")
        value = value[0]
    if value is not None and not hasattr(value, "detach"):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    return value


def _classes(value: Any, count: int, name: str) -> Any:
    """Classes [N] from an int, a list or a tensor."""
    if value is None:
        return None
    array = np.asarray(to_numpy(value) if hasattr(value, "detach") else value)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a class index or N of them, got {value!r:.80}")
    array = array.reshape(-1).astype(np.int64)
    if len(array) not in (1, count):
        raise ValueError(f"{name} must be one class or {count}, got {len(array)}")
    return np.broadcast_to(array, count)
