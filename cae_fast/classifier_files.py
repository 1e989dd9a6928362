# SPDX-License-Identifier: Apache-2.0
"""Reading classifiers from files: ONNX, torch.export, TorchScript, and `module:function`."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .classifier import Classifier, classifier_from
from .errors import BackendUnavailable, ClassifierError, missing_extra
from .onnx_files import external_files
from .pt2_files import DAMAGE, check_archive

METADATA_KEY = "cae_fast.classifier"
METADATA_FILE = "cae_fast.classifier.json"
_FILE_OPTIONS = ("labels", "size", "channels", "outputs", "mean", "std")
_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
KINDS = ".onnx, .pt2 (torch.export), TorchScript .pt, .engine, or module:function"


def load_classifier(spec: str | os.PathLike[str], options: Mapping[str, Any]) -> Classifier:
    """Loads a classifier; see :meth:`cae_fast.Classifier.load`."""
    text = os.fspath(spec)
    path = Path(text)
    options = dict(options)
    isolate = options.pop("isolate", False)
    if isolate and path.suffix.lower() != ".onnx":
        raise ClassifierError(f"{text}: only .onnx files are run in a process of their own")
    if not path.exists() and _SPEC.fullmatch(text):
        return _load_function(text, options)
    suffix = path.suffix.lower()
    if suffix not in (".onnx", ".pt2", ".pt", ".pth", ".ts", ".torchscript", ".engine"):
        raise ClassifierError(f"{text}: not a kind of classifier that is read; expected {KINDS}")
    if not path.is_file():
        raise ClassifierError(f"{text}: no such file")
    if suffix == ".engine":
        return _load_engine(path, options)
    if path.stat().st_size == 0:
        raise ClassifierError(f"{text}: the file is empty")
    if suffix == ".onnx":
        return _load_onnx(path, options, bool(isolate))
    loader = {".pt2": _load_exported}.get(suffix, _load_torchscript)
    return loader(path, options)


def _build(
    path: Path,
    fn: Any,
    said: Mapping[str, Any],
    options: Mapping[str, Any],
    files: tuple[Path, ...],
) -> Classifier:
    """A classifier with what its file says, overridden by the caller's options."""
    merged = {key: said[key] for key in _FILE_OPTIONS if said.get(key) is not None}
    merged |= {"name": path.name} | dict(options)
    try:
        classifier = Classifier(fn, **merged)
    except ClassifierError as error:
        raise ClassifierError(f"{path}: {error}") from None
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    classifier.sha256 = digest.hexdigest()
    classifier.metadata = {key: value for key, value in said.items() if key not in _FILE_OPTIONS}
    return classifier


def parse_metadata(path: Path, text: str | bytes | None) -> dict[str, Any]:
    """The JSON that cae_fast writes into classifier files; empty for other files."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ClassifierError(f"{path}: its {METADATA_KEY} metadata is not a JSON object")
    return value


_SESSIONS_OF_PARENTS: list[Any] = []


class _OnnxNetwork:
    """An onnxruntime session, created once per process: its threads do not survive a fork."""

    def __init__(self, path: Path, runtime: Any) -> None:
        self.path = path
        self._runtime = runtime
        self._open()

    def _open(self) -> None:
        from ._backend import get_num_threads

        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take the cores from the decoder between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = self._runtime.InferenceSession(
            str(self.path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._process = os.getpid()
        given = self.session.get_inputs()
        outputs = [output.name for output in self.session.get_outputs()]
        if len(given) != 1 or not outputs:
            raise ClassifierError(
                f"{self.path}: the network has {len(given)} inputs and {len(outputs)} outputs, "
                "expected one input"
            )
        self._input = given[0].name
        self.shape = list(given[0].shape)
        self._output = "logits" if "logits" in outputs else outputs[0]
        kinds = {
            "tensor(float)": np.float32,
            "tensor(float16)": np.float16,
            "tensor(double)": np.float64,
        }
        if given[0].type not in kinds:
            raise ClassifierError(
                f"{self.path}: its input is {given[0].type}, expected tensor(float)"
            )
        self._dtype = kinds[given[0].type]

    def __call__(self, images: Any) -> Any:
        if os.getpid() != self._process:
            # Ending the parent's session here would wait for its threads for ever: keep it.
            _SESSIONS_OF_PARENTS.append(self.session)
            self._open()
        feed = np.ascontiguousarray(images, dtype=self._dtype)
        return self.session.run([self._output], {self._input: feed})[0]


def open_onnx(path: Path) -> _OnnxNetwork:
    """An ONNX file in onnxruntime, on the CPU; its external data were checked.

    Raises:
        ClassifierError: The runtime does not take it.
        MissingExtra: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("onnx", "onnxruntime") from None
    try:
        return _OnnxNetwork(path, onnxruntime)
    except ClassifierError:
        raise
    except Exception as error:
        raise ClassifierError(
            f"{path}: onnxruntime cannot load it ({_first_line(error)})"
        ) from error


def _load_onnx(path: Path, options: Mapping[str, Any], isolate: bool) -> Classifier:
    """An ONNX file, run by onnxruntime on the CPU: here, or in a process of its own."""
    files = (path, *external_files(path))
    if isolate:
        from .isolated_onnx import IsolatedNetwork

        child = IsolatedNetwork(path)
        said = parse_metadata(path, child.metadata)
        return _fit_input(path, child, child.shape, said, options, files)
    network = open_onnx(path)
    said = parse_metadata(
        path, network.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    )
    return _fit_input(path, network, network.shape, said, options, files)


def _fit_input(
    path: Path,
    fn: Any,
    shape: list[Any],
    said: dict[str, Any],
    options: Mapping[str, Any],
    files: tuple[Path, ...],
) -> Classifier:
    """Takes channels, size and a fixed batch from a network's declared input [N, C, H, W]."""
    fixed = [dim if isinstance(dim, int) and dim > 0 else None for dim in shape]
    if len(fixed) != 4 or fixed[1] not in (None, 1, 3):
        raise ClassifierError(
            f"{path}: its input is {shape}, expected [N, C, H, W] with one (grey) or three (RGB) "
            "channels"
        )
    if fixed[1] is not None:
        said.setdefault("channels", fixed[1])
    if fixed[2] is not None and fixed[3] is not None:
        said.setdefault("size", (fixed[2], fixed[3]))
    merged = dict(options)
    if fixed[0] is not None:
        merged["batch"] = fixed[0]
    classifier = _build(path, fn, said, merged, files)
    classifier._pad = fixed[0] is not None
    return classifier


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "torch") from None
    return torch


def open_exported(path: Path) -> tuple[Any, dict[str, Any]]:
    """A torch.export archive, after the checks that keep its loader from unpickling objects.

    Returns:
        The `torch.export.ExportedProgram`, and what cae_fast wrote about it.

    Raises:
        ClassifierError: Damaged or refused.
        MissingExtra: torch is not installed.
    """
    torch = _import_torch()
    check_archive(path, torch)
    extra: dict[str, Any] = {METADATA_FILE: ""}
    try:
        program = torch.export.load(str(path), extra_files=extra)
    except Exception as error:
        raise ClassifierError(
            f"{path}: torch.export cannot load it ({_first_line(error)})"
        ) from error
    return program, parse_metadata(path, extra.get(METADATA_FILE))


class _ExportedNetwork:
    """An exported program as a plain function: its module refuses eval().

    Attributes:
        path: Of its file.
        exported: The module, for methods that need its gradients.
    """

    def __init__(self, path: Path, program: Any) -> None:
        self.path = path
        self.exported = program.module()

    def __call__(self, images: Any) -> Any:
        return self.exported(images)


def _load_exported(path: Path, options: Mapping[str, Any]) -> Classifier:
    """A torch.export archive."""
    program, said = open_exported(path)
    shape = _exported_input(program)
    network = _ExportedNetwork(path, program)
    return _fit_input(path, network, shape, said, {"arrays": "torch", **options}, (path,))


def _exported_input(program: Any) -> list[Any]:
    """Declared shape of the one user input; symbolic sizes are None."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if len(names) == 1 and node.op == "placeholder" and node.name == names[0]:
            return [dim if type(dim) is int else None for dim in node.meta["val"].shape]
    return [None] * len(names)


def _load_engine(path: Path, options: Mapping[str, Any]) -> Classifier:
    """A classifier of `cae-fast build-engine --part classifier`, run by TensorRT on a GPU."""
    from .engine_files import read_engine, signing_key
    from .engines.runtime import engine_module, run_engine

    plan, manifest = read_engine(path, key=signing_key())
    if manifest.part != "classifier":
        raise ClassifierError(
            f"{path}: an engine of the {manifest.part}, expected one of a classifier alone: build "
            "it with --part classifier"
        )
    try:
        module = engine_module(run_engine(path, plan, manifest), 0)
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f"{path}: cannot be run here: {error}; give the .onnx the engine was built from"
        ) from error
    _, channels, height, width = manifest.inputs["images"]
    said: dict[str, Any] = {"labels": manifest.class_names, "size": (height, width)}
    if channels in (1, 3):
        said["channels"] = channels
    return _build(path, module, said, options, (path,))


def _load_torchscript(path: Path, options: Mapping[str, Any]) -> Classifier:
    """A TorchScript archive; any other `.pt` is a pickle and is refused unread."""
    torch = _import_torch()
    refusal = ClassifierError(
        f"{path}: not a TorchScript archive, and pickled modules are never loaded because they "
        "can run any code; "
        "save it with torch.jit.script(model).save(...), torch.export.save(...) or "
        "torch.onnx.export(...)"
    )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE:
        raise refusal from None
    if not any(n.endswith("/constants.pkl") for n in names) or not any(
        "/code/" in n for n in names
    ):
        raise refusal
    extra: dict[str, Any] = {METADATA_FILE: ""}
    try:
        network = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except Exception as error:
        raise ClassifierError(f"{path}: torch.jit cannot load it ({_first_line(error)})") from error
    return _build(path, network, parse_metadata(path, extra.get(METADATA_FILE)), options, (path,))


def _load_function(spec: str, options: Mapping[str, Any]) -> Classifier:
    """`module:function`; the module is searched where Python does and in the working directory."""
    module_name, _, name = spec.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ClassifierError(
            f"{spec}: importing {module_name} failed: {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not hasattr(module, name):
        raise ClassifierError(f"{spec}: {module_name} has no {name!r}")
    value = getattr(module, name)
    if not isinstance(value, Classifier) and _is_factory(value):
        try:
            value = value()
        except Exception as error:
            raise ClassifierError(
                f"{spec}: {name}() failed, expected a function without arguments that returns a "
                "callable: "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from error
    if isinstance(value, Classifier):
        if options:
            raise ClassifierError(
                f"{spec}: it is a Classifier already, got options {sorted(options)} as well"
            )
        return value
    try:
        return Classifier(value, **{"name": spec, **options}) if options else _named(value, spec)
    except ClassifierError as error:
        raise ClassifierError(f"{spec}: {error}") from None


def _is_factory(value: object) -> bool:
    """Functions and classes are called; other objects are the classifier themselves."""
    return isinstance(value, type) or hasattr(value, "__code__")


def _named(value: Any, spec: str) -> Classifier:
    classifier = classifier_from(value)
    classifier.name = spec
    return classifier


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
