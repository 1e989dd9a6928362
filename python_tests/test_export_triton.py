# SPDX-License-Identifier: Apache-2.0
"""`cae-fast export`, and the repository it writes for Triton, read by Triton's own definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_workspace import Workspace, cae_fast, make_workspace

import cae_fast as cf
from cae_fast.engine_files import Manifest, write_engine

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def parsed(path: Path) -> Any:
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(), config.ModelConfig())


def test_export_verb(tmp_path: Path, workspace: Workspace) -> None:
    out = tmp_path / "new" / "d.onnx"
    done = cae_fast("export", str(workspace.model), "--out", str(out), "--phases", "--json")
    assert done.code == 0, done.err
    assert done.json["part"] == "decoder"
    assert 0 < done.json["relative_error"]["images"] < 1e-5
    assert onnxruntime.InferenceSession(str(out)).get_outputs()[0].name == "images"
    files = [str(workspace.model), "--classifier", str(workspace.classifier)]
    done = cae_fast("export", *files, "--out", str(tmp_path / "c.onnx"), "--precision", "fp16")
    assert done.code == 0
    assert "decoder-classifier" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--out FILE.onnx or --triton DIR"),
        (["--out", "d.bin"], "wanted a name that ends in .onnx"),
        (["--out", "d.onnx", "--triton", "t"], "one of them"),
        (["--out", "d.onnx", "--part", "critic"], "part must be one of"),
        (["--out", "d.onnx", "--precision", "bf16"], "precision must be one of"),
        (["--out", "d.onnx", "--classifier", "absent.onnx"], "absent.onnx"),
        (["--triton", "t", "--max-batch", "0"], "max_batch"),
        (["--triton", "t", "--engine", "absent.engine"], "no such engine file"),
    ],
)
def test_export_refuses(
    tmp_path: Path,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cae_fast("export", str(workspace.model), *options)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"garbage" * 40, None])
def test_export_refuses_damaged_classifiers(
    tmp_path: Path, workspace: Workspace, content: bytes | None
) -> None:
    damaged = tmp_path / "c.onnx"
    damaged.write_bytes(workspace.classifier.read_bytes()[:-9] if content is None else content)
    out = str(tmp_path / "d.onnx")
    done = cae_fast("export", str(workspace.model), "--classifier", str(damaged), "--out", out)
    assert done.code == 2
    assert "c.onnx" in done.err
    assert list(tmp_path.iterdir()) == [damaged]


def test_triton_repository(tmp_path: Path, workspace: Workspace) -> None:
    """Folders, versions, and configurations that say what the networks take and give."""
    folder = tmp_path / "models"
    files = [str(workspace.model), "--classifier", str(workspace.classifier)]
    done = cae_fast("export", *files, "--triton", str(folder), "--max-batch", "8", "--json")
    assert done.code == 0, done.err
    names = ["decoder", "decoder_classifier", "encoder"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert set(done.json["models"].values()) == {"onnxruntime_onnx"}
    for name in names:
        config = parsed(folder / name / "config.pbtxt")
        assert (config.name, config.platform) == (name, "onnxruntime_onnx")
        assert config.max_batch_size == 8
        session = onnxruntime.InferenceSession(str(folder / name / "1" / "model.onnx"))
        for said, has in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            assert [one.name for one in said] == [one.name for one in has]
            for one, value in zip(said, has, strict=True):
                shape = list(one.reshape.shape) if one.HasField("reshape") else list(one.dims)
                assert ["batch", *shape] == value.shape
    again = cae_fast("export", *files, "--triton", str(folder))
    assert again.code == 2
    assert "--overwrite" in again.err
    assert cae_fast("export", *files, "--triton", str(folder), "--overwrite").code == 0


def test_triton_takes_engines_of_its_own_flavour_only(tmp_path: Path, workspace: Workspace) -> None:
    model = cf.CAE.load(workspace.model)
    fields: dict[str, Any] = {
        "part": "encoder",
        "version": "11.0",
        "gpus": ("sm90",),
        "precision": "fp16",
        "phases": False,
        "max_batch": 4,
        "model_sha256": model.sha256,
        "classifier_sha256": None,
        "class_names": model.config.class_names,
        "inputs": {"images": ["batch", 1, 16, 16]},
        "outputs": {"individual": ["batch", 16, 4, 4], "class_code": ["batch", 4]},
    }
    plan = np.arange(99, dtype=np.uint8).tobytes()
    write_engine(tmp_path / "a.engine", plan, Manifest(flavour="tensorrt_rtx", **fields))
    write_engine(tmp_path / "b.engine", plan, Manifest(flavour="tensorrt", **fields))
    command = ["export", str(workspace.model), "--triton", str(tmp_path / "models"), "--engine"]
    refused = cae_fast(*command, str(tmp_path / "a.engine"))
    assert refused.code == 2
    assert "which Triton cannot load" in refused.err
    assert cae_fast(*command, str(tmp_path / "b.engine")).code == 0
    config = parsed(tmp_path / "models" / "encoder" / "config.pbtxt")
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 4)
    assert (tmp_path / "models" / "encoder" / "1" / "model.plan").read_bytes() == plan


def test_triton_takes_engines_of_the_given_classifier_only(
    tmp_path: Path, workspace: Workspace
) -> None:
    model, classifier = cf.CAE.load(workspace.model), cf.Classifier.load(workspace.classifier)
    names = tuple(model.config.class_names)
    plan, path = b"plan" * 9, tmp_path / "c.engine"
    command = ["export", str(workspace.model), "--classifier", str(workspace.classifier)]
    command += ["--engine", str(path), "--triton", str(tmp_path / "models")]
    for sha256, said, words in (
        ("b" * 64, names, "built from another classifier"),
        (None, names, "built from another classifier"),
        (classifier.sha256, names[::-1], "its classes are"),
        (classifier.sha256, names, None),
    ):
        manifest = Manifest(
            part="decoder-classifier",
            flavour="tensorrt",
            version="11.0",
            gpus=("sm90",),
            precision="fp16",
            phases=False,
            max_batch=4,
            model_sha256=model.sha256,
            classifier_sha256=sha256,
            class_names=said,
            inputs={"class_code": ["batch", 4]},
            outputs={"logits": ["batch", len(names)]},
        )
        write_engine(path, plan, manifest)
        done = cae_fast(*command)
        assert done.code == (0 if words is None else 2), done.err
        assert (words or "") in done.err
        assert (tmp_path / "models").exists() == (words is None)
    assert (tmp_path / "models" / "decoder_classifier" / "1" / "model.plan").read_bytes() == plan
