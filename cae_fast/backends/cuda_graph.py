# SPDX-License-Identifier: Apache-2.0
"""Capturing work of ours and of torch in CUDA graphs."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .._C_emu import GpuSearch

Part: TypeAlias = Callable[[int], None]  # queues work on the stream with this handle


def capture(run: Part, index: int | None) -> Part:
    """Captures what `run` queues, after one run that is not captured.

    Args:
        run: Called twice with the stream to queue on, a handle; that stream is torch's current one
            meanwhile.
        index: Of the GPU, torch's current device; None is the emulator, which has no graphs.

    Returns:
        What queues all of it again, on torch's current stream whatever it is given; nothing that
        was captured has run yet.

    Raises:
        Exception: What `run` raised, or torch where something cannot be captured. torch's streams
            are as they were.
    """
    (graph,) = _captured([run], index, kept=False)
    return lambda queue: graph.replay()


def capture_rounds(
    begin: Part,
    rounds: Sequence[Mapping[int, Part]],
    finish: Part,
    *,
    backend: Any,
    search: GpuSearch,
) -> Part:
    """Captures a search so that rounds behind its end do not run, nor more of one than is needed.

    Each round but the first is in an IF node, or in a SWITCH node where it comes in several sizes.
    What torch does before it replays a graph of its own, handing on the state of random numbers,
    is left out: a classifier that draws some gets the same ones each time.

    Args:
        begin: Queues what comes before the rounds.
        rounds: What queues one round each, at least one, by the most points that it is for,
            largest first: all that the round can have.
        finish: Queues what comes after them.
        backend: A `CudaBackend`.
        search: Whose count of points that are needed decides.

    Returns:
        What queues all of it again on the stream given; it keeps what was captured.

    Raises:
        Exception: As :func:`capture`; RuntimeError for what cannot be left out.
    """
    # The run before the capture searches in full; sizes that are too small for what is left then
    # come behind its end, where nothing is.
    first, *others = [list(sizes.values()) for sizes in rounds]
    parts = [begin, first[0], *(sizes[0] for sizes in others), finish]
    parts += [part for sizes in others for part in sizes[1:]]
    graphs = dict(zip(parts, _captured(parts, backend.index, kept=True), strict=True))

    def address(part: Part) -> Any:
        return graphs[part].raw_cuda_graph()

    row = backend.module.GraphSequence(backend.engine)
    row.append(address(begin))
    row.append(address(first[0]))
    for sizes in rounds[1:]:
        row.append_one_of([(most, address(part)) for most, part in sizes.items()], search)
    row.append(address(finish))

    def replay(queue: int, kept: Any = graphs) -> None:
        row.launch(stream=queue)

    return replay


def _captured(parts: Sequence[Part], index: int | None, *, kept: bool) -> list[Any]:
    """Graphs of parts that run one after another, `torch.cuda.CUDAGraph`; all run once before.

    torch's own context manager is not used: where a capture fails, it leaves the capture's stream
    current, and work behind it would be queued on two streams. With `kept` they are not
    instantiated: others copy them. They share their memory: they run one after the other, in this
    order or in another, and none reads there what another left.
    """
    if index is None:
        raise RuntimeError("the emulator has no graphs")
    torch: Any = sys.modules["torch"]
    outer, side = torch.cuda.current_stream(index), torch.cuda.Stream(index)
    pool = torch.cuda.graph_pool_handle()
    graphs = [
        torch.cuda.CUDAGraph(keep_graph=True) if kept else torch.cuda.CUDAGraph() for _ in parts
    ]
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
            for part in parts:
                part(side.cuda_stream)
            side.synchronize()
            for part, graph in zip(parts, graphs, strict=True):
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    part(side.cuda_stream)
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
    return graphs


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
