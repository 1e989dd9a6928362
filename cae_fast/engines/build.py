# SPDX-License-Identifier: Apache-2.0
"""Building engines: ONNX in, a plan for the chosen GPUs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..classifier import Classifier
from ..engine_files import Manifest, read_engine, write_engine
from ..errors import EngineError
from ..export import build_onnx, serialized, shapes
from ..export.torch_onnx import INSTEAD
from ..files import made_parents
from ..model import CAE
from .flavours import Flavour
from .targets import architectures
from .timing import TimingCache

LARGEST_BATCH = 65_535
_TURING = "sm75"  # which TensorRT-RTX gives no matrix products in float32
_WORDS = 200  # characters of a message of TensorRT that are repeated

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is to be.

    Attributes:
        model: Of which networks.
        part: See :func:`cae_fast.export.build_onnx`.
        classifier: For the parts that hold it.
        gpus: Names (see :func:`cae_fast.engines.targets.architecture`); empty is the first GPU of
            this machine, or all that the builder knows where there is none.
        precision: "fp16" or "fp32".
        max_batch: The largest batch.
        phases: See :func:`cae_fast.export.build_onnx`.
    """

    model: CAE
    part: str
    classifier: Classifier | None = None
    gpus: Sequence[str] = ()
    precision: str = "fp16"
    max_batch: int = 16
    phases: bool = False


@dataclass(frozen=True)
class Built:
    """An engine file.

    Attributes:
        path: The file.
        manifest: What it says of it.
        reused: It was there already and is what was asked for; nothing was built.
        replaced: Why the file that was there was not used; "" where none was.
    """

    path: Path
    manifest: Manifest
    reused: bool
    replaced: str = ""


def targets_of(flavour: Flavour, names: Sequence[str]) -> tuple[str, ...]:
    """The architectures that an engine is built for.

    Raises:
        EngineError: A GPU is unknown or not served; or none is named, and none is here.
    """
    from .flavours import present_gpus

    served = flavour.targets()
    if names:
        return architectures(names, served, f"{flavour.name} {flavour.version}")
    here = [gpu for gpu in present_gpus() if gpu in served]
    if here:
        return (here[0],)
    if not flavour.ahead_of_time:
        raise EngineError(
            f"{flavour.name} builds for the GPU that is there, and there is none here; "
            "tensorrt_rtx builds without one: pip install 'cae_fast[tensorrt-rtx]'"
        )
    return tuple(gpu for gpu in served if gpu != _TURING)  # no backend of ours runs there


def describe(request: EngineRequest, flavour: Flavour) -> tuple[Manifest, Any]:
    """What an engine would be, before it is built, and its ONNX model.

    Raises:
        ValueError: A wrong field.
        ClassifierError: The classifier cannot be exported.
    """
    batch = request.max_batch
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= LARGEST_BATCH:
        raise EngineError(f"max_batch must be an integer in 1..{LARGEST_BATCH}, got {batch!r}")
    gpus = targets_of(flavour, request.gpus)
    onnx = build_onnx(
        request.model,
        request.part,
        classifier=request.classifier,
        precision=request.precision,
        phases=request.phases,
        half_products=_TURING in gpus,
    )
    classifier = request.classifier
    return (
        Manifest(
            part=request.part,
            flavour=flavour.name,
            version=flavour.version,
            gpus=gpus,
            precision=request.precision,
            phases=request.phases,
            max_batch=batch,
            model_sha256=request.model.sha256,
            classifier_sha256=None if classifier is None else classifier.sha256,
            class_names=tuple(request.model.config.class_names),
            inputs=shapes(onnx.graph.input),
            outputs=shapes(onnx.graph.output),
            built_by=__version__,
        ),
        onnx,
    )


def build_engine(
    request: EngineRequest,
    path: Path,
    flavour: Flavour,
    *,
    key: bytes | None = None,
    timing: TimingCache | None = None,
    rebuild: bool = False,
    on_progress: Progress | None = None,
) -> Built:
    """Writes an engine file, unless one that is just that is there already.

    Args:
        request: What it is to be.
        path: The file; its manifest goes beside it.
        flavour: Builds.
        key: Signs, and must have signed what is there.
        timing: Timings of kernels, kept between builds.
        rebuild: Build even so.
        on_progress: Called with (steps done, steps in all).

    Returns:
        The file, and whether it was built.

    Raises:
        EngineError: TensorRT cannot build it; the message names the operator where it is one.
        ValueError, ClassifierError: As :func:`describe`.
        OSError: The file cannot be written; nothing is left of it.
    """
    manifest, onnx = describe(request, flavour)
    replaced = ""
    if path.exists() and not rebuild:
        why = why_not(path, manifest, key)
        if isinstance(why, Manifest):
            return Built(path, why, reused=True)
        replaced = why
    began = time.perf_counter()
    plan, layers = _serialize(onnx, manifest, flavour, timing, on_progress)
    seconds = round(time.perf_counter() - began, 3)
    fields = {**manifest.__dict__, "layers": layers, "build_seconds": seconds}
    with made_parents(path):
        written = write_engine(path, plan, Manifest(**fields), key=key)
    return Built(path, written, reused=False, replaced=replaced)


def why_not(path: Path, wanted: Manifest, key: bytes | None) -> Manifest | str:
    """The manifest of an engine file that is what is wanted, or why it is not."""
    try:
        _, found = read_engine(path, key=key)
    except EngineError as error:
        return str(error)
    if wanted.classifier_sha256 is None and "classifier" in wanted.part:
        return f"{path}: its classifier has no file, so that it may have changed"
    if found.key != wanted.key:
        return f"{path}: stale: built {difference(found, wanted)}"
    return found


def difference(found: Manifest, wanted: Manifest) -> str:
    """What an engine differs in from another, for people."""
    words = []
    for name in ("part", "flavour", "version", "gpus", "precision", "phases", "max_batch"):
        has, needs = getattr(found, name), getattr(wanted, name)
        if has != needs:
            has, needs = (", ".join(v) if isinstance(v, tuple) else v for v in (has, needs))
            words.append(f"for {name} {has}, not {needs}")
    if found.model_sha256 != wanted.model_sha256:
        words.append("from another model")
    if found.classifier_sha256 != wanted.classifier_sha256:
        words.append("with another classifier")
    return "; ".join(words) or "by another version of cae_fast"


def _serialize(
    onnx: Any,
    manifest: Manifest,
    flavour: Flavour,
    timing: TimingCache | None,
    on_progress: Progress | None,
) -> tuple[bytes, int]:
    """The plan, and the layers of the network as it was parsed."""
    trt = flavour.module
    log = _Log.of(trt)
    try:
        builder = trt.Builder(log)
    except Exception as error:  # without a driver, tensorrt cannot make one
        raise EngineError(f"{flavour.name} cannot build here ({log.last(error)})") from error
    network = builder.create_network(flavour.network_flags())
    parser = trt.OnnxParser(network, log)
    if not parser.parse(serialized(onnx)):
        raise EngineError(_unparsed(parser, flavour))
    config = builder.create_builder_config()
    flavour.set_targets(config, manifest.gpus)
    # float32 in the graph means float32: TensorFloat-32 has the ten bits of a half.
    config.clear_flag(trt.BuilderFlag.TF32)
    for smallest, largest in profiles(manifest.max_batch):
        profile = builder.create_optimization_profile()
        for name, shape in manifest.inputs.items():
            profile.set_shape(
                name,
                *([size, *shape[1:]] for size in (smallest, largest, largest)),
            )
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{flavour.name} refuses batches of {smallest} to {largest}")
    if on_progress is not None:
        config.progress_monitor = _monitor(trt, on_progress)
    if timing is not None and flavour.has_timing_cache:
        timing.attach(config, flavour, manifest.gpus)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        instead = f"; {INSTEAD}" if manifest.part == "decoder-classifier" else ""
        raise EngineError(
            f"{flavour.name} {flavour.version} cannot build the {manifest.part} ({log.last()})"
            f"{instead}"
        )
    if timing is not None and flavour.has_timing_cache:
        timing.keep(config, flavour, manifest.gpus)
    return bytes(plan), int(network.num_layers)


def profiles(max_batch: int) -> tuple[tuple[int, int], ...]:
    """Smallest and largest batch of each optimisation profile: one image alone, and many."""
    return ((1, 1),) if max_batch == 1 else ((1, 1), (1, max_batch))


def _unparsed(parser: Any, flavour: Flavour) -> str:
    """Which operator TensorRT does not know."""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, operator = str(error.node_name()), str(error.node_operator())
        whose = "the classifier's" if node.startswith("classifier/") or "/net/" in node else "the"
        what = f"{whose} operator {operator} ({node})" if operator else "the network"
        return (
            f"{flavour.name} {flavour.version} does not take {what}: {error.desc()!s:.{_WORDS}}; "
            f"{INSTEAD}"
        )
    return f"{flavour.name} {flavour.version} cannot read the ONNX network; {INSTEAD}"


class _Log:
    """Makes loggers that keep what TensorRT says instead of printing it."""

    @staticmethod
    def of(trt: Any) -> Any:
        """A logger of this flavour."""

        class Log(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    self.errors.append(str(message))

            def last(self, error: BaseException | None = None) -> str:
                said = self.errors or [str(error or "no reason given")]
                return " ".join(said[0].split())[:_WORDS]

        return Log()


def new_log(trt: Any) -> Any:
    """A logger for a runtime: it keeps errors in `errors`, and `last()` says the first."""
    return _Log.of(trt)


def _monitor(trt: Any, on_progress: Progress) -> Any:
    """Reports the outermost phase of a build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.phases[name] = steps
                on_progress(0, steps)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.phases:
                on_progress(min(step + 1, self.phases[name]), self.phases[name])
            return True

        def phase_finish(self, name: str) -> None:
            if name in self.phases:
                on_progress(self.phases[name], self.phases[name])

    return Monitor()
