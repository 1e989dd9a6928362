# SPDX-License-Identifier: Apache-2.0
"""A tiny model, classifier and data set as files, and a way to run the command line on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from cae_fast import CAE
from cae_fast.bank import CodeBank
from cae_fast.classifier import Classifier
from cae_fast.cli.app import app
from cae_fast.data import ImageDataset
from cae_fast.images import to_uint8
from cae_fast.testing import random_images, toy_model

# Names that a terminal or a page could mistake for its own markup.
CLASS_NAMES = ("[bold]round[/bold]", "<b>oval<!--", "[/red] [link")


@dataclass(frozen=True)
class Done:
    """What a run of the command line left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Workspace:
    """Files that belong together."""

    folder: Path
    model: Path
    classifier: Path
    data: Path
    bank: Path
    images: Path

    def explain(self, out: Path, *options: str, images: Path | None = None) -> list[str]:
        """Arguments of `cae-fast explain` that are right, and options."""
        shown = str(images or self.images)
        files = [str(self.model), str(self.classifier), shown, "--bank", str(self.bank)]
        return ["explain", *files, "--out", str(out), *options]


def cae_fast(*arguments: str) -> Done:
    """Run the command line in this process."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def make_workspace(folder: Path) -> Workspace:
    """Write all files of a workspace into a folder."""
    model = toy_model(class_names=CLASS_NAMES)
    model.save(folder / "model.safetensors")
    write_linear_onnx(folder / "classifier.onnx", model, CLASS_NAMES)
    classifier = Classifier.load(folder / "classifier.onnx")
    # Labels that the classifier agrees with, so that every class has exemplars.
    pool = random_images(model.config, 120, seed=3)
    labels = classifier(pool).argmax(axis=1)
    for label in range(len(CLASS_NAMES)):
        rows = np.flatnonzero(labels == label)[:6]
        assert len(rows) >= 2
        write_images(folder / "data" / "train" / f"class {label}", pool[rows])
    dataset = ImageDataset.from_folder(folder / "data", "train")
    named = ImageDataset(dataset.root, dataset.files, dataset.labels, CLASS_NAMES)
    CodeBank.build(model, named, classifier=classifier, thumbnails=True).save(folder / "bank.csv")
    write_images(folder / "images", random_images(model.config, 4, seed=9))
    return Workspace(
        folder,
        folder / "model.safetensors",
        folder / "classifier.onnx",
        folder / "data",
        folder / "bank.csv",
        folder / "images",
    )


def write_images(folder: Path, images: np.ndarray[Any, Any]) -> None:
    """Grey PNG files 0.png, 1.png, ... of images [N, 1, S, S]."""
    folder.mkdir(parents=True)
    for row, pixels in enumerate(to_uint8(images)):
        Image.fromarray(pixels[..., 0]).save(folder / f"{row}.png")


def write_linear_onnx(path: Path, model: CAE, labels: tuple[str, ...]) -> None:
    """A linear classifier with the metadata of this package."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    config = model.config
    pixels, classes = int(np.prod(config.image_shape)), config.num_classes
    weight = np.random.default_rng(5).normal(0, 4 / pixels**0.5, (pixels, classes))
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *config.image_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    written = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    said = {
        "labels": list(labels),
        "size": config.image_size,
        "channels": config.in_channels,
        "outputs": "logits",
    }
    helper.set_model_props(written, {"cae_fast.classifier": json.dumps(said)})
    onnx.save(written, path)
