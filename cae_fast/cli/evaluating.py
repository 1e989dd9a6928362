# SPDX-License-Identifier: Apache-2.0
"""`cae-fast evaluate`."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cae_fast.cli.explaining import SecondTry
from cae_fast.cli.output import AsJson, Output, Quiet

if TYPE_CHECKING:
    from cae_fast.data import ImageDataset

_PATHS = ("path", "reach", "exemplars", "k", "second_try")
_PRINTED = ("deletion", "insertion", "aopc", "pointing", "energy_inside", "mask_auc", "seconds")


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model.safetensors.")],
    classifier: Annotated[
        str,
        typer.Argument(metavar="CLASSIFIER", help=".pt2 (for gradient methods), .onnx, ..."),
    ],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of labelled images.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    bank: Annotated[
        Path | None, typer.Option(metavar="BANK", help="By default made of DATA's train split.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="all, or names with commas: cae, cae-mean-k, cae-weighted, cae-smooth, cae-edit, "
            "cae-evidence, gradcam, guided_backprop, integrated_gradients, smoothgrad, gradshap, "
            "occlusion, lime, kernelshap, uniform, gaussian."
        ),
    ] = "all",
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Masks by the images' paths; by default DATA's own."),
    ] = None,
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test",
    classes: Annotated[
        str | None, typer.Option(help="Only images of these classes, names with commas between.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most this many images, classes in turn.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="CLASS|any", help="By default the runner-up.")
    ] = None,
    path: Annotated[str, typer.Option(help="Kind of path.")] = "line",
    k: Annotated[
        int | None, typer.Option("--k", help="Nearest exemplars averaged; by default as explain.")
    ] = None,
    reach: Annotated[
        float | None, typer.Option(help="How far beyond them lines lead; by default as explain.")
    ] = None,
    second_try: SecondTry = True,
    mean_k: Annotated[
        int, typer.Option("--mean-k", help="Exemplars whose maps cae-mean-k averages, at most.")
    ] = 5,
    smooth_sigma: Annotated[
        float | None,
        typer.Option(help="Of cae-smooth's Gaussian, in pixels; by default side / 32."),
    ] = None,
    saliency_against: Annotated[
        str, typer.Option(help="reconstruction or image.")
    ] = "reconstruction",
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Also flip each image to every other class.")
    ] = False,
    sanity: Annotated[
        bool, typer.Option("--sanity/--no-sanity", help="Compare with a randomised classifier.")
    ] = True,
    samples: Annotated[int, typer.Option(help="Evaluations of LIME and KernelSHAP.")] = 500,
    draws: Annotated[int, typer.Option(help="Of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    backend: Annotated[str, typer.Option(help="auto, cpu, torch or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in DIR.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure explanations beside other methods on the same images and classifier."""
    from cae_fast.bank import CodeBank
    from cae_fast.class_names import agree
    from cae_fast.classifier import Classifier
    from cae_fast.cli.explaining import _class_of
    from cae_fast.data import ImageDataset
    from cae_fast.errors import CAEError
    from cae_fast.evaluation.masks import load_masks
    from cae_fast.evaluation.page import write_report
    from cae_fast.evaluation.result import Settings
    from cae_fast.evaluation.run import evaluate as measure
    from cae_fast.evaluation.truth import VERDICTS, verdicts
    from cae_fast.explainer import Explainer
    from cae_fast.files import check_output_directory
    from cae_fast.model import CAE

    check_output_directory(out, overwrite=overwrite)
    names = _method_names(methods)
    for option, value, least in (
        ("samples", samples, 10),
        ("draws", draws, 100),
        ("mean-k", mean_k, 1),
    ):
        if value < least:
            raise ValueError(f"--{option} must be at least {least}, got {value}")
    if smooth_sigma is not None and not 0 <= smooth_sigma < float("inf"):
        raise ValueError(f"--smooth-sigma must be at least 0, got {smooth_sigma}")
    printed = Output(quiet=quiet, as_json=as_json)
    start = time.perf_counter()
    asked = Classifier.load(classifier)
    network = CAE.load(model)
    dataset = ImageDataset.from_folder(data, split=None if split == "all" else split)
    agree({"model": network.config.class_names, "data": dataset.class_names}, error=CAEError)
    dataset = _limited(_of_classes(dataset, classes, split), limit)
    found_masks = load_masks(dataset, network.config.image_size, masks)
    if bank is not None:
        codes, known = CodeBank.load(bank), ImageDataset.from_folder(data)
    else:
        with printed.progress("encoding the train split") as moved:
            known = ImageDataset.from_folder(data, split="train")
            codes = CodeBank.build(
                network,
                known,
                classifier=asked,
                backend=backend,
                on_error="collect",
                on_progress=moved,
            )
    explainer = Explainer(network, asked, bank=codes, backend=backend)
    settings = Settings(
        methods=names,
        target=_class_of(target, explainer.class_names),
        explain={
            "path": path,
            "k": k,
            "reach": reach,
            "saliency_against": saliency_against,
            "second_try": second_try,
        },
        samples=samples,
        mean_k=mean_k,
        smooth_sigma=smooth_sigma,
        all_pairs=all_pairs,
        sanity=sanity,
        seed=seed,
    )
    result = measure(
        explainer,
        dataset,
        settings,
        masks=found_masks,
        classifier_path=Path(classifier) if Path(classifier).is_file() else None,
        bank_dataset=known,
        on_note=printed.warn,
        on_progress=lambda text: printed.line(f"{time.perf_counter() - start:7.1f} s  {text}"),
    )
    paths = result.explanation.meta["parameters"]
    about = {
        "command": shlex.join(["cae-fast", *sys.argv[1:]]),
        "model": f"{model.name} {network.sha256[:12]}",
        "classifier": f"{asked.name} {(asked.sha256 or 'without a hash')[:12]}",
        "data": f"{data.name}, split {split}, {len(dataset)} images"
        + (f" of {classes}" if classes else ""),
        "bank": f"{len(codes)} images",
        "paths": ", ".join(f"{name} {paths[name]}" for name in _PATHS),
        "seed": seed,
        "machine": _machine(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    rows = write_report(
        out,
        result,
        title=f"Evaluation: {data.name}",
        about=about,
        draws=draws,
        seed=seed,
        overwrite=overwrite,
    )
    for name, why in result.left_out.items():
        printed.warn(f"left out {name}: {why}")
    for name, verdict in verdicts(result, draws=draws, seed=seed).items():
        if verdict.said != "tells":
            printed.warn(f"{name}, asked about the masks: {VERDICTS[verdict.said]}")
    _print(printed, rows, result.notes, result.left_out, out, result.accuracy)


def _method_names(text: str) -> tuple[str, ...]:
    from cae_fast.evaluation.baselines import METHODS

    if text == "all":
        return METHODS
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(
            f"--methods: unknown {', '.join(unknown) or 'nothing'}; known are {', '.join(METHODS)}"
        )
    return names


def _of_classes(dataset: ImageDataset, text: str | None, split: str) -> ImageDataset:
    """The images of the classes named."""
    import numpy as np

    if text is None:
        return dataset
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in dataset.class_names]
    if unknown or not names:
        raise ValueError(
            f"--classes: unknown {', '.join(unknown) or 'nothing'}; known are "
            f"{', '.join(dataset.class_names)}"
        )
    wanted = [dataset.class_names.index(name) for name in names]
    rows = np.flatnonzero(np.isin(dataset.labels, wanted))
    if not len(rows):
        raise ValueError(f"--classes: split {split} has no image of {', '.join(names)}")
    return dataset.subset(rows)


def _limited(dataset: ImageDataset, limit: int | None) -> ImageDataset:
    """The first images of each class in turn, `limit` in all."""
    import numpy as np

    if limit is None or limit >= len(dataset):
        return dataset
    if limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    turn = np.zeros(len(dataset), dtype=int)
    for label in np.unique(dataset.labels):
        members = np.flatnonzero(dataset.labels == label)
        turn[members] = np.arange(len(members))
    return dataset.subset(np.sort(np.argsort(turn, kind="stable")[:limit]))


def _machine() -> str:
    import os

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x for x in info.read_text(encoding="utf-8").splitlines() if "model name" in x]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"{cpu}, {os.cpu_count()} cores" + (f", OMP_NUM_THREADS={threads}" if threads else "")


def _print(
    printed: Output,
    rows: list[dict[str, Any]],
    notes: list[str],
    left_out: dict[str, str],
    out: Path,
    accuracy: float,
) -> None:
    found = {(r["kind"], r["method"], r["measure"]): r["mean"] for r in rows}
    methods = list(dict.fromkeys(r["method"] for r in rows if r["kind"] == "map"))
    shown = [m for m in _PRINTED if any(("map", name, m) in found for name in methods)]

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    printed.table(
        ("method", *shown),
        [(name, *(cell(found.get(("map", name, m))) for m in shown)) for name in methods],
    )
    for measure in ("validity", "class_kept", "start_kept", "realism", "monotonicity", "decodes"):
        printed.line(f"{measure}: {cell(found.get(('counterfactual', 'cae', measure)))}")
    printed.line(str(out / "index.html"))
    printed.result(
        {
            "report": str(out / "index.html"),
            "balanced_accuracy": accuracy,
            "notes": notes,
            "left_out": left_out,
            "summary": rows,
        }
    )
