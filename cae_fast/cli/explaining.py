# SPDX-License-Identifier: Apache-2.0
"""`cae-fast explain` and `demo`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cae_fast.cli.output import AsJson, Output, Quiet

if TYPE_CHECKING:
    from cae_fast.explanation import Explanation

_ROWS_PRINTED = 40


def explain(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model.safetensors.")],
    classifier: Annotated[
        str,
        typer.Argument(
            metavar="CLASSIFIER", help=".onnx, .pt2, TorchScript, .engine or module:function."
        ),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    bank: Annotated[Path, typer.Option(metavar="BANK", help="bank.parquet or bank.csv.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS|any", help="Class to reach, its name or index; by default the runner-up."
        ),
    ] = None,
    path: Annotated[
        str, typer.Option(help="line, or graph: over the neighbour graph of the bank's codes.")
    ] = "line",
    tolerance: Annotated[float, typer.Option(help="Width of the bracket around the flip.")] = 1
    / 256,
    exemplars: Annotated[
        str | None,
        typer.Option(
            help="reliable (default), nearest, medoid or reliable-medoid: docs/guided_paths.md."
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k", help="Nearest exemplars averaged; by default 20, of small banks fewer."
        ),
    ] = None,
    search: Annotated[
        str, typer.Option(help="bisection, or margin: fewer decodes on smooth paths.")
    ] = "bisection",
    frames: Annotated[int, typer.Option(help="Pictures of the path; 0 for none.")] = 9,
    backend: Annotated[str, typer.Option(help="auto, cpu, torch, cuda or tensorrt.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cuda:N for cuda; what torch knows for torch.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Images in flight at a time.")] = None,
    isolate: Annotated[
        bool,
        typer.Option("--isolate", help="Run an .onnx CLASSIFIER in a process of its own."),
    ] = False,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "Explanations",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in DIR.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Explain images: counterfactuals, saliency maps, path frames, a table and an HTML report."""
    from cae_fast.bank import CodeBank
    from cae_fast.classifier import Classifier
    from cae_fast.explainer import Explainer
    from cae_fast.files import check_output_directory
    from cae_fast.model import CAE
    from cae_fast.report.from_files import explain_files

    check_output_directory(out, overwrite=overwrite)
    explainer = Explainer(
        CAE.load(model),
        Classifier.load(classifier, isolate=isolate) if isolate else Classifier.load(classifier),
        bank=CodeBank.load(bank),
        backend=backend,
        device=device,
        max_batch=max_batch,
    )
    printed = Output(quiet=quiet, as_json=as_json)
    with printed.progress("explaining") as moved:
        result = explain_files(
            explainer,
            images,
            out,
            target=_class_of(target, explainer.class_names),
            exemplars=exemplars,
            path=path,
            tolerance=tolerance,
            k=k,
            search=search,
            frames=frames,
            title=title,
            overwrite=overwrite,
            on_progress=moved,
        )
    _print_explanation(printed, result, out)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("demo"),
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your own images instead of the samples.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="digits, blood_cells or all; for --data, all picks what suits.")
    ] = "all",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that is not a demo's.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Explain the bundled samples with the bundled models; prints the page to open."""
    from cae_fast.demo import run
    from cae_fast.report.page import duration

    printed = Output(quiet=quiet, as_json=as_json)
    with printed.progress("explaining") as moved:
        result = run(out, data, model, overwrite=overwrite, on_progress=moved)
    if result.model_choice:
        printed.line(result.model_choice)
    for name, totals in result.totals.items():
        said = ", ".join(f"{count} {status}" for status, count in totals.items())
        time = duration(result.seconds_per_image[name])
        printed.line(f"{name}: {said}; {time} per explanation")
    printed.line(str(result.index))
    printed.result(
        {
            "index": str(result.index),
            "reports": {name: str(report) for name, report in result.reports.items()},
            "totals": result.totals,
            "seconds_per_image": result.seconds_per_image,
            "model_choice": result.model_choice,
        }
    )


def _print_explanation(printed: Output, result: Explanation, out: Path) -> None:
    from cae_fast.report import table_rows
    from cae_fast.report.page import duration, total_seconds

    rows = table_rows(result)
    for row in rows:
        if row["status"] == "rejected":
            printed.warn(f"rejected {row['name']}: {row['reason']}")
    printed.table(
        ("image", "status", "source", "target", "t_flip", "decodes"),
        [_cells(row) for row in rows[:_ROWS_PRINTED]],
    )
    if len(rows) > _ROWS_PRINTED:
        printed.line(f"... and {len(rows) - _ROWS_PRINTED} more in {out / 'table.csv'}")
    totals = dict(Counter(str(row["status"]) for row in rows))
    per_image = (total_seconds(result.meta) or 0.0) / len(rows)
    printed.line(f"{out / 'index.html'}  ({duration(per_image)} per explanation)")
    printed.result(
        {
            "report": str(out / "index.html"),
            "table": str(out / "table.csv"),
            "totals": totals,
            "seconds_per_image": per_image,
            "explanations": rows,
        }
    )


def _class_of(target: str | None, class_names: Sequence[str]) -> str | int | None:
    """What `--target` says: a name where there is one of that spelling, else an index."""
    if target is None or target in class_names or not target.isdecimal():
        return target
    return int(target)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    flip = "" if row["t_flip"] is None else f"{row['t_flip']:.3f}"
    names = (row["name"], row["status"], row["source_class"], row["target_class"])
    return (*map(str, names), flip, str(row["evaluations"]))
