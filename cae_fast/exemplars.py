# SPDX-License-Identifier: Apache-2.0
"""Where each guided path leads: the class codes of exemplars."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .arrays import finite_images, to_numpy
from .backends import Backend
from .bank import CodeBank
from .errors import BankError
from .manifold.choice import DEFAULT_CHOICE, choice_of, default_k, medoids, reliable_rows
from .memory import in_groups
from .model import CAEConfig

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]
_Number = TypeVar("_Number", bound=np.number[Any])


class Exemplars:
    """Checked exemplars of N images.

    Given as images, codes or bank rows, or to be looked up in the bank.
    """

    def __init__(
        self,
        given: Any,
        count: int,
        *,
        k: int | None,
        config: CAEConfig,
        backend: Backend,
        bank: CodeBank | None,
    ) -> None:
        """Reads the `exemplars` argument of an explanation.

        Args:
            given: Images [N or 1, C, H, W]; class codes [N or 1, D], floating; bank rows [N or 1]
                or [N or 1, k], integers; an object with `class_code`; or the name of a choice
                (see :mod:`cae_fast.manifold.choice`), None for the default one.
            count: Number of images N.
            k: Nearest bank rows averaged, or among which the medoid is taken, by a choice; None is
                :func:`~cae_fast.manifold.choice.default_k`.
            config: Of the model.
            backend: Encodes images.
            bank: The bank, or None.

        Raises:
            ValueError: Wrong type, rank, shape, dtype, range, or values that are not finite.
            BankError: The bank is needed and there is none.
        """
        looked_up = given is None or isinstance(given, str)
        if k is None:
            k = default_k(bank) if looked_up and bank is not None else 1
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k must be a positive integer, got {k!r}")
        self._bank = bank
        self.code_dim = config.code_dim
        self._rows: IntArray | None = None
        self._codes: FloatArray | None = None
        self.pool: npt.NDArray[np.bool_] | None = None  # rows that a choice is made among
        asked, given = given, DEFAULT_CHOICE if given is None else given
        self.candidates = int(k)  # rows looked up
        self.choice = choice_of(given) if isinstance(given, str) else None
        self.k = 1 if self.choice is not None and self.choice.medoid else int(k)
        if self.choice is not None:
            if bank is None:
                raise BankError(
                    f"exemplars={asked!r} looks them up in a bank: give Explainer(..., bank=) or "
                    "exemplars="
                )
            self.pool = (
                reliable_rows(bank, self.candidates) if self.choice.reliable else bank.usable
            )
            return
        if k != 1:
            raise ValueError(
                f"k={k} is for exemplars=None or a choice by name; give bank rows [N, k] to "
                "average chosen ones"
            )
        given = getattr(given, "class_code", given)
        wanted = (
            f"images [N, {config.in_channels}, S, S], codes [N, {config.code_dim}] or bank rows [N]"
        )
        try:
            array = to_numpy(given)
        except (TypeError, ValueError) as error:
            raise ValueError(f"exemplars must be {wanted}: {error}") from None
        if array.dtype.kind in "iu" and array.ndim <= 2:
            self._take_rows(array)
        elif array.dtype.kind == "f" and array.ndim == 4:
            self._take_images(given, config, backend)
        elif array.dtype.kind == "f" and array.ndim == 2:
            self._take_codes(array, config)
        else:
            raise ValueError(f"exemplars must be {wanted}, got {array.dtype} {list(array.shape)}")
        length = len(self._codes) if self._codes is not None else 0
        if length not in (1, count):
            raise ValueError(
                f"exemplars must be one or one for each of the {count} images, got {length}"
            )

    def _take_rows(self, array: npt.NDArray[Any]) -> None:
        if self._bank is None:
            raise BankError(
                "exemplars are bank rows, but there is no bank: give Explainer(..., bank=)"
            )
        rows = np.atleast_1d(array).astype(np.int64)
        rows = rows[:, None] if rows.ndim == 1 else rows
        if rows.shape[1] == 0:
            raise ValueError("exemplars is empty, expected bank rows [N]")
        outside = rows[(rows < 0) | (rows >= len(self._bank))]
        if outside.size:
            raise ValueError(
                f"exemplars must be bank rows in 0..{len(self._bank) - 1}, got {outside[0]}"
            )
        self._rows = rows
        self.k = rows.shape[1]
        self._codes = average(self._bank, rows)

    def _take_images(self, given: Any, config: CAEConfig, backend: Backend) -> None:
        images = finite_images(given, config.image_shape, "exemplars")
        dtype = np.result_type(backend.dtype, np.float32)  # codes of a float16 backend are float32
        codes = np.empty((len(images), config.code_dim), dtype=dtype)

        def encode(rows: slice, _: int) -> None:
            codes[rows] = backend.encode_class(np.ascontiguousarray(images[rows]))

        in_groups(encode, len(images), backend.max_batch, what="exemplars to encode")
        self._codes = codes

    def _take_codes(self, array: npt.NDArray[Any], config: CAEConfig) -> None:
        if array.shape[1] != config.code_dim:
            raise ValueError(
                f"exemplars must be class codes [N, {config.code_dim}], got {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError("exemplars: class codes hold NaN or Inf")
        self._codes = array

    @property
    def is_given(self) -> bool:
        """Whether exemplars were given, and the bank need not be asked."""
        return self._codes is not None

    def given(self, first: int, count: int) -> FloatArray:
        """Class codes [count, D] that were given for the images `first`, `first + 1`, ...

        Raises:
            ValueError: None were given: the bank is to be asked.
        """
        if self._codes is None:
            raise ValueError("exemplars must be images, class codes or bank rows, got None")
        return self._of_images(self._codes, first, count)

    def reachable(self, num_classes: int) -> npt.NDArray[np.bool_]:
        """Classes [K] that a path can lead to: where the bank is asked, those it can serve."""
        if self._codes is not None or self._bank is None:
            return np.ones(num_classes, dtype=np.bool_)
        return self._bank.usable_counts() >= self.candidates

    @staticmethod
    def _of_images(values: npt.NDArray[_Number], first: int, count: int) -> npt.NDArray[_Number]:
        """Rows of the images `first`, `first + 1`, ... of [N, D], or of the one row for all."""
        rows = values[first : first + count] if len(values) > 1 else values
        return np.broadcast_to(rows, (count, values.shape[1]))

    def of(
        self, first: int, codes: FloatArray, source: IntArray, target: IntArray
    ) -> tuple[FloatArray, IntArray]:
        """Ends of the paths of the images `first`, `first + 1`, ...

        Args:
            first: Index of the first of these images among all.
            codes: Their class codes, [n, D].
            source: Their classes [n]; images with -1 need no path.
            target: Classes to reach [n]; images that are there already need no path.

        Returns:
            Class codes [n, D], the image's own where it needs no path; bank rows [n, k], -1 where
            none was used.

        Raises:
            BankError: The target class is missing from the bank.
        """
        count = len(codes)
        needed = (source >= 0) & (source != target)
        ends = np.array(codes)
        rows = np.full((count, self.k), -1, dtype=np.int64)
        if self._codes is not None:
            ends[needed] = self._of_images(self._codes, first, count)[needed]
            if self._rows is not None:
                rows[needed] = self._of_images(self._rows, first, count)[needed]
        elif self._bank is not None and needed.any():
            near = self._bank.nearest(
                codes[needed],
                target[needed],
                self.candidates,
                source_class=source[needed],
                among=self.pool,
            )
            rows[needed] = self._chosen(near)
            ends[needed] = average(self._bank, rows[needed])
        return ends, rows

    def classes_of(self, target: IntArray, near: IntArray) -> IntArray:
        """Classes [n] that paths lead to: `target`, or where that is -1 that of the first row.

        Args:
            target: Classes to reach [n], -1: any other.
            near: Bank rows [n, k] that they lead to; -1 is none, and of no class.
        """
        if self._bank is None:
            return target
        first = near[:, 0]
        return np.where(target >= 0, target, np.where(first >= 0, self._bank.labels[first], -1))

    def central(self, classes: IntArray) -> tuple[FloatArray, IntArray]:
        """Ends of paths among the usable rows nearest to the mean of their class.

        Args:
            classes: Of each path [n], all `reachable`.

        Returns:
            Class codes [n, D] and bank rows [n, k].

        Raises:
            ValueError: Exemplars were given: there is no other choice.
            BankError: A class has too few rows.
        """
        if self._bank is None or self.is_given:
            raise ValueError("exemplars were given, not chosen in a bank: there are no others")
        pool = self._bank.usable if self.pool is None else self.pool
        middles = np.stack(
            [
                self._bank.codes[pool & (self._bank.labels == label)].mean(axis=0, dtype=np.float64)
                for label in classes
            ]
        )
        found = self._bank.nearest(middles, classes, self.candidates, among=pool)
        rows = self._chosen(found)
        return average(self._bank, rows), rows

    def _chosen(self, near: IntArray) -> IntArray:
        """Of candidates [n, c] those that are averaged [n, k]."""
        assert self._bank is not None
        medoid = self.choice is not None and self.choice.medoid
        return medoids(self._bank.codes, near) if medoid else near


def average(bank: CodeBank, rows: IntArray) -> npt.NDArray[np.float32]:
    """Mean class codes [N, D] of bank rows [N, k]."""
    if rows.shape[1] == 1:
        return np.take(bank.codes, rows[:, 0], axis=0)
    mean: npt.NDArray[np.float32] = bank.codes[rows].mean(axis=1, dtype=np.float64)
    return mean.astype(np.float32)
