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
    from cae_fast.ray_jobs.shards import Recipe

_ROWS_PRINTED = 40

SecondTry = Annotated[
    bool,
    typer.Option(
        "--second-try/--no-second-try",
        help="A second path where the first explains nothing: docs/guided_paths.md.",
    ),
]


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
    reach: Annotated[
        float | None,
        typer.Option(
            help="Length of lines over the distance to the exemplar, 1 to 4 (1.5; graphs: 1)."
        ),
    ] = None,
    second_try: SecondTry = True,
    search: Annotated[
        str, typer.Option(help="bisection, or margin: fewer decodes on smooth paths.")
    ] = "bisection",
    saliency: Annotated[
        str,
        typer.Option(
            help="Kind of map: difference, edit, evidence, smooth, weighted or mean-k: "
            "docs/method.md."
        ),
    ] = "difference",
    frames: Annotated[
        int | None, typer.Option(help="Pictures of the path (9); 0 for none; not with --ray.")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, cpu, torch, cuda or tensorrt.")] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cuda:N for cuda; what torch knows for torch.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Images in flight at a time.")] = None,
    isolate: Annotated[
        bool,
        typer.Option("--isolate", help="Run an .onnx CLASSIFIER in a process of its own."),
    ] = False,
    title: Annotated[
        str | None, typer.Option(help="Heading of the report; not with --ray.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in DIR.")] = False,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Parquet shards by workers of Ray; run again, it goes on.",
        ),
    ] = False,
    workers: Annotated[int | None, typer.Option(help="With --ray: engines (2).")] = None,
    worker_cpus: Annotated[int | None, typer.Option(help="With --ray: CPUs of each (1).")] = None,
    worker_gpus: Annotated[float | None, typer.Option(help="With --ray: GPUs of each (0).")] = None,
    shard_size: Annotated[int | None, typer.Option(help="With --ray: images (1000).")] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="With --ray: a cluster's, or auto.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="With --ray: keep maps and counterfactuals too.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Explain images: counterfactuals, saliency maps, path frames, a table and an HTML report."""
    of_ray = {
        "--workers": workers,
        "--worker-cpus": worker_cpus,
        "--worker-gpus": worker_gpus,
        "--shard-size": shard_size,
        "--ray-address": ray_address,
        "--pictures": pictures or None,
    }
    refuse_options({"--frames": frames, "--title": title} if ray else of_ray, with_ray=ray)
    if ray:
        from cae_fast.ray_jobs.shards import Recipe

        recipe = Recipe(
            model=str(model.absolute()),
            classifier=_absolute(classifier),
            bank=str(bank.absolute()),
            backend=backend,
            device=device,
            max_batch=max_batch,
            isolate=isolate,
            options={
                "target": _class_of(target, _class_names(model)),
                "exemplars": exemplars,
                "path": path,
                "tolerance": tolerance,
                "k": k,
                "reach": reach,
                "second_try": second_try,
                "search": search,
                "saliency": saliency,
            },
            pictures=pictures,
        )
        _explain_on_ray(
            recipe,
            images,
            out,
            {
                "count": workers,
                "cpus": worker_cpus,
                "gpus": worker_gpus,
                "address": ray_address,
            },
            1000 if shard_size is None else shard_size,
            overwrite,
            Output(quiet=quiet, as_json=as_json),
        )
        return
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
            reach=reach,
            second_try=second_try,
            search=search,
            saliency=saliency,
            frames=9 if frames is None else frames,
            title=title or "Explanations",
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


def _explain_on_ray(
    recipe: Recipe,
    images: list[Path],
    out: Path,
    workers: dict[str, Any],
    shard_size: int,
    overwrite: bool,
    printed: Output,
) -> None:
    from cae_fast.ray_jobs.explain import Workers, explain_in_shards

    with printed.progress("explaining shards") as moved:
        result = explain_in_shards(
            recipe,
            images,
            out,
            shard_size=shard_size,
            workers=Workers(**{key: said for key, said in workers.items() if said is not None}),
            overwrite=overwrite,
            on_progress=moved,
        )
    said = ", ".join(f"{count} {status}" for status, count in result.totals.items())
    now = result.shards - result.shards_before
    printed.line(f"{result.images} images: {said}")
    printed.line(f"{out / 'shards'}: {result.shards} shards, {now} of them explained now")
    printed.result(
        {
            "shards": str(out / "shards"),
            "images": result.images,
            "shards_total": result.shards,
            "shards_before": result.shards_before,
            "totals": result.totals,
        }
    )


def refuse_options(given: dict[str, Any], *, with_ray: bool) -> None:
    """Refuses options that say nothing here.

    Raises:
        CAEError: One was given.
    """
    from cae_fast.errors import CAEError

    for name, value in given.items():
        if value is not None:
            raise CAEError(f"{name} is not for --ray" if with_ray else f"{name} needs --ray")


def _absolute(classifier: str) -> str:
    """A classifier's file by a name that holds in other processes; an object's name as it is."""
    return str(Path(classifier).absolute()) if Path(classifier).exists() else classifier


def _class_names(model: Path) -> Sequence[str]:
    from cae_fast.model import CAE

    return CAE.load(model).config.class_names or ()


def _class_of(target: str | None, class_names: Sequence[str]) -> str | int | None:
    """What `--target` says: a name where there is one of that spelling, else an index."""
    if target is None or target in class_names or not target.isdecimal():
        return target
    return int(target)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    flip = "" if row["t_flip"] is None else f"{row['t_flip']:.3f}"
    names = (row["name"], row["status"], row["source_class"], row["target_class"])
    return (*map(str, names), flip, str(row["evaluations"]))
