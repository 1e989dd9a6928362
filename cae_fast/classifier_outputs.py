# SPDX-License-Identifier: Apache-2.0
"""What classifiers return, as logits [N, K]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .arrays import kind_of, to_numpy
from .errors import ClassifierError

Outputs = Literal["logits", "probs", "sigmoid"]
_SMALLEST = float(np.finfo(np.float32).tiny)


def array_of(result: Any, name: str) -> Any:
    """The array in what a model returned: itself, `.logits`, or the entry "logits".

    Args:
        result: What the function returned.
        name: Of the classifier, for messages.

    Returns:
        A torch tensor as it is, anything else as NumPy.

    Raises:
        ClassifierError: There is none.
    """
    if isinstance(result, Mapping) and "logits" in result:
        result = result["logits"]
    elif getattr(result, "logits", None) is not None:
        result = result.logits
    if isinstance(result, tuple) and len(result) == 1:
        result = result[0]
    if result is None or isinstance(result, str | bytes | tuple | Mapping):
        raise ClassifierError(
            f"a classifier must return an array [N, K], got {type(result).__name__}"
        )
    return result.detach() if kind_of(result) == "torch" else to_numpy(result)


def as_logits(raw: Any, count: int, outputs: Outputs, name: str) -> Any:
    """Outputs of a classifier as logits.

    Args:
        raw: NumPy or torch [N, K], or [N] for one output; the values of a tensor are not looked at,
            which would wait for its device.
        count: Images they are of.
        outputs: What they are.
        name: Of the classifier, for messages.

    Returns:
        Logits [N, K] float32, of the same kind; K is at least 2.

    Raises:
        ClassifierError: Something else than [N, K] numbers.
    """
    tensor = kind_of(raw) == "torch"
    if raw.ndim == 1 and outputs != "logits":
        raw = raw[:, None]
    numbers = raw.dtype.is_floating_point if tensor else raw.dtype.kind in "fiu"
    if raw.ndim != 2 or raw.shape[0] != count or not numbers:
        raise ClassifierError(
            f"classifier {name} returned {raw.dtype} {list(raw.shape)}, expected numbers "
            f"[{count}, K]"
        )
    logits = raw.float() if tensor else raw.astype(np.float32)
    if outputs == "sigmoid":
        if logits.shape[1] != 1:
            raise ClassifierError(
                f"classifier {name} returned {logits.shape[1]} outputs, outputs='sigmoid' means one"
            )
        zeros = logits.new_zeros(logits.shape) if tensor else np.zeros_like(logits)
        logits = _joined(zeros, logits, tensor)
    elif outputs == "probs":
        if not tensor and ((logits < -1e-3) | (logits > 1 + 1e-3)).any():
            raise ClassifierError(
                f"classifier {name} returned numbers in [{logits.min():g}, {logits.max():g}], "
                "expected probabilities in [0, 1]; are they outputs='logits'?"
            )
        if logits.shape[1] == 1:
            logits = _joined(1 - logits, logits, tensor)
        logits = logits.clamp(min=_SMALLEST).log() if tensor else _log(logits)
    if logits.shape[1] == 1:
        raise ClassifierError(
            f"classifier {name} returned one output per image; for one logit say outputs='sigmoid'"
        )
    return logits


def _log(probabilities: Any) -> Any:
    return np.log(np.maximum(probabilities, np.float32(_SMALLEST)))


def _joined(first: Any, second: Any, tensor: bool) -> Any:
    """Two columns."""
    if tensor:
        import torch

        return torch.cat([first, second], dim=1)
    return np.concatenate([first, second], axis=1)


def softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probabilities [..., K] of logits; rows with NaN or infinities become NaN."""
    values = np.asarray(logits, dtype=np.float64)
    if values.size == 0:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = np.exp(values - values.max(axis=-1, keepdims=True))
        result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def log_odds(logits: npt.ArrayLike, label: int) -> npt.NDArray[np.float64]:
    """Logarithm of a class's probability over that of all others together, [N].

    Args:
        logits: [N, K], K at least 2.
        label: The class.
    """
    values = np.asarray(logits, dtype=np.float64)
    rest = np.delete(values, label, axis=1)
    with np.errstate(invalid="ignore"):
        peak = rest.max(axis=1)
        together = peak + np.log(np.exp(rest - peak[:, None]).sum(axis=1))
        return np.asarray(values[:, label] - together)
