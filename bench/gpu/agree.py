# SPDX-License-Identifier: Apache-2.0
"""Step: a quick check of the GPU engine against the torch networks in float64 on the same GPU.

Errors as in the table of agreement: norm of the error by the norm of the value; of differences by
the norm of the image. With GPU_CHECK_EMULATE=1 the small configurations run in the emulator.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import numpy as np
from record import Recorder, first_line

from cae_fast.model import CAE, CAEConfig
from cae_fast.testing import TOLERANCE, random_images, relative_error

EMULATE = os.environ.get("GPU_CHECK_EMULATE") == "1"
ALLOWED = TOLERANCE["cuda-fp16"]
_SMALL: dict[str, dict[str, Any]] = {
    "16 px, 4 channels": {"image_size": 16, "channels": 4, "num_blocks": 1, "in_channels": 1},
    "20 px, 5 channels": {"image_size": 20, "channels": 5, "num_blocks": 2, "in_channels": 3},
    "64 px, 16 channels": {"image_size": 64, "channels": 16, "num_blocks": 4, "in_channels": 3},
}
_LARGE: dict[str, dict[str, Any]] = {
    "128 px, 64 channels": {"image_size": 128},
    "reference": {},
}


def engine_class() -> Any:
    """GpuEngine of the extension, or of the emulator's module."""
    name = "_C_emu" if EMULATE else "_C"
    return importlib.import_module(f"cae_fast.{name}").GpuEngine


def check(torch: Any, model: CAE, batch: int) -> dict[str, Any]:
    """Errors of one model, and whether results repeat and do not depend on the batch."""
    config = model.config
    device = "cpu" if EMULATE else "cuda"
    exact = model.module().eval().requires_grad_(False).to(device=device, dtype=torch.float64)
    images = random_images(config, batch, seed=1)
    engine = engine_class()(config.to_dict(), dict(model.weights), max_batch=batch)

    def host(tensor: Any) -> Any:
        return tensor.cpu().numpy()

    with torch.no_grad():
        individual, code = exact.encode(torch.from_numpy(images).to(device, torch.float64))
        start = host(code).astype(np.float32)
        shift = np.random.default_rng(2).standard_normal(start.shape).astype(np.float32)
        ends = start, start + shift
        wanted = [
            host(exact.decode(individual, torch.from_numpy(e).to(device).double())) for e in ends
        ]
    own_individual, own_code = engine.encode(images)
    source = host(individual).astype(np.float32)
    rows = np.arange(batch, dtype=np.int32)
    got = [engine.decode(source, end, rows).numpy() for end in ends]
    again = engine.decode(source, ends[1], rows).numpy()
    alone = engine.decode(source[-1:], ends[1][-1:], rows[:1]).numpy()
    session = engine.session(source, np.stack(ends, axis=1), 4)
    walked = session.decode(rows, np.full(batch, 4, np.int32)).numpy()
    change, change_wanted = got[1] - got[0], wanted[1] - wanted[0]
    found = {
        "individual": relative_error(own_individual.numpy(), host(individual)),
        "class_code": relative_error(own_code.numpy(), host(code)),
        "image": max(relative_error(g, w) for g, w in zip(got, wanted, strict=True)),
        "difference": float(np.linalg.norm(change - change_wanted) / np.linalg.norm(wanted[1])),
        "path": relative_error(walked, wanted[1]),
        "repeats": bool(np.array_equal(got[1], again)),
        "batch_free": bool(np.array_equal(got[1][-1:], alone)),
    }
    if not EMULATE:
        found |= _from_torch(torch, model, engine, source, ends[1], got[1])
    return found


def _from_torch(
    torch: Any, model: CAE, engine: Any, source: Any, code: Any, expected: Any
) -> dict[str, Any]:
    """Torch's own memory in and out, on its stream; and the probe: the same bits."""
    from probe import Probe

    queue = torch.cuda.Stream()
    given, codes = (torch.from_numpy(array).cuda() for array in (source, code))
    torch.cuda.synchronize()
    with torch.cuda.stream(queue):
        rows = np.arange(len(code), dtype=np.int32)
        images = engine.decode(given, codes, rows, stream=queue.cuda_stream)
        view = torch.from_dlpack(images)
        same = np.array_equal(view.cpu().numpy(), expected)
    found: dict[str, Any] = {"dlpack": bool(same)}
    try:
        probe = Probe(model, len(code))
        out = torch.full_like(view, float("nan"))
        torch.cuda.synchronize()
        probe.decode(given, codes, out, 0)
        torch.cuda.synchronize()
        found["probe"] = bool(np.array_equal(out.cpu().numpy(), expected))
        probe.close()
    except (OSError, RuntimeError) as error:
        print(f"probe: {first_line(error)}")
    return found


def accepted(errors: dict[str, Any]) -> list[str]:
    """Names of what is wrong."""
    wrong = []
    for name, value in errors.items():
        fine = value if isinstance(value, bool) else value < ALLOWED  # NaN is not
        if not fine:
            wrong.append(f"{name} {value if isinstance(value, bool) else f'{value:.2g}'}")
    return wrong


def main() -> None:
    """Checks every configuration, the reference first."""
    found = Recorder()
    if EMULATE:
        import torch
    else:
        torch = found.need_torch()
    cases: list[tuple[str, dict[str, Any], int]] = [
        (name, {**fields, "modulation_width": 32}, 3) for name, fields in _SMALL.items()
    ]
    if not EMULATE:
        large = [(name, fields, 2) for name, fields in _LARGE.items()]
        cases = [*reversed(large), *cases, ("reference, 9 images", {}, 9)]
    results: dict[str, Any] = {}
    bad: list[str] = []
    for name, fields, batch in cases:
        model = CAE.random(CAEConfig(**fields), seed=0)
        try:
            errors = check(torch, model, batch)
            wrong = accepted(errors)
        except Exception as error:  # the other configurations are checked all the same
            errors, wrong = {"error": first_line(error)}, [first_line(error)]
        results[name] = {**errors, "wrong": wrong}
        found.put("cases", results)
        bad += [f"{name}: {what}" for what in wrong]
        print(name, results[name], flush=True)
    main_case = results.get("reference", next(iter(results.values())))
    shown = ", ".join(
        f"{key} {main_case[key]:.1e}" for key in ("image", "difference") if key in main_case
    )
    found.say(
        f"{len(cases)} configurations, {shown} (allowed {ALLOWED:g})"
        + (f"; WRONG: {'; '.join(bad[:4])}" if bad else "")
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
