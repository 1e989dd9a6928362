# SPDX-License-Identifier: Apache-2.0
"""Step: both paths of the convolutions side by side, on GPUs of compute capability 9.0.

The portable path and warpgroups (wgmma) in clusters of 1, 2 and 4 blocks, and both with launches
that overlap: how far their codes and images are apart, then decodes and encodes in alternating
rounds. With GPU_CHECK_EMULATE=1 a small configuration is compared in the emulator; nothing is timed
there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from agree import ALLOWED, EMULATE, engine_class
from race import Clock, Program, captured
from record import Recorder, first_line

from cae_fast.model import CAE, CAEConfig
from cae_fast.testing import random_images, relative_error

#: What CAE_GPU_CONV, CAE_GPU_CLUSTER and CAE_GPU_OVERLAP are for each.
PATHS = {
    "portable": ("portable", "2", "0"),
    "portable, overlapping": ("portable", "2", "1"),
    "wgmma, clusters of 1": ("wgmma", "1", "0"),
    "wgmma, clusters of 2": ("wgmma", "2", "0"),
    "wgmma, clusters of 2, overlapping": ("wgmma", "2", "1"),
    "wgmma, clusters of 4": ("wgmma", "4", "0"),
}
_VARIABLES = ("CAE_GPU_CONV", "CAE_GPU_CLUSTER", "CAE_GPU_OVERLAP")
_OVERLAPPING = ", overlapping"
#: How often each computes the same: what a kernel reads too early may be there by luck.
_REPEATS = 1 if EMULATE else 25
_RACES = (("decode", 1), ("decode", 4), ("decode", 64), ("encode", 1))


def choosing(name: str) -> contextlib.AbstractContextManager[None]:
    """Engines that are made meanwhile take this path."""
    return setting(**dict(zip(_VARIABLES, PATHS[name], strict=True)))


@contextlib.contextmanager
def setting(**variables: str) -> Iterator[None]:
    """Environment variables for what is made meanwhile; as they were afterwards."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def paths_of(torch: Any) -> list[str]:
    """The paths of the convolutions, as `PATHS` names them, that this GPU has."""
    hopper = torch.cuda.get_device_capability() == (9, 0)
    return ["portable", *(["wgmma, clusters of 2"] if hopper else [])]


def asked_for_wgmma(torch: Any, found: Recorder) -> None:
    """Where the step's argument is "wgmma": convolves by it from here on, or ends the step."""
    if sys.argv[1:] != ["wgmma"]:
        return
    if torch.cuda.get_device_capability() != (9, 0):
        found.skip("one path only: the compute capability is not 9.0")
    os.environ["CAE_GPU_CONV"] = "wgmma"


def compare(model: CAE, batch: int) -> dict[str, dict[str, Any]]:
    """Distances of each path's class codes, images and differences of images to the portable's.

    Where launches overlap, also whether all bits are those of the same path without.
    """
    images = random_images(model.config, batch, seed=1)
    shape = (batch, *model.config.individual_shape)
    individual = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    codes = np.random.default_rng(2).standard_normal((2, batch, model.config.code_dim))
    rows = np.arange(batch, dtype=np.int32)
    outcome: dict[str, dict[str, Any]] = {}
    results: dict[str, list[Any]] = {}
    for name in PATHS:
        with choosing(name):
            engine = engine_class()(model.config.to_dict(), dict(model.weights), max_batch=batch)
        same = True
        for _ in range(_REPEATS):
            start, end = (
                engine.decode(individual, code.astype(np.float32), rows).numpy() for code in codes
            )
            got = [engine.encode(images)[1].numpy(), end, end - start]
            wanted = results.setdefault(name.removesuffix(_OVERLAPPING), got)
            same = same and all(map(np.array_equal, got, wanted))
        first = results["portable"]
        outcome[name] = {
            "class_code": relative_error(got[0], first[0]),
            "image": relative_error(end, first[1]),
            "difference": float(np.linalg.norm(got[2] - first[2]) / np.linalg.norm(first[1])),
            "taken": engine.conv_path,
            "overlaps": engine.overlap,
            "same": same,
        }
    return outcome


def wrong_in(outcome: dict[str, dict[str, Any]]) -> list[str]:
    """What is not as it should be: another path than asked for, or too far from the portable."""
    wrong = []
    for name, row in outcome.items():
        if row["taken"] != PATHS[name][0]:
            wrong.append(f"{name}: took {row['taken']}")
        if row["overlaps"] != name.endswith(_OVERLAPPING):
            wrong.append(f"{name}: overlaps {row['overlaps']}")
        if not row["same"]:
            wrong.append(f"{name}: other bits than at first")
        for key in ("class_code", "image", "difference"):
            if not row[key] < ALLOWED:  # NaN is not
                wrong.append(f"{name}: {key} {row[key]:.2g}")
    return wrong


def race(torch: Any, clock: Clock, model: CAE, kind: str, batch: int) -> dict[str, Any]:
    """Each path's decode or encode as a CUDA graph, in alternating rounds."""
    from probe import Probe

    generator = np.random.default_rng(1)
    shape = (batch, *model.config.individual_shape)
    individual = torch.from_numpy(generator.standard_normal(shape, np.float32)).cuda()
    code = torch.from_numpy(generator.standard_normal((batch, model.config.code_dim), np.float32))
    code = code.cuda()
    images = torch.from_numpy(random_images(model.config, batch)).cuda()
    probes: list[Any] = []
    programs: dict[str, Program] = {}
    for name in PATHS:
        with choosing(name):
            probe = Probe(model, batch)
        probes.append(probe)
        programs[name] = captured(torch, _program(torch, probe, kind, individual, code, images))
    timed = clock.race(programs, rounds=15, seconds=6)
    del programs
    for probe in probes:
        probe.close()
    return timed


def _program(torch: Any, probe: Any, kind: str, individual: Any, code: Any, images: Any) -> Program:
    out = torch.empty_like(images)
    out_individual, out_code = torch.empty_like(individual), torch.empty_like(code)

    def run() -> None:
        queue = int(torch.cuda.current_stream().cuda_stream)
        if kind == "encode":
            probe.encode(images, out_individual, out_code, queue)
        else:
            probe.decode(individual, code, out, queue)

    return run


def summary(cases: dict[str, dict[str, Any]]) -> list[str]:
    """The portable path beside the best of the others, case by case."""
    said = []
    for case, timed in cases.items():
        others = {n: row["us"] for n, row in timed.items() if n != "portable" and "us" in row}
        portable = timed.get("portable", {}).get("us")
        if portable and others:
            best = min(others, key=lambda name: others[name])
            said.append(
                f"{case} portable {portable:.0f} us, {best} {others[best]:.0f} us, "
                f"{portable / others[best]:.2f}x"
            )
        else:
            said.append(f"{case} not run")
    return said


def main() -> None:
    """Compares, then races."""
    found = Recorder()
    small = CAEConfig(image_size=32, channels=16, num_blocks=1, in_channels=3, modulation_width=32)
    if EMULATE:
        outcome = compare(CAE.random(small, seed=0), 2)
        found.put("agreement", outcome)
        bad = wrong_in(outcome)
        found.say("; ".join(bad) or f"{len(outcome)} paths agree")
        sys.exit(bool(bad))
    torch = found.need_torch()
    if torch.cuda.get_device_capability() != (9, 0):
        found.skip("one path only: the compute capability is not 9.0")
    model = CAE.random(CAEConfig(), seed=0)
    bad = []
    for name, each, batch in (("small", CAE.random(small, seed=0), 3), ("reference", model, 2)):
        try:
            outcome = compare(each, batch)
            found.put(f"agreement, {name}", outcome)
            bad += [f"{name}: {what}" for what in wrong_in(outcome)]
        except Exception as error:  # the other is compared all the same
            bad.append(f"{name}: {first_line(error)}")
        found.say("; ".join(bad) or f"{name} agrees")
    clock = Clock(torch)
    cases: dict[str, Any] = {}
    for kind, batch in _RACES:
        try:
            cases[f"{kind} x{batch}"] = race(torch, clock, model, kind, batch)
        except Exception as error:  # a finding; the other races are run
            cases[f"{kind} x{batch}"] = {"portable": {"not_run": first_line(error)}}
        found.put("cases", cases)
        found.say("; ".join([*bad, *summary(cases)]))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
