# SPDX-License-Identifier: Apache-2.0
"""What was promised of GPUs, beside what gpu_check.sh measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_POINTS = ("ours, path points", "ours, path points, graph")


def step_data(results: dict[str, Any], name: str) -> dict[str, Any]:
    """What a step found; empty where it did not run."""
    for step in results.get("steps", []):
        if step["name"] == name:
            data = step.get("data", {})
            return data if isinstance(data, dict) else {}
    return {}


def targets(results: dict[str, Any]) -> list[list[str]]:
    """What was promised and what was measured."""
    speed = step_data(results, "speed").get("cases", {})
    compiled = step_data(results, "compiled").get("cases", {})
    explain = step_data(results, "explain").get("cases", {})

    def ours(
        case: dict[str, Any],
        field: str,
        better: Any = min,
        names: Sequence[str] = ("ours", "ours, graph"),
    ) -> float | None:
        mine = (case.get(name, {}) for name in names)
        values = [row[field] for row in mine if field in row]
        return better(values) if values else None

    def ratio() -> float | None:
        found = []
        for name, case in compiled.items():
            theirs = [row["us"] for peer, row in case.items() if "compile" in peer and "us" in row]
            mine = ours(case, "us")
            if name.startswith("decode x1 ") and theirs and mine:
                found.append(min(theirs) / mine)
        return min(found, default=None)

    def explained(search: str) -> float | None:
        value = explain.get(f"ours, {search}", {}).get("ms")
        return float(value) if value is not None else None

    authors = explain.get("authors, eager fp32", {}).get("ms")
    searched = explained("bisection")
    values: list[tuple[str, str, float | None, str]] = [
        (
            "decode x1 against torch.compile fp16 with CUDA graphs",
            ">= 1.7, aim 2.2",
            ratio(),
            "{:.2f}x",
        ),
        ("decode x1", "<= 220 us, aim 185", ours(speed.get("decode x1", {}), "us"), "{:.0f} us"),
        (
            "a path point (first convolution shared)",
            "",
            ours(speed.get("decode x1", {}), "us", min, _POINTS),
            "{:.0f} us",
        ),
        (
            "decode x64, share of the matrix rate",
            ">= 35 %, aim 45 %",
            ours(speed.get("decode x64", {}), "share", max),
            "{:.1%}",
        ),
        (
            "explanation x1 against the authors' procedure in eager fp32",
            ">= 12, aim 20",
            authors / searched if authors and searched else None,
            "{:.1f}x",
        ),
        ("explanation x1, bisection", "<= 4.5 ms, aim 3.8", searched, "{:.2f} ms"),
        ("explanation x1, margin", "aim 3 ms", explained("margin"), "{:.2f} ms"),
    ]
    return [
        [what, wanted, "not measured" if value is None else shape.format(value)]
        for what, wanted, value, shape in [*values, *hopper_targets(results)]
    ]


def hopper_targets(results: dict[str, Any]) -> list[tuple[str, str, float | None, str]]:
    """What was promised of compute capability 9.0, by whichever path of convolutions is best.

    Nothing where the two paths were not raced: the GPU is another.
    """

    def best(cases: dict[str, Any], field: str, better: Any, names: str = "") -> float | None:
        rows = [row for name, row in cases.items() if names in name]
        return better((row[field] for row in rows if field in row), default=None)

    def both(step: str) -> dict[str, Any]:
        cases = step_data(results, step).get("cases", {})
        by_wgmma = step_data(results, f"{step}90").get("cases", {})
        return cases | {f"{name}, wgmma": row for name, row in by_wgmma.items()}

    def quotient(numerator: float | None, denominator: float | None) -> float | None:
        return numerator / denominator if numerator and denominator else None

    paths = step_data(results, "paths").get("cases", {})
    speed = step_data(results, "speed").get("cases", {})
    compiled = step_data(results, "compiled").get("cases", {})
    one = best(paths.get("decode x1", {}), "us", min)
    batch = best(paths.get("decode x64", {}), "us", min)
    full = speed.get("decode x64", {}).get("ours", {})
    theirs = [
        best(case, "us", min, "compile")
        for name, case in compiled.items()
        if name.startswith("decode x1 ")
    ]
    if not paths:
        return []
    return [
        ("9.0: decode x1, best path", "<= 170 us, aim 135", one, "{:.0f} us"),
        (
            "9.0: decode x1, best path, against torch.compile fp16 with CUDA graphs",
            ">= 2.3, aim 3",
            quotient(min((us for us in theirs if us), default=None), one),
            "{:.2f}x",
        ),
        (
            "9.0: decode x1, best path, against cuDNN's convolutions (eager fp16, CUDA graph)",
            ">= 1.8, aim 2",
            quotient(best(speed.get("decode x1", {}), "us", min, "fp16 channels_last"), one),
            "{:.2f}x",
        ),
        (
            "9.0: decode x64, best path, share of the matrix rate",
            ">= 55 %, aim 70 %",
            quotient(full.get("share", 0) * full.get("us", 0), batch),
            "{:.1%}",
        ),
        (
            "9.0: explanation x1, bisection, whatever is quickest",
            "<= 4 ms, aim 3.2",
            best(both("explain"), "ms", min, "ours, bisection"),
            "{:.2f} ms",
        ),
        (
            "9.0: explanation x1, margin, whatever is quickest",
            "<= 4 ms, aim 2.5",
            best(both("explain"), "ms", min, "ours, margin"),
            "{:.2f} ms",
        ),
        (
            "9.0: explanations a second, 64 at once",
            ">= 400, aim 600",
            best(both("many"), "per_second", max),
            "{:.0f}",
        ),
    ]
