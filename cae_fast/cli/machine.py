# SPDX-License-Identifier: Apache-2.0
"""`cae-fast info` and `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cae_fast.cli.output import AsJson, Output, Quiet


def info(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Say what this machine and this installation offer: processor, CUDA, TensorRT, versions."""
    from cae_fast.environment import info as collect

    facts = collect()
    out = Output(quiet=quiet, as_json=as_json)
    for name, text in _lines(facts):
        out.line(f"{name:<12}{text}")
    out.result(facts)


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Batch 1 beside PyTorch eager, in under a minute.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="For ours and all others; by default the cores.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your model.safetensors instead of random networks."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.0, help="Spend about this on each comparison.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Time encoding, decoding and explaining on this machine beside what else is installed."""
    from cae_fast.benchmark.run import run
    from cae_fast.model import CAE

    printed = Output(quiet=quiet, as_json=as_json)
    with printed.progress("measuring") as moved:
        report = run(
            quick=quick,
            threads=threads,
            model=None if model is None else CAE.load(model),
            seconds=seconds,
            on_progress=moved,
        )
    _print_bench(printed, report)


def _print_bench(printed: Output, report: dict[str, Any]) -> None:
    from cae_fast.benchmark import results

    for line in results.heading(report):
        printed.line(line)
    rows = results.table(report, spread=False)
    printed.table(*results.without_empty_columns(results.COLUMNS, rows))
    printed.line()
    if any(verdict["measured"] is not None for verdict in report["targets"]):
        printed.table(results.TARGET_COLUMNS, results.target_table(report))
        printed.line()
    for line in results.left_out(report):
        printed.line(f"not run: {line}")
    if unsteady := results.unsteady(report):
        printed.warn(f"the machine was not idle, distrust the times of: {'; '.join(unsteady)}")
    printed.result(report)


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, extension = facts["cpu"], facts["extension"]
    lines = [
        ("cae_fast", f"{facts['version']}, Python {facts['python']}, {facts['platform']}"),
        ("extension", "built" if extension["built"] else f"not usable: {extension['reason']}"),
    ]
    if extension["built"]:
        isas = ", ".join(cpu["isas"])
        lines.append(("CPU", f"{cpu['isa']} in use (of {isas}), {cpu['threads']} threads"))
    lines += [("CUDA", text) for text in _cuda(facts["cuda"])]
    found = ", ".join(f"{name} {version}" for name, version in facts["tensorrt"].items())
    lines.append(("TensorRT", found or "neither tensorrt nor tensorrt_rtx is installed"))
    packages = [f"{name} {v}" for name, v in facts["packages"].items() if v]
    missing = [name for name, v in facts["packages"].items() if not v]
    lines.append(("packages", ", ".join(packages)))
    if missing:
        lines.append(("", f"not installed: {', '.join(missing)}"))
    return lines


def _cuda(cuda: dict[str, Any]) -> list[str]:
    if cuda["built"]:
        archs = ", ".join(str(arch) for arch in cuda.get("archs", []))
        lines = [f"built with {cuda.get('compiler', 'nvcc')} for {archs}"]
    else:
        lines = [f"not built: {cuda['reason']}"]
    found = cuda["driver_found"] or "none"
    enough = "" if cuda["driver_ok"] or cuda["driver_found"] is None else ": too old"
    lines.append(f"driver {found} found, {cuda['driver_needed']} or later needed{enough}")
    for device in cuda.get("devices", []):
        gib = device["memory_bytes"] / 2**30
        capability = ".".join(map(str, device["capability"]))
        old = "" if device["usable"] else ": too old for backend 'cuda', which needs 8.0"
        lines.append(f"{device['name']}, compute capability {capability}, {gib:.0f} GiB{old}")
    if not cuda.get("devices"):
        lines.append(f"no GPU: {cuda.get('error') or 'none found'}")
    if cuda["emulator"]:
        lines.append("emulator of the kernels built, for tests: device 'emu'")
    return lines
