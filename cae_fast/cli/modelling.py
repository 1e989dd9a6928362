# SPDX-License-Identifier: Apache-2.0
"""`cae-fast train`, `train-classifier`, `import-checkpoint` and `encode`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cae_fast.cli.output import AsJson, Output, Quiet, output_file
from cae_fast.files import made_parents
from cae_fast.training.options import default_by_size

_IGNORED_PRINTED = 3

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="Folder of images: DIR/{train,test}/{class}/* or DIR/{class}/*."
    ),
]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda" or "cuda:1".')]


def train(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    image_size: Annotated[int, typer.Option(help="Side of the square images.")] = 128,
    in_channels: Annotated[
        int | None, typer.Option(help="Image channels; by default as the images have.")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(help=f"Width of the networks; by default {default_by_size('channels')}."),
    ] = None,
    num_blocks: Annotated[
        int | None,
        typer.Option(help=f"Residual blocks; by default {default_by_size('num_blocks')}."),
    ] = None,
    code_dim: Annotated[int, typer.Option(help="Length of the class code.")] = 8,
    steps: Annotated[
        int | None, typer.Option(help=f"Training steps; by default {default_by_size('steps')}.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Image pairs per step.")] = 4,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help=f"Rate of Adam at the start; by default {default_by_size('learning_rate')}."
        ),
    ] = None,
    schedule: Annotated[str, typer.Option(help="cosine, halving or constant.")] = "cosine",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    labels: Annotated[
        str, typer.Option(help='"folder", or "classifier": explain what --classifier sees.')
    ] = "folder",
    classifier: Annotated[
        str | None, typer.Option(help="The classifier to be explained; measures the promises.")
    ] = None,
    critic: Annotated[
        Path | None,
        typer.Option(
            help="A .pt2 classifier that guides the decoder, other than the one to be explained; "
            "trained first when absent, left out with none."
        ),
    ] = None,
    num_critics: Annotated[
        int, typer.Option(help="Critics trained first, without --critic; each step asks one.")
    ] = 3,
    warmup_steps: Annotated[
        int,
        typer.Option(
            help="Steps in which the class encoder is trained alone first; in the run it then "
            "learns at a tenth of the rate."
        ),
    ] = 1000,
    augment: Annotated[str, typer.Option(help="none, flip, dihedral or strong.")] = "flip",
    validation_fraction: Annotated[float, typer.Option(help="Share held out, by group.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of weights, pairs, mirroring and the split.")] = 0,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start anew: remove an earlier run's own files in RUN."),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a CAE on class folders; RUN/model.safetensors at the end. Several GPUs by torchrun."""
    given = dict(locals())
    from cae_fast.training import TrainOptions

    options = TrainOptions(**_fields(TrainOptions, given) | {"quiet": quiet or as_json})
    # torch loads with this name: wrong options are refused before that.
    from cae_fast.training import train as run

    model = Path(run(options))
    if int(os.environ.get("RANK", "0")) > 0:
        return
    printed = Output(quiet=quiet, as_json=as_json)
    printed.result({"model": str(model), "run": str(out), "steps": options.steps})


def train_classifier(
    data: Data,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="FILE.pt2 or FILE.onnx; both are written.")
    ],
    image_size: Annotated[int | None, typer.Option(help="Side; by default as the images.")] = None,
    in_channels: Annotated[
        int | None, typer.Option(help="Channels; by default as the images.")
    ] = None,
    width: Annotated[int, typer.Option(help="Channels of the first layers.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over the images, at most.")] = 60,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Rate of AdamW at the start.")] = 2e-3,
    augment: Annotated[str, typer.Option(help="none, flip, dihedral or strong.")] = "flip",
    noise: Annotated[
        float, typer.Option(help="Most noise added to images (standard deviation; range 2).")
    ] = 0.0,
    patience: Annotated[int, typer.Option(help="Epochs without a better result, at most.")] = 20,
    seed: Annotated[int, typer.Option(help="Of weights, order and the split.")] = 0,
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE.pt2 and FILE.onnx.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a plain baseline classifier to explain, when there is none; writes .pt2 and .onnx."""
    given = dict(locals())
    output_file(out, (".pt2", ".onnx"))
    from cae_fast.training import ClassifierOptions

    options = ClassifierOptions(**_fields(ClassifierOptions, given) | {"quiet": quiet or as_json})
    from cae_fast.training import train_classifier as run

    files = run(options)
    printed = Output(quiet=quiet, as_json=as_json)
    for split, measured in files.accuracy.items():
        share, count = measured["accuracy"], measured["images"]
        printed.line(f"{split}: {share:.1%} of {count} images right")
    printed.line(f"wrote {files.pt2} and {files.onnx}")
    printed.result(
        {
            "pt2": str(files.pt2),
            "onnx": str(files.onnx),
            "accuracy": files.accuracy,
            "class_names": list(files.class_names),
        }
    )


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="GEN.pt", help="Generator checkpoint.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="model.safetensors to write.")],
    image_size: Annotated[int, typer.Option(help="Side of the images it was trained on.")] = 256,
    class_names: Annotated[
        str | None, typer.Option(help="Names of the classes, in order, with commas between.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Convert a generator checkpoint of the authors' public code; pickled code is never run."""
    from cae_fast.model import CAE

    output_file(out, (".safetensors",))
    names = tuple(name.strip() for name in class_names.split(",")) if class_names else ()
    model = CAE.from_authors(checkpoint, image_size=image_size, class_names=names)
    with made_parents(out):
        model.save(out)
    printed = Output(quiet=quiet, as_json=as_json)
    printed.line(f"{out}: sha256 {model.sha256}")
    printed.result({"model": str(out), "sha256": model.sha256, "config": model.config.to_dict()})


def encode(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="model.safetensors.")],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="BANK", help="bank.parquet or bank.csv to write.")],
    classifier: Annotated[
        str | None, typer.Option(help="Classifier asked for the predicted classes.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, test, val or all.")] = "train",
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Keep a small picture of each image.")
    ] = False,
    backend: Annotated[str, typer.Option(help="auto, cpu or torch.")] = "auto",
    max_batch: Annotated[int | None, typer.Option(help="Images in memory at a time.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the code bank: name, group, class code, label and predicted class of each image."""
    from cae_fast.bank import CodeBank
    from cae_fast.bank_files import check_bank_name
    from cae_fast.classifier import Classifier
    from cae_fast.data import ImageDataset
    from cae_fast.model import CAE

    output_file(out, (".parquet", ".csv"))
    check_bank_name(out)
    printed = Output(quiet=quiet, as_json=as_json)
    dataset = ImageDataset.from_folder(data, split=None if split == "all" else split)
    with printed.progress("encoding") as moved:
        bank = CodeBank.build(
            CAE.load(model),
            dataset,
            classifier=None if classifier is None else Classifier.load(classifier),
            thumbnails=thumbnails,
            backend=backend,
            batch=max_batch,
            on_error="collect",
            on_progress=moved,
        )
    with made_parents(out):
        bank.save(out)
    for name, reason in bank.skipped.items():
        printed.warn(f"rejected {name}: {reason}")
    if dataset.ignored:
        shown = "; ".join(dataset.ignored[:_IGNORED_PRINTED])
        more = "; ..." if len(dataset.ignored) > _IGNORED_PRINTED else ""
        printed.line(f"passed over {len(dataset.ignored)} in {data}: {shown}{more}")
    printed.line(f"{out}: {len(bank)} images, {bank.code_dim} numbers each")
    if classifier is not None:
        usable = int(bank.usable.sum())
        printed.line(f"{usable} of them classified as labelled, and so usable as exemplars")
    printed.result(
        {
            "bank": str(out),
            "images": len(bank),
            "code_dim": bank.code_dim,
            "usable": int(bank.usable.sum()),
            "class_names": list(bank.class_names),
            "sha256": bank.sha256,
            "model_sha256": bank.model_sha256,
            "rejected": bank.skipped,
            "ignored": list(dataset.ignored),
        }
    )


def _fields(options: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a verb that are options of its function."""
    names = {field.name for field in dataclasses.fields(options)}
    return {name: value for name, value in given.items() if name in names}
