# SPDX-License-Identifier: Apache-2.0
"""Step: decode and encode of the reference network beside PyTorch, batch by batch.

`speed.py` races ours and eager PyTorch; `speed.py compiled` ours and torch.compile in fp16
channels_last with CUDA graphs. All in one process, in alternating rounds. What a decode of one
image touches stays in L2 between calls, on all sides, as it does in a search; "cold" is one graph
after 256 MiB were overwritten.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
from race import Clock, Program, captured, decode_flop, encode_flop, matrix_rate
from record import Recorder, first_line

from cae_fast.model import CAE, CAEConfig
from cae_fast.testing import random_images

CONFIG = CAEConfig()
#: A peer in half precision that is further off computes something else.
_PEER_AGREEMENT = 3e-2
#: Seconds that torch.compile gets for one program.
_COMPILE_S = 75.0


class Sides:
    """Ours and the peers on the same inputs."""

    def __init__(self, torch: Any, batch: int, model: CAE) -> None:
        """Inputs of `batch` images; the engine where it can be loaded."""
        self.torch = torch
        self.batch = batch
        self.model = model
        self.why_no_ours = ""
        self.probe: Any = None
        try:
            from probe import Probe

            self.probe = Probe(model, batch)
        except (OSError, RuntimeError, AttributeError) as error:
            self.why_no_ours = first_line(error)
        generator = np.random.default_rng(1)
        shape = (batch, *CONFIG.individual_shape)
        self.individual = torch.from_numpy(generator.standard_normal(shape, np.float32)).cuda()
        codes = generator.standard_normal((batch, CONFIG.code_dim), np.float32)
        self.code = torch.from_numpy(codes).cuda()
        self.images = torch.from_numpy(random_images(CONFIG, batch)).cuda()
        self.out = torch.empty_like(self.images)
        self.out_individual = torch.empty_like(self.individual)
        self.out_code = torch.empty_like(self.code)

    def queued(self, kind: str) -> dict[str, Program]:
        """Our programs, queued call by call."""
        if self.probe is None:
            return {}
        torch, probe = self.torch, self.probe

        def queue() -> int:
            return int(torch.cuda.current_stream().cuda_stream)

        def decode() -> None:
            probe.decode(self.individual, self.code, self.out, queue())

        def path() -> None:
            probe.path(self.code, self.out, queue())

        def encode() -> None:
            probe.encode(self.images, self.out_individual, self.out_code, queue())

        if kind == "encode":
            return {"ours": encode}
        probe.hold(self.individual, queue())
        return {"ours": decode, "ours, path points": path}

    def ours(self, kind: str) -> dict[str, Program]:
        """Our programs, queued call by call and as CUDA graphs."""
        programs: dict[str, Program] = {}
        for name, program in self.queued(kind).items():
            programs[name] = program
            try:
                programs[f"{name}, graph"] = captured(self.torch, program)
            except RuntimeError as error:
                print(f"{name} cannot be captured: {first_line(error)}", flush=True)
        return programs

    def network(self, dtype: Any, layout: Any) -> tuple[Any, dict[str, tuple[Any, ...]]]:
        """The torch networks and inputs in a type and memory format."""
        module = self.model.module().eval().requires_grad_(False)
        module = module.to(device="cuda", dtype=dtype)
        module = module.to(memory_format=layout)  # type: ignore[call-overload]

        def given(tensor: Any) -> Any:
            tensor = tensor.to(dtype)
            return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor

        inputs = {
            "decode": (given(self.individual), given(self.code)),
            "encode": (given(self.images),),
        }
        return module, inputs

    def eager(self, kind: str) -> dict[str, Program]:
        """PyTorch eager: float32, TF32, fp16 channels_last; the last also as a CUDA graph."""
        torch = self.torch
        programs: dict[str, Program] = {}
        for name, dtype, layout, tf32 in (
            ("eager fp32", torch.float32, torch.contiguous_format, False),
            ("eager TF32", torch.float32, torch.contiguous_format, True),
            ("eager fp16 channels_last", torch.float16, torch.channels_last, None),
        ):
            module, inputs = self.network(dtype, layout)
            programs[name] = _in_mode(torch, getattr(module, kind), inputs[kind], tf32)
        half = programs["eager fp16 channels_last"]
        try:
            programs["fp16 channels_last, graph"] = captured(torch, half)
        except RuntimeError as error:
            print(f"eager cannot be captured: {first_line(error)}", flush=True)
        return programs

    def compiled(self, kind: str, mode: str) -> Program:
        """torch.compile in fp16 channels_last; compiled here."""
        torch = self.torch
        module, inputs = self.network(torch.float16, torch.channels_last)
        torch._dynamo.reset()
        program = torch.compile(getattr(module, kind), mode=mode, dynamic=False, fullgraph=True)
        run = _in_mode(torch, program, inputs[kind], None)
        for _ in range(4):
            run()
        torch.cuda.synchronize()
        return run

    def disagreement(self, kind: str, program: Program) -> float:
        """Relative difference of a peer's first output to ours."""
        torch = self.torch
        ours = self.queued(kind).get("ours")
        if ours is None:
            return 0.0
        ours()
        theirs = program()
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        torch.cuda.synchronize()
        mine = self.out if kind == "decode" else self.out_individual
        return float((theirs.float() - mine).norm() / mine.norm())


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends the block after some seconds by TimeoutError."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not compiled in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _in_mode(
    torch: Any, function: Callable[..., Any], inputs: tuple[Any, ...], tf32: bool | None
) -> Program:
    def run() -> Any:
        if tf32 is not None:
            torch.backends.cudnn.allow_tf32 = tf32
            torch.backends.cuda.matmul.allow_tf32 = tf32
        with torch.no_grad():
            return function(*inputs)

    return run


def _work(kind: str, name: str, batch: int) -> float:
    if kind == "encode":
        return encode_flop(CONFIG) * batch
    return decode_flop(CONFIG, shared_first="path" in name) * batch


def _with_rates(kind: str, batch: int, timed: dict[str, Any], rate: float) -> dict[str, Any]:
    """Adds TFLOP/s and the share of the matrix rate to our programs."""
    for name, row in timed.items():
        if name.startswith("ours") and "us" in row:
            row["tflops"] = _work(kind, name, batch) / row["us"] / 1e6
            row["share"] = row["tflops"] / rate
    return timed


def _best(timed: dict[str, Any], *words: str) -> float | None:
    found = [
        row["us"]
        for name, row in timed.items()
        if "us" in row and "path" not in name and any(name.startswith(word) for word in words)
    ]
    return min(found, default=None)


def race_eager(found: Recorder, torch: Any, clock: Clock, model: CAE) -> None:
    """Ours and eager at every batch; the first cases matter most."""
    torch.backends.cudnn.benchmark = True
    rate = found.data["matrix rate"]["tflops"]
    cases: dict[str, Any] = {}
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    for kind, batch in (("decode", 1), ("decode", 64), ("encode", 1), ("decode", 8), ("encode", 8)):
        torch.cuda.empty_cache()
        sides = Sides(torch, batch, model)
        if sides.why_no_ours:
            found.put("no ours", sides.why_no_ours)
        ours = sides.ours(kind)
        timed = clock.race(ours, rounds=9, seconds=4) if ours else {}
        cases[f"{kind} x{batch}"] = _with_rates(kind, batch, timed, rate)
        found.put("cases", cases)  # ours alone first: a peer may hang
        eager = sides.eager(kind)
        checks = {}
        for name, program in eager.items():
            if ours and "graph" not in name:
                checks[name] = sides.disagreement(kind, program)
        found.put(f"disagreement, {kind} x{batch}", checks)
        timed = clock.race(ours | eager, rounds=15 if batch < 64 else 5, seconds=8)
        cases[f"{kind} x{batch}"] = _with_rates(kind, batch, timed, rate)
        if batch == 1 and ours:
            extra = {}
            for name, program in ours.items():
                extra[name] = {"host_us": clock.host_micros(program)}
                if "graph" in name:
                    extra[name]["cold_us"] = clock.cold_micros(program, flush)
            found.put(f"host and cold, {kind} x1", extra)
        found.put("cases", cases)
        for name, row in timed.items():
            said = row.get("not_run") or f"{row['us']:.1f} us ({row['low']:.1f}-{row['high']:.1f})"
            print(f"{kind} x{batch} {name}: {said}", flush=True)
        if sides.probe is not None:
            sides.probe.close()
        found.say(_line(cases, found))
    if bad := _far_off(found.data):
        found.say(f"{found.data['line']}; PEERS DISAGREE: {bad}")
        sys.exit(1)


def _far_off(data: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.removeprefix('disagreement, ')} {name} {value:.2g}"
        for key, checks in data.items()
        if key.startswith("disagreement")
        for name, value in checks.items()
        if not value < _PEER_AGREEMENT
    )


def _line(cases: dict[str, Any], found: Recorder) -> str:
    parts = [f"matrix rate {found.data['matrix rate']['tflops']:.0f} TFLOP/s"]
    for name, timed in cases.items():
        ours, eager = _best(timed, "ours"), _best(timed, "eager", "fp16")
        if ours is not None and eager is not None:
            parts.append(f"{name} {ours:.0f} us ({eager / ours:.2f}x eager)")
    return ", ".join(parts)


def race_compiled(found: Recorder, torch: Any, clock: Clock, model: CAE) -> None:
    """Ours and torch.compile: the quick mode at every batch first, then max-autotune at batch 1."""
    deadline = time.monotonic() + float(os.environ.get("GPU_CHECK_STEP_SECONDS", "130"))
    rate = found.data["matrix rate"]["tflops"]
    cases: dict[str, Any] = {}
    for kind, batch, mode in (
        ("decode", 1, "reduce-overhead"),
        ("decode", 64, "reduce-overhead"),
        ("decode", 1, "max-autotune"),
        ("decode", 8, "reduce-overhead"),
        ("encode", 1, "reduce-overhead"),
    ):
        left = deadline - time.monotonic()
        if left < 20:
            found.put("left out", f"{kind} x{batch} {mode} and later: no time left")
            break
        torch.cuda.empty_cache()
        sides = Sides(torch, batch, model)
        start = time.monotonic()
        name = f"compile {mode}"
        case = f"{kind} x{batch}"
        try:
            with limited(min(left - 10, _COMPILE_S)):
                program = sides.compiled(kind, mode)
            timed = clock.race({**sides.ours(kind), name: program}, rounds=15, seconds=5)
            if name in timed:
                timed[name]["disagreement"] = sides.disagreement(kind, program)
        except Exception as error:  # the compiler's trouble is a finding
            timed = {name: {"not_run": first_line(error)}}
        timed[name]["compile_s"] = time.monotonic() - start
        cases[f"{case} {mode}"] = _with_rates(kind, batch, timed, rate)
        found.put("cases", cases)
        said = []
        for each, row in cases.items():
            ours, theirs = _best(row, "ours"), _best(row, "compile")
            if ours is not None and theirs is not None:
                said.append(f"{each} {theirs:.0f} us / ours {ours:.0f} us = {theirs / ours:.2f}x")
            elif theirs is not None:
                said.append(f"{each} {theirs:.0f} us")
            else:
                said.append(f"{each} not run")
        found.say(", ".join(said))
        if sides.probe is not None:
            sides.probe.close()


def main() -> None:
    """Measures the matrix rate, then races."""
    found = Recorder()
    torch = found.need_torch()
    found.put("torch", torch.__version__)
    clock = Clock(torch)
    found.put("matrix rate", matrix_rate(torch, clock))
    found.say(f"matrix rate {found.data['matrix rate']['tflops']:.0f} TFLOP/s")
    found.put("L2", "hot: the same buffers call after call, on all sides")
    model = CAE.random(CONFIG, seed=0)
    if sys.argv[1:] == ["compiled"]:
        race_compiled(found, torch, clock, model)
    else:
        race_eager(found, torch, clock, model)
    found.put("matrix rate after", matrix_rate(torch, clock))
    if "no ours" in found.data:
        found.say(f"{found.data['line']}; NO OURS: {found.data['no ours']}")
        sys.exit(1)


if __name__ == "__main__":
    main()
