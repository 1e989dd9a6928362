# SPDX-License-Identifier: Apache-2.0
"""Times programs on the GPU in alternating rounds, by events, and the rate they are held to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from record import first_line

from cae_fast.model import CAEConfig

Program = Callable[[], Any]
_ROUND_MS = 4.0


class Clock:
    """Times on torch's current stream."""

    def __init__(self, torch: Any) -> None:
        """Warms the GPU's clocks."""
        self.torch = torch
        self.warm(0.5)

    def warm(self, seconds: float) -> None:
        """Keeps the tensor cores busy, so that clocks are those of work."""
        torch = self.torch
        a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(20):
                a @ a
            torch.cuda.synchronize()

    def micros(self, program: Program, calls: int) -> float:
        """Microseconds a call of some calls in a row, by events."""
        start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            program()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e3 / calls

    def cold_micros(self, program: Program, flush: Any, rounds: int = 15) -> float:
        """Median microseconds of one call after `flush`, larger than L2, was overwritten."""
        times = []
        for _ in range(rounds):
            flush.zero_()
            start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            program()
            stop.record()
            stop.synchronize()
            times.append(float(start.elapsed_time(stop)) * 1e3)
        return statistics.median(times)

    def host_micros(self, program: Program, calls: int = 20) -> float:
        """Median microseconds that the host takes to queue a call."""
        times = []
        for _ in range(9):
            self.torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                program()
            times.append((time.perf_counter() - start) * 1e6 / calls)
            self.torch.cuda.synchronize()
        return statistics.median(times)

    def race(
        self, programs: Mapping[str, Program], *, rounds: int = 15, seconds: float = 12.0
    ) -> dict[str, Any]:
        """Rounds of all programs one after the other, each round beginning with another.

        Returns:
            By name: median `us`, `low`, `high`, `rounds`, `calls` a round; or `not_run`.
        """
        calls: dict[str, int] = {}
        outcome: dict[str, Any] = {}
        for name, program in programs.items():
            try:
                self.micros(program, 2)
                calls[name] = max(1, min(50, int(_ROUND_MS * 1e3 / self.micros(program, 2))))
            except Exception as error:  # one peer's trouble must not end the others'
                outcome[name] = {"not_run": first_line(error)}
        self.warm(0.3)
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        end = time.monotonic() + seconds
        for turn in range(rounds):
            for step in range(len(names)):
                name = names[(turn + step) % len(names)]
                times[name].append(self.micros(programs[name], calls[name]))
            if time.monotonic() > end and turn >= 2:
                break
        for name, taken in times.items():
            outcome[name] = {
                "us": statistics.median(taken),
                "low": min(taken),
                "high": max(taken),
                "rounds": len(taken),
                "calls": calls[name],
            }
        return outcome


def matrix_rate(torch: Any, clock: Clock, dtype: str = "float16") -> dict[str, float]:
    """TFLOP/s of an 8192^3 product on random data: median and best of single calls."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    times = [clock.micros(lambda: torch.mm(a, b, out=out), 1) for _ in range(30)]
    flop = 2 * side**3
    steady = statistics.median(times[5:])
    return {"tflops": flop / steady / 1e6, "best_tflops": flop / min(times) / 1e6}


def captured(torch: Any, program: Program) -> Program:
    """A program as a CUDA graph, captured on a stream of torch's after two calls there."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        program()
        program()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program()
    replay: Program = graph.replay
    return replay


def decode_flop(config: CAEConfig, *, shared_first: bool) -> float:
    """Operations of a decode after the algebra: 5x5 on enlarged images as 3x3 in four phases.

    `shared_first`: without the first convolution, which the points of a path share.
    """
    w, side = config.channels, config.image_size
    residual = 2 * 9 * (4 * w) ** 2 * (side // 4) ** 2
    ups = (
        2 * 9 * (4 * w) * (8 * w) * (side // 4) ** 2 + 2 * 9 * (2 * w) * (4 * w) * (side // 2) ** 2
    )
    output = 2 * 49 * w * config.in_channels * side**2
    count = 2 * config.num_blocks - (1 if shared_first else 0)
    return float(count * residual + ups + output)


def encode_flop(config: CAEConfig) -> float:
    """Operations of both encoders, as the plain networks have them."""
    from cae_fast.benchmark.operations import encode

    return encode(config).reference
