# SPDX-License-Identifier: Apache-2.0
"""Classifiers as part of an export: the same logits, or a reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_workspace import write_linear_onnx

import cae_fast as cf
from cae_fast.export import build_onnx, serialized
from cae_fast.testing import random_images, relative_error, toy_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

LABELS = ("a", "b", "c")


class Net(torch.nn.Module):
    """Two layers."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv = torch.nn.Conv2d(channels, 4, 3)
        self.head = torch.nn.Linear(4, outputs)

    def forward(self, images: Any) -> Any:
        return self.head(torch.relu(self.conv(images)).mean(dim=(2, 3)))


def run(model: Any, feed: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(serialized(model), sess_options=options).run(None, feed)


@pytest.mark.parametrize(
    ("channels", "net", "options"),
    [
        (1, (1, 3), {"mean": 0.4, "std": 0.3}),
        (1, (3, 3), {"channels": 3, "size": (24, 20), "mean": [0.4, 0.5, 0.6], "std": 0.2}),
        (3, (1, 3), {"channels": 1, "size": 12}),
    ],
    ids=["normalised", "grey to RGB, resized", "RGB to grey, resized"],
)
def test_all_steps_of_a_module(
    channels: int, net: tuple[int, int], options: dict[str, Any]
) -> None:
    model = toy_model(in_channels=channels)
    classifier = cf.Classifier(Net(*net), **options)
    images = random_images(model.config, 4)
    (logits,) = run(build_onnx(model, "classifier", classifier=classifier), {"images": images})
    assert relative_error(logits, classifier(images)) < 1e-5


@pytest.mark.parametrize("outputs", ["sigmoid", "probs"])
def test_one_output(outputs: str) -> None:
    model = toy_model(num_classes=2)
    network = torch.nn.Sequential(Net(1, 1), torch.nn.Sigmoid())
    classifier = cf.Classifier(network, outputs=outputs)
    images = random_images(model.config, 4)
    (logits,) = run(build_onnx(model, "classifier", classifier=classifier), {"images": images})
    assert relative_error(logits, classifier(images)) < 1e-5


def test_onnx_classifier_behind_the_decoder(tmp_path: Path) -> None:
    """An older opset is brought along; images and logits come out."""
    model = toy_model(class_names=LABELS)
    write_linear_onnx(tmp_path / "c.onnx", model, LABELS)
    classifier = cf.Classifier.load(tmp_path / "c.onnx")
    built = build_onnx(model, "decoder-classifier", classifier=classifier, precision="fp16")
    explainer = cf.Explainer(model, classifier, backend="cpu")
    codes = explainer.encode(random_images(model.config, 3))
    feed = {
        "individual": codes.individual,
        "class_code": codes.class_code,
        "exemplar_code": codes.class_code[::-1].copy(),
        "t": np.array([0, 0.5, 1], np.float32),
    }
    assert [value.name for value in built.graph.output] == ["images", "logits"]
    images, logits = run(built, feed)
    assert relative_error(logits, classifier(images)) < 1e-6
    weight = feed["t"][:, None]
    mixed = (1 - weight) * codes.class_code + weight * feed["exemplar_code"]
    assert relative_error(images, explainer.decode(codes.individual, mixed)) < 3e-3


def test_pt2_classifier(tmp_path: Path) -> None:
    program = torch.export.export(
        Net(1, 3).eval(),
        (torch.zeros(2, 1, 16, 16),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
    )
    torch.export.save(program, tmp_path / "c.pt2")
    classifier = cf.Classifier.load(tmp_path / "c.pt2")
    model = toy_model()
    images = random_images(model.config, 5)
    (logits,) = run(build_onnx(model, "classifier", classifier=classifier), {"images": images})
    assert relative_error(logits, classifier(images)) < 1e-5


class Eigenvalues(torch.nn.Module):
    def forward(self, images: Any) -> Any:
        return torch.linalg.eigvals(images[:, 0]).real[:, :3]


def test_operator_without_counterpart_is_named() -> None:
    with pytest.raises(cf.ClassifierError, match=r"operator aten\.linalg_eig .*--part decoder"):
        build_onnx(toy_model(), "classifier", classifier=cf.Classifier(Eigenvalues()))


def test_function_cannot_be_exported() -> None:
    classifier = cf.Classifier(lambda images: images, name="mine")
    with pytest.raises(cf.ClassifierError, match=r"mine: a Python function.*--part decoder"):
        build_onnx(toy_model(), "decoder-classifier", classifier=classifier)


def changed(tmp_path: Path, change: Any) -> cf.Classifier:
    """A linear ONNX classifier after a change of its protocol buffer."""
    write_linear_onnx(tmp_path / "c.onnx", toy_model(), ("0", "1", "2"))
    loaded = onnx.load(str(tmp_path / "c.onnx"))
    change(loaded)
    classifier = cf.Classifier.load(tmp_path / "c.onnx")  # as it was, so that it loads
    onnx.save(loaded, str(tmp_path / "c.onnx"))
    return classifier


def later_opset(model: Any) -> None:
    model.opset_import[0].version = 25


def fixed_batch(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def two_inputs(model: Any) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[1].name = "more"


def unknown_operator(model: Any) -> None:
    model.graph.node[0].op_type = "Flatter"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (later_opset, "opset 25, expected at most 22: export it with opset_version=18"),
        (fixed_batch, "batch is fixed at 1"),
        (two_inputs, "2 inputs and 1 outputs, expected one input"),
        (unknown_operator, "Flatter"),
    ],
)
def test_networks_that_cannot_be_joined(tmp_path: Path, change: Any, message: str) -> None:
    classifier = changed(tmp_path, change)
    with pytest.raises(cf.ClassifierError, match=message):
        build_onnx(toy_model(), "classifier", classifier=classifier)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "c.onnx", toy_model(), LABELS)
    classifier = cf.Classifier.load(tmp_path / "c.onnx")
    with pytest.raises(cf.ClassifierError, match="classifier"):
        build_onnx(toy_model(class_names=("x", "y", "z")), "classifier", classifier=classifier)
    with pytest.raises(cf.ClassifierError, match="3 logits per image, the model has 2 classes"):
        build_onnx(toy_model(num_classes=2), "classifier", classifier=cf.Classifier(Net(1, 3)))


def test_data_outside_the_folder_is_refused_at_export_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    folder = tmp_path / "in"

    def outside(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")

    classifier = changed(folder, outside)
    with pytest.raises(cf.ClassifierError, match="outside the model's folder"):
        build_onnx(toy_model(), "classifier", classifier=classifier)
