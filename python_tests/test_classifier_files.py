# SPDX-License-Identifier: Apache-2.0
"""Classifiers from files: ONNX, torch.export, TorchScript; damaged, hostile and foreign ones."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch

import cae_fast as cf

IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32)
METADATA = {
    "labels": ["a", "b"],
    "size": 8,
    "channels": 1,
    "outputs": "logits",
    "accuracy": {"test": 0.9},
}
WEIGHT = np.random.default_rng(1).standard_normal((64, 2)).astype(np.float32)


def write_onnx(
    path: Path,
    *,
    batch: int | str = "N",
    shape: tuple[Any, ...] = (1, 8, 8),
    metadata: Any = None,
    external: str | None = None,
) -> Path:
    """A linear classifier as ONNX."""
    weight = onnx.numpy_helper.from_array(WEIGHT, "weight")
    if external is not None:
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=external)
        weight.external_data.add(key="length", value=str(WEIGHT.nbytes))
    graph = oh.make_graph(
        [
            oh.make_node("Flatten", ["images"], ["flat"]),
            oh.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "linear",
        [oh.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [batch, *shape])],
        [oh.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, 2])],
        [weight],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    if metadata is not None:
        model.metadata_props.add(key="cae_fast.classifier", value=metadata)
    path.write_bytes(model.SerializeToString())
    return path


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(WEIGHT.copy()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight


def write_exported(path: Path) -> Path:
    """The same classifier as a torch.export archive."""
    dynamic = ({0: torch.export.Dim("n", min=1, max=4096)},)
    program = torch.export.export(Linear(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=dynamic)
    torch.export.save(program, path, extra_files={"cae_fast.classifier.json": json.dumps(METADATA)})
    return path


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """Copies a zip archive; `change(name, data)` gives new bytes, or None to leave a record out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def expected() -> Any:
    return IMAGES.reshape(5, -1) @ WEIGHT


def test_onnx_with_metadata(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "c.onnx", metadata=json.dumps(METADATA))
    classifier = cf.Classifier.load(path)
    np.testing.assert_allclose(classifier(IMAGES), expected(), rtol=1e-5, atol=1e-5)
    assert classifier.labels == ("a", "b")
    assert classifier.name == "c.onnx"
    assert classifier.metadata == {"accuracy": {"test": 0.9}}
    assert classifier.sha256 is not None
    assert len(classifier.sha256) == 64


def test_onnx_without_metadata_takes_its_declared_input(tmp_path: Path) -> None:
    classifier = cf.Classifier.load(write_onnx(tmp_path / "c.onnx"), labels=["x", "y"])
    assert classifier.labels == ("x", "y")
    colour = np.repeat(np.repeat(np.repeat(IMAGES, 3, 1), 2, 2), 2, 3)  # RGB, twice the size
    assert classifier(colour).shape == (5, 2)


def test_onnx_of_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    classifier = cf.Classifier.load(write_onnx(tmp_path / "c.onnx", batch=3))
    np.testing.assert_allclose(classifier(IMAGES), expected(), rtol=1e-5, atol=1e-5)


def test_onnx_external_data_beside_it(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    path = write_onnx(tmp_path / "c.onnx", external="weights.bin")
    first = cf.Classifier.load(path)
    np.testing.assert_allclose(first(IMAGES), expected(), rtol=1e-5, atol=1e-5)
    (tmp_path / "weights.bin").write_bytes((WEIGHT + 1).tobytes())
    assert cf.Classifier.load(path).sha256 != first.sha256


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "link.bin"]
)
def test_onnx_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(cf.ClassifierError, match="outside the model's folder: refused"):
        cf.Classifier.load(write_onnx(folder / "c.onnx", external=location))


def test_onnx_external_data_in_a_subgraph_is_seen(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../x")
    inner = oh.make_graph([oh.make_node("Constant", [], ["t"], value=tensor)], "inner", [], [])
    node = oh.make_node("If", ["c"], ["t"], then_branch=inner, else_branch=inner)
    graph = oh.make_graph([node], "outer", [], [])
    path = tmp_path / "c.onnx"
    path.write_bytes(oh.make_model(graph).SerializeToString())
    with pytest.raises(cf.ClassifierError, match="outside the model's folder"):
        cf.Classifier.load(path)


def test_onnx_external_data_missing(tmp_path: Path) -> None:
    (tmp_path / "circle.bin").symlink_to("circle.bin")
    for name in ("absent.bin", "circle.bin"):
        with pytest.raises(cf.ClassifierError, match=rf"'{name}' is missing"):
            cf.Classifier.load(write_onnx(tmp_path / "c.onnx", external=name))


def test_onnx_damaged(tmp_path: Path) -> None:
    data = write_onnx(tmp_path / "good.onnx").read_bytes()
    bad = tmp_path / "bad.onnx"
    generator = np.random.default_rng(0)
    cases = [data[:n] for n in (0, 1, 7, 50, len(data) // 2, len(data) - 1)]
    cases += [generator.bytes(200), b"\x89PNG\r\n\x1a\n" + bytes(100), b"{}", bytes(64)]
    for case in cases:
        bad.write_bytes(case)
        with pytest.raises(cf.ClassifierError, match=r"bad\.onnx"):
            cf.Classifier.load(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (8, 8, 1)}, "expected .N, C, H, W."),
        ({"shape": (64,)}, "expected .N, C, H, W."),
        ({"metadata": "{"}, "not a JSON object"),
        ({"metadata": "[" * 100_000}, "not a JSON object"),
        ({"metadata": '["a"]'}, "not a JSON object"),
        ({"metadata": '{"labels": ["a"]}'}, "labels"),
        ({"metadata": '{"outputs": "x"}'}, "outputs"),
    ],
)
def test_onnx_that_does_not_fit(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(cf.ClassifierError, match=message):
        cf.Classifier.load(write_onnx(tmp_path / "c.onnx", **options))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_onnx_after_a_fork(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "c.onnx")
    code = f"""
import os, sys, numpy as np, cae_fast as cf
classifier = cf.Classifier.load({str(path)!r})
images = np.ones((2, 1, 8, 8), np.float32)
before = classifier(images)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(classifier(images), before) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_exported(tmp_path: Path) -> None:
    classifier = cf.Classifier.load(write_exported(tmp_path / "c.pt2"))
    np.testing.assert_allclose(classifier(IMAGES), expected(), rtol=1e-5, atol=1e-5)
    assert classifier.labels == ("a", "b")
    assert classifier.metadata == {"accuracy": {"test": 0.9}}


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def test_exported_with_pickles_or_code_is_refused_unread(tmp_path: Path) -> None:
    good = write_exported(tmp_path / "good.pt2")
    marker = tmp_path / "marker"
    buffer = io.BytesIO()
    torch.save(Payload(marker), buffer)

    def replaced(ending: str, data: Any) -> Any:
        return lambda name, old: (
            (data(old) if callable(data) else data) if name.endswith(ending) else old
        )

    def with_target(old: bytes) -> bytes:
        return old.replace(b"torch.ops.aten.flatten.using_ints", b"torch.hub.os.system")

    def with_expression(old: bytes) -> bytes:
        return old.replace(b'"expr_str": "', b'"expr_str": "__import__(chr(111)+chr(115))+', 1)

    cases = {
        "more than tensors": replaced("data/sample_inputs/model.pt", buffer.getvalue()),
        "pickled tensors": replaced(
            "weights_config.json",
            lambda old: old.replace(b'"use_pickle": false', b'"use_pickle": true'),
        ),
        "which is no operator": replaced("models/model.json", with_target),
        "holds the expression": replaced("models/model.json", with_expression),
        "not valid JSON": replaced("models/model.json", b"{"),
        "not a torch.export archive of this format": lambda name, old: (
            None if name.endswith("models/model.json") else old
        ),
    }
    for message, change in cases.items():
        bad = rewrite(good, tmp_path / "bad.pt2", change)
        with zipfile.ZipFile(good) as a, zipfile.ZipFile(bad) as b:
            assert any(n not in b.namelist() or a.read(n) != b.read(n) for n in a.namelist())
        with pytest.raises(cf.ClassifierError, match=message):
            cf.Classifier.load(bad)
    for name in (
        "data/weights/model.pt",
        "data/constants/custom_obj_0",
        "data/aotinductor/model/a.so",
    ):
        bad = rewrite(good, tmp_path / "bad.pt2", lambda _, old: old)
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr(f"good/{name}", buffer.getvalue())
        with pytest.raises(cf.ClassifierError, match="refused"):
            cf.Classifier.load(bad)
    assert not marker.exists()


def test_exported_damaged(tmp_path: Path) -> None:
    data = write_exported(tmp_path / "good.pt2").read_bytes()
    bad = tmp_path / "bad.pt2"
    cases = [b"", b"garbage", data[:100], data[: len(data) // 2], data[:-30]]
    entry = data.rindex(b"PK\1\2", 0, data.rindex(b"models/model.json"))  # of the directory
    for at, value in (
        (entry + 8, 1),  # said to be encrypted
        (entry + 10, 8),  # said to be deflated
        (entry + 46, 0xFF),  # a name that is no UTF-8, which the next byte says it is
        (entry + 42 + 3, 0x7F),  # a record far behind the end
    ):
        broken = bytearray(data)
        broken[at] = value
        if at == entry + 46:
            broken[entry + 9] |= 8
        cases.append(bytes(broken))
    for case in cases:
        bad.write_bytes(case)
        with pytest.raises(cf.ClassifierError, match=r"bad\.pt2"):
            cf.Classifier.load(bad)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.jit.save(
        torch.jit.trace(Linear(), torch.zeros(2, 1, 8, 8)),
        str(path),
        _extra_files={"cae_fast.classifier.json": json.dumps(METADATA)},
    )
    classifier = cf.Classifier.load(path)
    np.testing.assert_allclose(classifier(IMAGES), expected(), rtol=1e-5, atol=1e-5)
    assert classifier.labels == ("a", "b")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "c.pt"
    torch.save(Payload(marker), path)
    with pytest.raises(cf.ClassifierError, match="pickled modules are never loaded"):
        cf.Classifier.load(path)
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(cf.ClassifierError, match="pickled modules are never loaded"):
        cf.Classifier.load(path)
    torch.save(Linear(), path)
    with pytest.raises(cf.ClassifierError, match="pickled modules are never loaded"):
        cf.Classifier.load(path)
    # The last record of a zip archive, and none of what it points to.
    path.write_bytes(bytes(200) + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 3, 3, 100, 100, 0))
    assert zipfile.is_zipfile(path)
    with pytest.raises(cf.ClassifierError, match="pickled modules are never loaded"):
        cf.Classifier.load(path)
    # A pickle dressed as TorchScript: torch's own reader of it knows no Python objects.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("c/constants.pkl", pickle.dumps(Payload(marker)))
        archive.writestr("c/data.pkl", pickle.dumps(Payload(marker)))
        archive.writestr("c/code/x.py", "")
        archive.writestr("c/version", "3")
    with pytest.raises(cf.ClassifierError, match=r"torch\.jit cannot load it"):
        cf.Classifier.load(path)
    assert not marker.exists()


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(cf.ClassifierError, match=r"absent\.onnx: no such file"):
        cf.Classifier.load(tmp_path / "absent.onnx")
    (tmp_path / "c.h5").write_bytes(b"x")
    with pytest.raises(cf.ClassifierError, match=r"expected \.onnx, \.pt2"):
        cf.Classifier.load(tmp_path / "c.h5")
    (tmp_path / "c.engine").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"c\.engine: has no manifest.*refused unread"):
        cf.Classifier.load(tmp_path / "c.engine")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(cf.ClassifierError, match="no such file"):
        cf.Classifier.load(tmp_path / "folder.onnx")


def test_missing_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "c.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(cf.MissingExtra, match=r"cae_fast\[onnx\]"):
        cf.Classifier.load(path)
