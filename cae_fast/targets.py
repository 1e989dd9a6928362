# SPDX-License-Identifier: Apache-2.0
"""Which class each image is to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Float32, kind_of, to_numpy

ANY = -1
_DEFAULT = -2
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Target:
    """A checked wish: one class index per image, ANY, or the default."""

    wished: IntArray  # [1] or [N]

    def wanted(self, first: int, count: int) -> IntArray:
        """What is wished for `count` images from `first`: class, ANY, or -2 for the default."""
        wished = self.wished[first : first + count] if len(self.wished) > 1 else self.wished
        return np.broadcast_to(wished, count)

    def resolve(
        self, first: int, logits: Float32, source: IntArray, reachable: npt.NDArray[np.bool_]
    ) -> IntArray:
        """Target classes of the images `first`, `first + 1`, ...

        Args:
            first: Index of the first of these images among all.
            logits: Of these images, [n, K].
            source: Their predicted classes, [n]; -1 where the logits are not finite.
            reachable: Classes [K] among which the default is chosen; all, where these hold none but
                the source class.

        Returns:
            Class indices [n], ANY where any other class will do; ANY as well where the source class
            is unknown and none was asked for.
        """
        target = np.array(self.wanted(first, len(source)))
        for i in np.flatnonzero(target == _DEFAULT):
            if source[i] < 0:
                target[i] = ANY
                continue
            others = np.arange(len(reachable)) != source[i]
            open_to_it = others & reachable
            choice = np.flatnonzero(open_to_it if open_to_it.any() else others)
            target[i] = choice[logits[i][choice].argmax()]
        return target


def check_target(target: Any, count: int, class_names: Sequence[str], num_classes: int) -> Target:
    """Reads the `target` argument of an explanation.

    Args:
        target: None (the other class of two, else the runner-up), a class index, a class name,
            "any", or one of these per image (list or integer array [N]).
        count: Number of images N.
        class_names: Names, or empty when unknown.
        num_classes: K.

    Returns:
        The wish, checked.

    Raises:
        ValueError: Of a wrong type, length or range, or an unknown name.
    """
    if isinstance(target, np.ndarray) or kind_of(target) != "numpy":
        array = to_numpy(target)
        if array.dtype.kind not in "iu" or array.ndim > 1:
            raise ValueError(
                f"target must be class indices (integers) [{count}], got {array.dtype} "
                f"{list(array.shape)}"
            )
        target = array.tolist()
    if isinstance(target, list | tuple):
        if len(target) != count:
            raise ValueError(
                f"target must have one class for each of the {count} images, got {len(target)}"
            )
        wished = [_one(value, class_names, num_classes) for value in target]
    else:
        wished = [_one(target, class_names, num_classes)]
    return Target(np.array(wished, dtype=np.int64))


def row_texts(values: Any, count: int, argument: str) -> list[Any] | None:
    """One entry per image, or None."""
    if values is None:
        return None
    if isinstance(values, str) or len(values) != count:
        raise ValueError(
            f"{argument} must be a list of {count}, one for each image, got {values!r:.100}"
        )
    return list(values)


def _one(value: Any, class_names: Sequence[str], num_classes: int) -> int:
    if value is None:
        return _DEFAULT
    if isinstance(value, str):
        if value in class_names:
            return list(class_names).index(value)
        if value == "any":
            return ANY
        raise ValueError(
            f"target must be a class name of {list(class_names)} or 'any', got {value!r}"
        )
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError(
            f"target must be None, a class index, a class name or 'any', got {value!r}"
        )
    if not 0 <= value < num_classes:
        raise ValueError(f"target must be a class index in 0..{num_classes - 1}, got {value}")
    return int(value)
