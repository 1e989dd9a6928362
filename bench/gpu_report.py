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

from gpu_targets import step_data, targets

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
_PEERS = ("eager", "fp16", "compile")


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
