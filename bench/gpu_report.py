# SPDX-License-Identifier: Apache-2.0
"""Tables from what gpu_check.sh found.

`python bench/gpu_report.py bench/gpu-out/results.json` prints the document that is kept as
bench/RESULTS_GPU.md, `--status` the rows for bench/GPU_STATUS.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

#: Every kernel of the engine, by the name it is launched under.
KERNELS = {
    "conv_tile, 3x3": ("conv3x3",),
    "conv_tile, stride 2": ("stride2",),
    "conv_tile, 7x7 of images": ("image7x7",),
    "conv_tile, upsampling": ("upsample plain", "upsample affine", "upsample residual"),
    "upsample_ring": ("upsample_ring",),
    "output_conv": ("output_conv",),
    "linear": ("linear",),
    "merge_moments": ("merge_moments",),
    "import_stream": ("import_stream",),
    "finish_stream": ("finish_stream",),
    "class_head": ("class_head",),
}
_POINTS = ("ours, path points", "ours, path points, graph")
_PEERS = ("eager", "fp16", "compile")


def step_data(results: dict[str, Any], name: str) -> dict[str, Any]:
    """What a step found; empty where it did not run."""
    for step in results.get("steps", []):
        if step["name"] == name:
            data = step.get("data", {})
            return data if isinstance(data, dict) else {}
    return {}


def short_table(results: dict[str, Any]) -> str:
    """One line per step, for the end of a run."""
    head = f"gpu_check at {results.get('commit', '?')}, {results.get('seconds', 0):.0f} s"
    rows = [
        f"{step['name']:9} {step['status']:11} {step['seconds']:4.0f} s  {step['line']}"
        for step in results.get("steps", [])
    ]
    return "\n".join([head, *rows]) + "\n"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def machine_line(results: dict[str, Any]) -> str:
    """GPU, driver, compiler and torch in words."""
    data = step_data(results, "machine")
    gpus = data.get("gpus") or [{"name": "no GPU"}]
    smi = data.get("smi", {})
    parts = [
        gpus[0]["name"],
        f"driver {smi.get('driver_version', '?')}",
        f"SM clock at most {smi.get('clocks.max.sm', '?')}",
        data.get("nvcc", "").split(",")[-1].strip(),
        str(data.get("torch", "")),
    ]
    return ", ".join(part for part in parts if part)


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
        for what, wanted, value, shape in [*values, *hopper_targets(results, ratio())]
    ]


def hopper_targets(
    results: dict[str, Any], against_compile: float | None
) -> list[tuple[str, str, float | None, str]]:
    """What was promised of compute capability 9.0, by whichever path of convolutions is best."""

    def best(cases: dict[str, Any], field: str, better: Any, names: str = "") -> float | None:
        rows = [row for name, row in cases.items() if name.startswith(names)]
        return better((row[field] for row in rows if field in row), default=None)

    def quotient(numerator: float | None, denominator: float | None) -> float | None:
        return numerator / denominator if numerator and denominator else None

    paths = step_data(results, "paths").get("cases", {})
    speed = step_data(results, "speed").get("cases", {})
    explain = step_data(results, "explain").get("cases", {})
    many = step_data(results, "many").get("cases", {})
    one = best(paths.get("decode x1", {}), "us", min)
    batch = best(paths.get("decode x64", {}), "us", min)
    ours = best(speed.get("decode x1", {}), "us", min, "ours")
    full = speed.get("decode x64", {}).get("ours", {})
    compiled = against_compile and ours and against_compile * ours
    return [
        ("9.0: decode x1, best path", "<= 170 us, aim 135", one, "{:.0f} us"),
        (
            "9.0: decode x1, best path, against torch.compile fp16 with CUDA graphs",
            ">= 2.3, aim 3",
            quotient(compiled, one),
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
            best(explain, "ms", min, "ours, bisection"),
            "{:.2f} ms",
        ),
        (
            "9.0: explanation x1, margin, whatever is quickest",
            "<= 4 ms, aim 2.5",
            best(explain, "ms", min, "ours, margin"),
            "{:.2f} ms",
        ),
        (
            "9.0: explanations a second, 64 at once",
            ">= 400, aim 600",
            best(many, "per_second", max),
            "{:.0f}",
        ),
    ]


def speed_rows(results: dict[str, Any]) -> list[list[str]]:
    """Every program of every race."""
    rows = []
    for step in ("speed", "compiled"):
        extra = step_data(results, step)
        for case, timed in extra.get("cases", {}).items():
            mine = [
                row["us"] for name, row in timed.items() if name == "ours, graph" and "us" in row
            ]
            for name, row in timed.items():
                if "us" not in row:
                    rows.append([case, name, f"not run: {row.get('not_run', '?')}", "–", "–", "–"])
                    continue
                peer = any(name.startswith(word) for word in _PEERS)
                rows.append(
                    [
                        case,
                        name,
                        f"{row['us']:.1f} ({row['low']:.1f} to {row['high']:.1f})",
                        f"{row['us'] / mine[0]:.2f}" if mine and peer else "–",
                        f"{row['tflops']:.0f}" if "tflops" in row else "–",
                        f"{row['share']:.1%}" if "share" in row else "–",
                    ]
                )
    return rows


def layer_rows(results: dict[str, Any]) -> list[list[str]]:
    """Kernels of each case; equal ones side by side in one row, in order of appearance."""
    rows = []
    for case, layers in step_data(results, "layers").get("cases", {}).items():
        merged: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for layer in layers:
            merged.setdefault((layer["label"], str(layer["grid"])), []).append(layer)
        for (label, grid), same in merged.items():
            total = sum(layer["us"] for layer in same)
            share = sum(layer["share"] * layer["us"] for layer in same) / total if total else 0
            rows.append(
                [
                    case,
                    label,
                    grid,
                    str(len(same)),
                    f"{total / len(same):.2f}",
                    f"{total:.1f}",
                    f"{share:.1%}" if share else "–",
                    str(same[0].get("registers", "–")),
                ]
            )
    return rows


def path_rows(results: dict[str, Any]) -> list[list[str]]:
    """Both paths of the convolutions, in clusters of each size."""
    return [
        [
            case,
            name,
            f"{row['us']:.1f} ({row['low']:.1f} to {row['high']:.1f})" if "us" in row else "–",
        ]
        for case, timed in step_data(results, "paths").get("cases", {}).items()
        for name, row in timed.items()
    ]


def training_rows(results: dict[str, Any]) -> list[list[str]]:
    """Training steps of each kind, beside the authors', which come first."""
    rows = []
    for case, timed in step_data(results, "training").get("cases", {}).items():
        first = next((s for s in timed.values() if not isinstance(s, str)), None)
        for name, seconds in timed.items():
            if isinstance(seconds, str):
                rows.append([case, name, seconds, "–"])
            else:
                rows.append([case, name, f"{1e3 * seconds:.1f}", f"{first / seconds:.2f}"])
    return rows


def risk_rows(results: dict[str, Any]) -> list[list[str]]:
    """The study's risks and their answers."""
    rows = []
    for name, answer in step_data(results, "risks").get("answers", {}).items():
        numbers = ", ".join(
            f"{key} {value:.4g}" for key, value in answer.get("numbers", {}).items()
        )
        said = answer.get("verdict") or answer.get("error") or answer.get("not_here") or "?"
        fine = {True: "yes", False: "no"}.get(answer.get("fine"), "–")
        rows.append([name.removeprefix("risk_").replace("_", " "), fine, said, numbers])
    return rows


def document(results: dict[str, Any]) -> str:
    """RESULTS_GPU.md."""
    rate = step_data(results, "speed").get("matrix rate", {}).get("tflops")
    parts = [
        "# Results on a GPU",
        f"Written by `bench/gpu_report.py` from a run of `bench/gpu_check.sh`, "
        f"{results.get('started', '?')}, commit {results.get('commit', '?')}.",
        f"- {machine_line(results)}\n- dense fp16 matrix rate of this run (cuBLAS, 8192 x 8192 x "
        f"8192, random data): {f'{rate:.0f} TFLOP/s' if rate else 'not measured'}\n"
        "- Times in us: medians of alternating rounds, fastest to slowest in brackets. Buffers are "
        "the same call after call, so what fits stays in L2, on all sides. TFLOP/s count the "
        "operations after the algebra; share: of the matrix rate.",
        "## Targets\n\n" + markdown(("what", "wanted", "measured"), targets(results)),
        "## Steps\n\n"
        + markdown(
            ("step", "status", "s", "found"),
            (
                [step["name"], step["status"], f"{step['seconds']:.0f}", step["line"]]
                for step in results.get("steps", [])
            ),
        ),
    ]
    for title, columns, rows in (
        (
            "Beside PyTorch",
            ("case", "program", "us", "x ours, graph", "TFLOP/s", "share"),
            speed_rows(results),
        ),
        (
            "Kernels",
            ("case", "kernel", "grid", "times", "us each", "us", "share", "registers"),
            layer_rows(results),
        ),
        ("Paths of the convolutions", ("case", "path", "us"), path_rows(results)),
        (
            "Training steps",
            ("case", "step", "ms", "beside the authors'"),
            training_rows(results),
        ),
        ("Risks of the study", ("risk", "fine", "verdict", "numbers"), risk_rows(results)),
    ):
        if rows:
            parts.append(f"## {title}\n\n{markdown(columns, rows)}")
    extra = step_data(results, "speed")
    lines = [
        f"- {key.removeprefix('host and cold, ')}, {name}: "
        + ", ".join(f"{what} {value:.1f}" for what, value in row.items())
        for key, case in extra.items()
        if key.startswith("host and cold")
        for name, row in case.items()
    ]
    if lines:
        parts.append(
            "## Host time to queue a call, and a call with cold L2 (us)\n\n" + "\n".join(lines)
        )
    return "\n\n".join(parts) + "\n"


def status_rows(results: dict[str, Any]) -> str:
    """Rows of GPU_STATUS.md: kernel, GPU, commit, what ran, agreement, sanitizer."""
    gpu = (step_data(results, "machine").get("gpus") or [{"name": "no GPU"}])[0]["name"]
    ran = {
        layer["label"]: case
        for case, layers in step_data(results, "layers").get("cases", {}).items()
        for layer in layers
    }
    agree = step_data(results, "agree").get("cases", {})
    wrong = [name for name, case in agree.items() if case.get("wrong")]
    errors = [case["image"] for case in agree.values() if "image" in case]
    if not agree:
        agreement = "not checked"
    elif wrong:
        agreement = f"WRONG in {', '.join(wrong)}"
    else:
        agreement = f"{len(agree)} configurations, image error up to {max(errors, default=0):.1e}"
    tools = step_data(results, "sanitize").get("tools", {})
    sanitizer = ", ".join(f"{tool} {row['said']}" for tool, row in tools.items()) or "not run"
    rows = []
    for kernel, words in KERNELS.items():
        cases = [case for label, case in ran.items() if label.startswith(words)]
        if cases:
            rows.append([kernel, gpu, str(results.get("commit", "?")), agreement, sanitizer])
        else:
            rows.append([kernel, "–", "–", "not seen in a profile: compiled and emulated", "–"])
    return (
        markdown(("kernel", "ran on", "at commit", "agreement", "compute-sanitizer"), rows) + "\n"
    )


def main() -> None:
    """Prints the document or the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="results.json of a run")
    parser.add_argument("--status", action="store_true", help="rows for GPU_STATUS.md instead")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    print(status_rows(results) if arguments.status else document(results), end="")


if __name__ == "__main__":
    main()
