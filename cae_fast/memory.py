# SPDX-License-Identifier: Apache-2.0
"""What does not fit into memory is tried again by halves, then refused with one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .errors import OutOfMemory

_Result = TypeVar("_Result")

# How allocators of others say it in errors that are no MemoryError: torch's for the CPU, ONNX
# Runtime's arena.
_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "not enough memory",
    "Failed to allocate memory",
    "bad_alloc",
    "bad allocation",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, here or in what the error was made of."""
    if error is None:
        return False
    foreign = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (foreign and any(words in str(error) for words in _WORDS))
        or is_out_of_memory(error.__cause__)
    )


def try_halves(attempt: Callable[[int], _Result], max_batch: int, *, what: str) -> _Result:
    """Tries something with `max_batch` items at a time, then half of that, down to one.

    What a failed attempt had allocated is free again before the next one.

    Args:
        attempt: Called with the number of items; called again with fewer where memory ran out.
        max_batch: Items of the first attempt, at least 1.
        what: What the items are, in the plural, for the message.

    Returns:
        What `attempt` returned.

    Raises:
        OutOfMemory: One item does not fit either.
    """
    limit = max_batch
    while True:
        try:
            return attempt(limit)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = _first_line(error)
        # Outside of the handler: neither the error nor the frames it came from hold memory now.
        if limit == 1:
            halved = "" if max_batch == 1 else " and halved down to 1"
            raise OutOfMemory(
                f"out of memory: {what} do not fit: max_batch={max_batch} was tried{halved} "
                f"({reason}); give the process more memory, or take smaller images"
            )
        limit //= 2


def in_groups(work: Callable[[slice, int], None], count: int, max_batch: int, *, what: str) -> None:
    """Works through rows in groups; where memory runs out, through smaller groups from there on.

    Args:
        work: Called with the rows of a group and how many items may be in flight, at least those
            rows; called again with fewer of the same rows where memory ran out.
        count: Number of rows; none is no call.
        max_batch: The most rows of a group, and the most items in flight.
        what: What the rows are, in the plural, for the message.

    Raises:
        OutOfMemory: One row with one item in flight does not fit either.
    """
    first = 0

    def work_on(limit: int) -> None:
        nonlocal first
        while first < count:
            last = min(first + limit, count)
            work(slice(first, last), limit)
            first = last

    try_halves(work_on, max_batch, what=what)


def allocate(make: Callable[[], _Result], *, what: str) -> _Result:
    """Makes what a call returns, which grows with what the call is given.

    Args:
        make: Allocates.
        what: What is allocated, in the plural, for the message.

    Raises:
        OutOfMemory: It does not fit.
    """
    try:
        return make()
    except MemoryError as error:
        reason = _first_line(error)
    raise OutOfMemory(f"out of memory: {what} do not fit ({reason}); give fewer images at a time")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def allocate_rows(shape: tuple[int, ...], what: str) -> npt.NDArray[np.float32]:
    """Memory for a float32 result [N, ...] of N images; `what` as for :func:`allocate`."""
    return allocate(lambda: np.empty(shape, dtype=np.float32), what=f"{what} of {shape[0]} images")
