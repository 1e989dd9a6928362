# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder as ONNX: what ONNX Runtime computes, beside the specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cae_fast as cf
from cae_fast.export import METADATA_KEY, PARTS, build_onnx, export_onnx, serialized
from cae_fast.testing import TOLERANCE, random_images, relative_error, toy_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

CONFIGS: dict[str, dict[str, Any]] = {
    "16, grey": {},
    "20, RGB": {"image_size": 20, "in_channels": 3},
    "32, two blocks": {"image_size": 32, "num_blocks": 2, "channels": 8, "code_dim": 8},
}


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        serialized(model), sess_options=options, providers=["CPUExecutionProvider"]
    )


class Expected:
    """What the `torch` backend gives in float64 along paths between random codes."""

    def __init__(self, model: cf.CAE, count: int = 3) -> None:
        generator = np.random.default_rng(3)
        self.images = random_images(model.config, count, seed=2)
        network = model.module().double().eval()
        with torch.no_grad():
            individual, codes = network.encode(torch.from_numpy(self.images).double())
            self.individual, self.codes = individual.numpy(), codes.numpy()
            ends = self.codes + generator.normal(0, 1, self.codes.shape)
            self.ends = ends.astype(np.float32)
            self.t = generator.uniform(0, 1, count).astype(np.float32)
            self.t[:1] = 0
            start, weight = self.codes.astype(np.float32), self.t.astype(np.float64)[:, None]
            mixed = (1 - weight) * start + weight * self.ends
            known = individual.float().double()
            self.pictures = network.decode(known, torch.from_numpy(mixed)).numpy()
            self.starts = network.decode(known, torch.from_numpy(start).double()).numpy()

    def feed(self, t: Any = None) -> dict[str, Any]:
        return {
            "individual": self.individual.astype(np.float32),
            "class_code": self.codes.astype(np.float32),
            "exemplar_code": self.ends,
            "t": self.t if t is None else t,
        }


def check(model: cf.CAE, precision: str, phases: bool, tolerance: float) -> None:
    """Codes, images and differences of images within the table of agreement."""
    exact = Expected(model)
    encoder = session(build_onnx(model, "encoder", precision=precision))
    individual, codes = encoder.run(["individual", "class_code"], {"images": exact.images})
    assert relative_error(individual, exact.individual) < tolerance
    assert relative_error(codes, exact.codes) < tolerance
    decoder = session(build_onnx(model, "decoder", precision=precision, phases=phases))
    (pictures,) = decoder.run(["images"], exact.feed())
    assert relative_error(pictures, exact.pictures) < tolerance
    (starts,) = decoder.run(["images"], exact.feed(np.zeros_like(exact.t)))
    assert relative_error(starts, exact.starts) < tolerance
    off = (pictures - starts) - (exact.pictures - exact.starts)
    assert np.linalg.norm(off) / np.linalg.norm(exact.pictures) < tolerance


@pytest.mark.parametrize("phases", [False, True], ids=["as defined", "phases"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_float32_agrees_with_the_specification(config: dict[str, Any], phases: bool) -> None:
    check(toy_model(seed=11, **config), "fp32", phases, TOLERANCE["torch"])


@pytest.mark.parametrize("phases", [False, True], ids=["as defined", "phases"])
def test_half_precision_agrees_and_is_half_precision(phases: bool) -> None:
    """ONNX Runtime on the CPU rounds to halves between operators; sums inside are float32."""
    model = toy_model(seed=11, **CONFIGS["32, two blocks"])
    check(model, "fp16", phases, TOLERANCE["tensorrt-fp16"])
    graph = build_onnx(model, "decoder", precision="fp16", phases=phases).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {weights[node.input[1]] for node in graph.node if node.op_type == "Conv"}
    assert kinds == {onnx.TensorProto.FLOAT16}
    exact = Expected(model)
    halves = session(build_onnx(model, "decoder", precision="fp16", phases=phases))
    assert relative_error(halves.run(None, exact.feed())[0], exact.pictures) > 1e-5


def test_phases_need_fewer_products() -> None:
    def products(phases: bool) -> int:
        model = build_onnx(toy_model(image_size=32), "decoder", phases=phases)
        inferred = onnx.shape_inference.infer_shapes(model)
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in inferred.graph.value_info
        }
        weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        return sum(
            int(np.prod(weights[node.input[1]])) * int(np.prod(shapes[node.output[0]][2:]))
            for node in model.graph.node
            if node.op_type == "Conv"
        )

    assert products(True) < 0.75 * products(False)


@pytest.mark.shared
def test_onnx_gives_the_original_networks_values(shared_dir: Path) -> None:
    """The authors' network on the fixture's weights, 256 pixels, computed by it in float32."""
    from test_authors import fixture_state

    folder = shared_dir / "fixtures" / "authors_checkpoint"
    expected = np.load(folder / "expected.npz")
    names = cf.authors.authors_names(cf.CAEConfig())
    state = fixture_state(folder / "keys.csv", 1000)
    model = cf.CAE(cf.CAEConfig(), {ours: state[name].numpy() for ours, name in names.items()})
    images = expected["images"][:1].astype(np.float32)
    encoder = session(build_onnx(model, "encoder"))
    individual, code = encoder.run(["individual", "class_code"], {"images": images})
    flat = individual.reshape(1, -1)[:, expected["individual_index"]]
    assert relative_error(code, expected["class_code"][:1]) < TOLERANCE["torch"]
    assert relative_error(flat, expected["individual_values"][:1]) < 2e-5  # both are float32
    feed = {"individual": individual, "t": np.ones(1, np.float32)}
    pictures = {}
    for precision in ("fp32", "fp16"):
        decoder = session(build_onnx(model, "decoder", precision=precision, phases=True))
        codes = {"class_code": code, "exemplar_code": expected["codes"][1:2]}
        (drawn,) = decoder.run(["images"], feed | codes)
        pictures[precision] = drawn.reshape(1, -1)[:, expected["image_index"]]
    exact = expected["decoded_values"][1:2]
    assert relative_error(pictures["fp32"], exact) < 2e-5
    assert 1e-5 < relative_error(pictures["fp16"], exact) < TOLERANCE["tensorrt-fp16"]


def test_any_batch_and_no_dependence_on_it() -> None:
    model = toy_model()
    exact = Expected(model, count=5)
    decoder = session(build_onnx(model, "decoder"))
    whole = decoder.run(None, exact.feed())[0]
    for row in range(5):
        one = {name: value[row : row + 1] for name, value in exact.feed().items()}
        np.testing.assert_allclose(decoder.run(None, one)[0][0], whole[row], atol=2e-6)


def test_class_code_alone_at_the_start() -> None:
    """At t = 0 whatever the exemplar's code is makes no difference, to the bit."""
    model = toy_model()
    exact = Expected(model)
    decoder = session(build_onnx(model, "decoder"))
    zeros = np.zeros_like(exact.t)
    first = decoder.run(None, exact.feed(zeros))[0]
    second = decoder.run(None, exact.feed(zeros) | {"exemplar_code": -exact.ends})[0]
    np.testing.assert_array_equal(first, second)


def test_file_says_what_it_is(tmp_path: Path) -> None:
    model = toy_model()
    written = export_onnx(model, tmp_path / "d.onnx", "decoder", phases=True)
    assert written.size_bytes == (tmp_path / "d.onnx").stat().st_size
    assert written.inputs["individual"] == ["batch", 16, 4, 4]
    assert written.inputs["t"] == ["batch"]
    assert written.outputs == {"images": ["batch", 1, 16, 16]}
    loaded = onnx.load(str(tmp_path / "d.onnx"))
    onnx.checker.check_model(loaded, full_check=True)
    said = json.loads({p.key: p.value for p in loaded.metadata_props}[METADATA_KEY])
    assert said["model_sha256"] == model.sha256
    assert (said["part"], said["phases"]) == ("decoder", True)
    assert loaded.opset_import[0].version == 18


def test_exporting_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    toy_model().save(tmp_path / "m.safetensors")
    code = (
        "import sys, cae_fast; from cae_fast.export import export_onnx; "
        "model = cae_fast.CAE.load(sys.argv[1]); "
        "[export_onnx(model, sys.argv[2], part) for part in ('encoder', 'decoder')]; "
        "print('torch' in sys.modules)"
    )
    arguments = [str(tmp_path / "m.safetensors"), str(tmp_path / "d.onnx")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part": "generator"}, f"part must be one of {', '.join(PARTS)}"),
        ({"part": "decoder-classifier"}, "'decoder-classifier' needs classifier"),
        ({"part": "decoder", "precision": "fp8"}, "precision must be one of fp32, fp16"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_onnx(toy_model(), **arguments)


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(toy_model(), tmp_path / "d.onnx", "decoder")
    assert list(tmp_path.iterdir()) == []
