# SPDX-License-Identifier: Apache-2.0
"""Engines built for real, ahead of time, on a machine without a GPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_workspace import Workspace, cae_fast, make_workspace

import cae_fast as cf
from cae_fast.engine_files import manifest_path, read_engine
from cae_fast.engines.build import EngineRequest, build_engine, profiles, targets_of
from cae_fast.engines.cache import engine_folder, engine_for, fitting
from cae_fast.engines.flavours import Flavour, find_flavour
from cae_fast.engines.runtime import open_engine, refuse_foreign
from cae_fast.engines.targets import GPUS, architecture, architectures
from cae_fast.engines.timing import TimingCache
from cae_fast.errors import EngineError
from cae_fast.testing import toy_model

KEY = b"k" * 32


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    pytest.importorskip("tensorrt_rtx")
    return find_flavour("tensorrt_rtx")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def request(**fields: Any) -> EngineRequest:
    options = {"part": "decoder", "gpus": ("sm89",), "max_batch": 4}
    return EngineRequest(**({"model": toy_model(image_size=32)} | options | fields))


# ---- GPUs by name


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("sm89", "sm89"),
        ("SM_86", "sm86"),
        ("12.0", "sm120"),
        ("RTX 4090", "sm89"),
        ("nvidia geforce rtx 3080 ti", "sm86"),
        ("NVIDIA A100-SXM4-80GB", "sm80"),
        ("l40s", "sm89"),
        ("H100", "sm90"),
    ],
)
def test_gpus_are_known_by_name(name: str, arch: str) -> None:
    assert architecture(name) == arch


def test_every_product_is_found_by_its_own_name() -> None:
    assert all(architecture(name) == arch for arch, names in GPUS.items() for name in names)


@pytest.mark.parametrize("name", ["", "sm88", "9.9", "Voodoo 2", "../../sm89"])
def test_unknown_gpu_lists_the_known(name: str) -> None:
    with pytest.raises(EngineError, match=r"unknown GPU.*sm89 \(L4, L40, L40S"):
        architecture(name)


def test_near_misses_are_suggested_and_unserved_named() -> None:
    with pytest.raises(EngineError, match="did you mean RTX 4090"):
        architecture("RTX 4900")
    with pytest.raises(EngineError, match=r"'H100' \(sm90\) here, only for sm80, sm89"):
        architectures(["A100", "H100"], ["sm80", "sm89"], "it")
    assert architectures(["4.5".replace("4.5", "8.9"), "A100", "sm80"], ["sm80", "sm89"], "it") == (
        "sm80",
        "sm89",
    )


# ---- flavours


def test_no_tensorrt_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cf.BackendUnavailable, match=r"pip install 'cae_fast\[tensorrt-rtx\]'"):
        find_flavour()
    with pytest.raises(cf.BackendUnavailable, match=r"pip install 'cae_fast\[tensorrt\]'"):
        find_flavour("tensorrt")
    with pytest.raises(EngineError, match="tensorrt, tensorrt_rtx, got 'openvino'"):
        find_flavour("openvino")


@pytest.mark.parametrize("fault", ["missing library", "too old"])
def test_unusable_tensorrt_says_why(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    if fault == "too old":
        monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
        message = "tensorrt 8.6.1 is too old, 10 or newer"
    else:

        def fail(name: str) -> Any:
            raise OSError("libnvinfer.so.10: cannot open shared object file")

        monkeypatch.setattr(importlib, "import_module", fail)
        message = "tensorrt is installed but cannot be loaded: libnvinfer"
    with pytest.raises(cf.BackendUnavailable, match=message):
        find_flavour("tensorrt")


def test_networks_are_strongly_typed_by_every_version() -> None:
    def of(**members: int) -> Flavour:
        flags = SimpleNamespace(**members)
        return Flavour("tensorrt", "11", SimpleNamespace(NetworkDefinitionCreationFlag=flags))

    assert of(STRONGLY_TYPED=1).network_flags() == 2
    assert of().network_flags() == 0  # where the flag is gone, so is the other kind


def test_a_timing_cache_that_does_not_match_is_left_out(tmp_path: Path) -> None:
    """With stand-ins: only `tensorrt` has timings, and it needs a GPU to take them."""
    flavour = Flavour("tensorrt", "11.0", SimpleNamespace())
    given: list[bytes] = []
    config = SimpleNamespace(
        create_timing_cache=lambda data: given.append(bytes(data)),
        set_timing_cache=lambda cache, ignore_mismatch: None,
        get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings"),
    )
    cache = TimingCache(tmp_path / "new", KEY)
    cache.attach(config, flavour, ("sm90",))
    cache.keep(config, flavour, ("sm90",))
    cache.attach(config, flavour, ("sm90",))
    (path,) = (tmp_path / "new").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    cache.attach(config, flavour, ("sm90",))
    assert given == [b"", b"timings", b""]
    assert path.stat().st_mode & 0o777 == 0o600


# ---- building


@pytest.mark.tensorrt
def test_builds_for_two_gpus_and_rebuilds_what_was_tampered_with(
    tmp_path: Path, flavour: Flavour
) -> None:
    path = tmp_path / "new" / "d.engine"
    wanted = request(gpus=("sm89", "RTX 3090"))
    steps: list[tuple[int, int]] = []
    built = build_engine(wanted, path, flavour, on_progress=lambda *s: steps.append(s))
    assert (built.reused, built.replaced) == (False, "")
    plan, manifest = read_engine(path)
    assert manifest == built.manifest
    assert manifest.gpus == ("sm86", "sm89")
    assert (manifest.flavour, manifest.version) == (flavour.name, flavour.version)
    assert manifest.model_sha256 == wanted.model.sha256
    assert manifest.layers > 20
    assert manifest.size_bytes == len(plan) > 10_000
    assert steps[-1][0] == steps[-1][1] > 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert build_engine(wanted, path, flavour).reused
    data = bytearray(plan)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = build_engine(wanted, path, flavour)
    assert not again.reused
    assert "tampered" in again.replaced
    read_engine(path)


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": toy_model(image_size=32, seed=1)}, "from another model"),
        ({"gpus": ("sm86",)}, "for gpus sm89, not sm86"),
        ({"max_batch": 2}, "for max_batch 4, not 2"),
        ({"precision": "fp32"}, "for precision fp16, not fp32"),
    ],
)
def test_stale_engines_are_built_anew(
    tmp_path: Path, flavour: Flavour, change: dict[str, Any], word: str
) -> None:
    path = tmp_path / "d.engine"
    build_engine(request(), path, flavour)
    built = build_engine(request(**change), path, flavour)
    assert not built.reused
    assert word in built.replaced


@pytest.mark.tensorrt
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("options", [{"precision": "fp32"}, {"phases": True}, {"max_batch": 1}])
def test_parts_and_options_build(
    tmp_path: Path, flavour: Flavour, part: str, options: dict[str, Any]
) -> None:
    built = build_engine(request(part=part, **options), tmp_path / "e.engine", flavour)
    assert built.manifest.size_bytes > 10_000


@pytest.mark.tensorrt
def test_every_architecture_builds(tmp_path: Path, flavour: Flavour) -> None:
    """All that the package knows in one file; Turing with halves in its matrix products."""
    served = flavour.targets()
    assert {"sm80", "sm86", "sm89", "sm120"} <= set(served)
    small = request(model=toy_model(), gpus=served)
    assert build_engine(small, tmp_path / "e.engine", flavour).manifest.gpus == served
    if not (present := cf.info()["cuda"]["devices"]):
        assert targets_of(flavour, ()) == tuple(gpu for gpu in served if gpu != "sm75")
    assert len(targets_of(flavour, ())) == (1 if present else len(served) - 1)


def test_profiles() -> None:
    assert profiles(1) == ((1, 1),)
    assert profiles(16) == ((1, 1), (1, 16))


@pytest.mark.tensorrt
@pytest.mark.parametrize("batch", [0, -1, True, 2.0, 65_536])
def test_wrong_batch(tmp_path: Path, flavour: Flavour, batch: Any) -> None:
    with pytest.raises(EngineError, match=r"max_batch must be an integer in 1\.\.65535"):
        build_engine(request(max_batch=batch), tmp_path / "e.engine", flavour)


@pytest.mark.tensorrt
def test_operator_of_a_classifier_that_tensorrt_does_not_take(
    tmp_path: Path, flavour: Flavour, workspace: Workspace
) -> None:
    """ONNX knows it, TensorRT does not: it is named, and the way without it offered."""
    import onnx

    model = cf.CAE.load(workspace.model)
    loaded = onnx.load(str(workspace.classifier))
    loaded.graph.node[1].output[0] = "product"
    loaded.graph.node.append(
        onnx.helper.make_node("CastLike", ["found", "product"], ["logits"], name="last")
    )
    loaded.graph.node.insert(2, onnx.helper.make_node("Det", ["square"], ["det"]))
    square = onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32)[None], "square")
    loaded.graph.initializer.append(square)
    loaded.graph.node.insert(3, onnx.helper.make_node("Mul", ["product", "det"], ["found"]))
    onnx.save(loaded, str(tmp_path / "c.onnx"))
    classifier = cf.Classifier.load(tmp_path / "c.onnx")
    wanted = request(model=model, part="decoder-classifier", classifier=classifier)
    with pytest.raises(EngineError, match=r"classifier's operator Det .*--part decoder"):
        build_engine(wanted, tmp_path / "e.engine", flavour)
    assert not (tmp_path / "e.engine").exists()


# ---- finding and running


@pytest.mark.tensorrt
def test_cache_builds_once_and_passes_over_what_is_damaged(
    tmp_path: Path, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAE_ENGINES", str(tmp_path / "engines"))
    wanted = request(gpus=())
    plan, manifest = engine_for(wanted, flavour, "sm89", None)
    (path,) = engine_folder().glob("*.engine")
    assert engine_folder().stat().st_mode & 0o777 == 0o700
    assert fitting(engine_folder(), request(max_batch=2), flavour, "sm89", None) == (plan, manifest)
    assert fitting(engine_folder(), wanted, flavour, "sm86", None) is None
    assert fitting(engine_folder(), request(max_batch=5), flavour, "sm89", None) is None
    with pytest.warns(RuntimeWarning, match="is not signed"):
        assert fitting(engine_folder(), wanted, flavour, "sm89", KEY) is None
    path.write_bytes(plan[:-1] + b"\0\0")
    with pytest.warns(RuntimeWarning, match="truncated"):
        again, _ = engine_for(wanted, flavour, "sm89", None)
    assert read_engine(path)[0] == again
    assert engine_for(wanted, flavour, "sm89", None)[0] == again


@pytest.mark.tensorrt
def test_runtime_sees_no_byte_of_a_bad_file(
    tmp_path: Path, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is replaced by one that fails the test."""
    path = tmp_path / "d.engine"
    built = build_engine(request(), path, flavour)

    def seen(*_: Any) -> Any:
        raise AssertionError("the runtime was asked")

    monkeypatch.setattr(flavour.module, "Runtime", seen)
    monkeypatch.setattr("cae_fast.engines.runtime.present_gpus", lambda: ("sm86",))
    with pytest.raises(EngineError, match=r"built for sm89, this GPU is sm86; .*--gpu sm86"):
        open_engine(path)
    other = Flavour(flavour.name, "0.0.1", flavour.module)
    with pytest.raises(EngineError, match=r"here is tensorrt_rtx 0\.0\.1, which cannot read it"):
        refuse_foreign(path, built.manifest, other, "sm89")
    with pytest.raises(EngineError, match="is not signed"):
        open_engine(path, key=KEY)
    monkeypatch.setattr("cae_fast.engines.runtime.present_gpus", lambda: ("sm89",))
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    with pytest.raises(EngineError, match="tampered"):
        open_engine(path)


@pytest.mark.tensorrt
def test_without_a_gpu_the_backend_and_an_engine_say_so(tmp_path: Path, flavour: Flavour) -> None:
    if cf.info()["cuda"]["devices"]:
        pytest.skip("there is a GPU here")
    with pytest.raises(cf.BackendUnavailable, match=r"backend 'tensorrt': .*NVIDIA GPUs"):
        cf.Explainer(toy_model(), lambda images: images, backend="tensorrt")
    build_engine(request(), tmp_path / "d.engine", flavour)
    with pytest.raises(cf.BackendUnavailable, match="there is no 0"):
        open_engine(tmp_path / "d.engine")


# ---- command line


@pytest.mark.tensorrt
def test_build_engine_verb(tmp_path: Path, workspace: Workspace, flavour: Flavour) -> None:
    out = tmp_path / "m.engine"
    command = ["build-engine", str(workspace.model), "--out", str(out)]
    targets = ["--gpu", "sm80", "--gpu", "L4", "--max-batch", "2", "--json"]
    done = cae_fast(*command, "--classifier", str(workspace.classifier), *targets)
    assert done.code == 0, done.err
    first, second = done.json["engines"]
    assert (first["part"], second["part"]) == ("decoder-classifier", "encoder")
    assert first["gpus"] == second["gpus"] == ["sm80", "sm89"]
    assert Path(second["engine"]) == tmp_path / "m.encoder.engine"
    assert cae_fast(*command, "--check").code == 0
    data = out.read_bytes()
    out.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused = cae_fast(*command, "--check")
    assert (refused.code, refused.out) == (2, "")
    assert "tampered" in refused.err
    again = cae_fast(*command, "--classifier", str(workspace.classifier), *targets)
    assert again.code == 0
    assert "not used" in again.err
    assert [engine["reused"] for engine in again.json["engines"]] == [False, True]
    toy_model(seed=4).save(tmp_path / "other.safetensors")
    other = ["build-engine", str(tmp_path / "other.safetensors"), "--out", str(out), "--check"]
    stale = cae_fast(*other)
    assert stale.code == 2
    assert "stale" in stale.err


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "Voodoo"], "unknown GPU 'Voodoo'"),
        (["--gpu", "H100"], "cannot build for 'H100' (sm90)"),
        (["--max-batch", "0"], "max_batch"),
        (["--precision", "int8"], "precision must be one of fp32, fp16"),
        (["--part", "critic"], "part must be one of"),
        (["--part", "classifier"], "needs classifier"),
        (["--flavour", "openvino"], "flavour must be one of"),
        (["--key-file", "absent"], "absent"),
        (["--check"], "no such engine file"),
    ],
)
def test_build_engine_refuses(
    tmp_path: Path, workspace: Workspace, flavour: Flavour, options: list[str], words: str
) -> None:
    out = tmp_path / "m.engine"
    done = cae_fast("build-engine", str(workspace.model), "--out", str(out), *options)
    assert done.code == 2
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.tensorrt
def test_signed_by_the_command_line(tmp_path: Path, workspace: Workspace, flavour: Flavour) -> None:
    key = tmp_path / "key"
    key.write_bytes(KEY)
    key.chmod(0o600)
    out = tmp_path / "m.engine"
    command = ["build-engine", str(workspace.model), "--out", str(out), "--part", "encoder"]
    assert cae_fast(*command, "--gpu", "sm89", "--key-file", str(key)).code == 0
    assert "hmac_sha256" in json.loads(manifest_path(out).read_text())
    assert cae_fast(*command, "--check", "--key-file", str(key)).code == 0
    said = json.loads(manifest_path(out).read_text()) | {"part": "decoder"}
    manifest_path(out).write_text(json.dumps(said))
    assert "signature" in cae_fast(*command, "--check", "--key-file", str(key)).err
