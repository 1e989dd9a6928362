# SPDX-License-Identifier: Apache-2.0
"""Capturing work of ours and of torch in one CUDA graph."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable
from typing import Any


def capture(run: Callable[[int], None], index: int | None) -> Any:
    """Captures what `run` queues, after one run that is not captured.

    torch's own context manager is not used: where a capture fails, it leaves the capture's stream
    current, and work behind it would be queued on two streams.

    Args:
        run: Called twice with the stream to queue on, a handle; that stream is torch's current one
            meanwhile.
        index: Of the GPU, torch's current device; None is the emulator, which has no graphs.

    Returns:
        The graph, a `torch.cuda.CUDAGraph`; nothing that was captured has run yet.

    Raises:
        Exception: What `run` raised, or torch where something cannot be captured. torch's streams
            are as they were.
    """
    if index is None:
        raise RuntimeError("the emulator has no graphs")
    torch: Any = sys.modules["torch"]
    outer, side = torch.cuda.current_stream(index), torch.cuda.Stream(index)
    pool = torch.cuda.graph_pool_handle()
    graph = torch.cuda.CUDAGraph()
    gc.collect()  # what it would free meanwhile must not be freed while capturing
    side.wait_stream(outer)
    # Casts that autocast keeps would be gone when the graph is replayed.
    cast = torch.autocast(
        "cuda",
        enabled=torch.is_autocast_enabled("cuda"),
        dtype=torch.get_autocast_dtype("cuda"),
        cache_enabled=False,
    )
    try:
        with torch.cuda.stream(side), cast:
            run(side.cuda_stream)
            side.synchronize()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                run(side.cuda_stream)
            except BaseException:
                with contextlib.suppress(RuntimeError):  # that the capture is invalid is known
                    graph.capture_end()
                raise
            graph.capture_end()
    except BaseException:
        with contextlib.suppress(Exception):  # the allocator may still believe in the capture
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)
        raise
    finally:
        outer.wait_stream(side)
    return graph


def state_of(module: Any) -> tuple[Any, ...]:
    """What a graph of a module depends on, or of a function (None): another needs another graph."""
    torch: Any = sys.modules["torch"]
    tensors = () if module is None else (*module.parameters(), *module.buffers())
    return (
        id(module),
        tuple((tensor.data_ptr(), tensor.dtype) for tensor in tensors),
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
    )
