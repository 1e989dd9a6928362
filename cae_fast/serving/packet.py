# SPDX-License-Identifier: Apache-2.0
"""Trees of plain values and arrays in a piece of shared memory.

A packet is the arrays, each at a multiple of 64 bytes, and behind them the tree as JSON with
`{"$": [dtype, shape, offset]}` in their place. Where the JSON lies is told in the message that
announces the packet, so that nothing in the memory itself is trusted to be there.
"""

from __future__ import annotations

import json
import mmap
import os
from typing import Any

import numpy as np

_ALIGNMENT = 64
_KINDS = "biufS"


class PacketTooLarge(ValueError):
    """A tree does not fit into the memory given."""


class Segment:
    """Anonymous shared memory that another process maps by its file descriptor.

    It has no name: nothing is left behind, however either process ends.
    """

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        """Makes memory of `size` bytes, or maps that of `descriptor`.

        Raises:
            OSError: The system refused.
        """
        self.size = size
        if descriptor is None:
            descriptor = os.memfd_create("cae-fast-slot", os.MFD_CLOEXEC)
        self.descriptor = descriptor
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            self._map = mmap.mmap(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise
        self.view = memoryview(self._map)

    def forget(self, keep: int) -> None:
        """Gives memory behind the first `keep` bytes back to the system; it reads as zeros."""
        page = mmap.PAGESIZE
        first = -(-keep // page) * page
        if first < self.size:
            self._map.madvise(mmap.MADV_REMOVE, first, self.size - first)

    def close(self) -> None:
        """Unmaps; views that are still held keep the memory until they go."""
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            pass
        os.close(self.descriptor)


def write(buffer: memoryview, tree: Any) -> tuple[int, int]:
    """Writes a tree of dicts with text keys, lists, plain values and arrays.

    Returns:
        Where its JSON begins and ends in `buffer`.

    Raises:
        PacketTooLarge: It does not fit.
    """
    end = 0

    def place(value: Any) -> Any:
        nonlocal end
        if isinstance(value, dict):
            return {key: place(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [place(item) for item in value]
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype.kind == "U":
            return {"$U": value.tolist()}
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"arrays of {value.dtype} cannot be sent")
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + value.nbytes
        if end > len(buffer):
            raise PacketTooLarge(f"{end} bytes of {len(buffer)}")
        target = np.frombuffer(buffer, value.dtype, value.size, start).reshape(value.shape)
        target[...] = value
        return {"$": [value.dtype.str, list(value.shape), start]}

    text = json.dumps(place(tree), separators=(",", ":")).encode()
    if end + len(text) > len(buffer):
        raise PacketTooLarge(f"{end + len(text)} bytes of {len(buffer)}")
    buffer[end : end + len(text)] = text
    return end, end + len(text)


def read(buffer: memoryview, start: int, end: int) -> Any:
    """The tree that :func:`write` wrote; its arrays are copies."""

    def take(value: Any) -> Any:
        if isinstance(value, list):
            return [take(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$U" in value:
            return np.array(value["$U"], dtype=np.str_)
        if "$" in value:
            dtype, shape, offset = value["$"]
            count = int(np.prod(shape, dtype=np.int64))
            return np.frombuffer(buffer, np.dtype(dtype), count, offset).reshape(shape).copy()
        return {key: take(item) for key, item in value.items()}

    return take(json.loads(bytes(buffer[start:end])))
