# SPDX-License-Identifier: Apache-2.0
"""`cae-fast export` and `build-engine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cae_fast.cli.output import AsJson, Output, Quiet, output_file
from cae_fast.files import made_parents

if TYPE_CHECKING:
    from cae_fast.classifier import Classifier
    from cae_fast.engine_files import Manifest
    from cae_fast.engines.build import Built
    from cae_fast.model import CAE

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="model.safetensors.")]
ClassifierFile = Annotated[
    str | None,
    typer.Option(metavar="C", help=".onnx, .pt2, or module:function naming a torch module."),
]
Precision = Annotated[str, typer.Option(help="fp16 or fp32; inputs and outputs are float32.")]
Phases = Annotated[
    bool,
    typer.Option(
        "--phases", help="Convolve the upsampling layers at their source's size: fewer products."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="Key that signs engines; by default the one of CAE_ENGINE_KEY_FILE."),
]


def export(
    model: Model,
    classifier: ClassifierFile = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="encoder, decoder, decoder-classifier or classifier; by default decoder, with a "
            "classifier decoder-classifier."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="FILE.onnx to write.")] = None,
    triton: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a Triton model repository with all parts."),
    ] = None,
    engine: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="For --triton: this .engine instead of the ONNX of its part; may be repeated.",
        ),
    ] = None,
    precision: Precision = "fp32",
    phases: Phases = False,
    max_batch: Annotated[int, typer.Option(help="Largest batch that Triton forms.")] = 16,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a Triton folder that is not empty.")
    ] = False,
    key_file: KeyFile = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the networks as ONNX, or as a model repository for Triton."""
    from cae_fast.export import export_onnx
    from cae_fast.export.check import check_file

    if (out is None) == (triton is None):
        raise ValueError("give --out FILE.onnx or --triton DIR, one of them")
    printed = Output(quiet=quiet, as_json=as_json)
    cae, loaded = _load(model, classifier)
    if triton is not None:
        _export_triton(printed, cae, loaded, triton, locals())
        return
    assert out is not None
    if engine:
        raise ValueError("--engine is for --triton")
    output_file(out, (".onnx",))
    wanted = part or ("decoder" if loaded is None else "decoder-classifier")
    with made_parents(out):
        written = export_onnx(
            cae,
            out,
            wanted,
            classifier=loaded if "classifier" in wanted else None,
            precision=precision,
            phases=phases,
        )
    errors = check_file(cae, written, loaded)
    said = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    if said:
        printed.line(f"beside the CPU engine in float32, by ONNX Runtime: relative error {said}")
    printed.line(f"{out}: {wanted}, {written.operations} operations, {_size(written.size_bytes)}")
    printed.result(
        {
            "onnx": str(out),
            "part": wanted,
            "precision": precision,
            "inputs": written.inputs,
            "outputs": written.outputs,
            "operations": written.operations,
            "size_bytes": written.size_bytes,
            "relative_error": errors,
        }
    )


def _export_triton(
    printed: Output, cae: CAE, loaded: Classifier | None, folder: Path, given: dict[str, Any]
) -> None:
    from cae_fast.engine_files import signing_key
    from cae_fast.export.triton import write_repository

    models = write_repository(
        folder,
        cae,
        classifier=loaded,
        precision=given["precision"],
        phases=given["phases"],
        max_batch=given["max_batch"],
        engines=given["engine"] or (),
        key=signing_key(given["key_file"]),
        overwrite=given["overwrite"],
    )
    for name, platform in models.items():
        printed.line(f"{folder / name}: {platform}")
    printed.result({"triton": str(folder), "models": models})


def build_engine(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="FILE.engine to write.")],
    classifier: ClassifierFile = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            help="sm89, RTX 4090, L40S, ...; may be repeated: one file serves all of them. By "
            "default this machine's, or where it has none all that the builder knows."
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="encoder, decoder, decoder-classifier or classifier alone; by default the decoder "
            "(with a classifier decoder-classifier) as FILE.engine and the encoder as "
            "FILE.encoder.engine."
        ),
    ] = None,
    precision: Precision = "fp16",
    max_batch: Annotated[int, typer.Option(help="The largest batch; 1 is served too.")] = 16,
    phases: Phases = False,
    flavour: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt_rtx; by default what is installed.")
    ] = None,
    key_file: KeyFile = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build even if the file is what was asked for.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Build nothing: say whether FILE.engine is what was built."),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Build TensorRT engines; no GPU is needed with tensorrt_rtx. What is there and fits stays."""
    from cae_fast.engine_files import SUFFIX, signing_key
    from cae_fast.engines.build import EngineRequest
    from cae_fast.engines.build import build_engine as build
    from cae_fast.engines.cache import engine_folder
    from cae_fast.engines.flavours import find_flavour
    from cae_fast.engines.timing import TimingCache

    output_file(out, (SUFFIX,))
    printed = Output(quiet=quiet, as_json=as_json)
    key = signing_key(key_file)
    if check:
        _check(printed, out, model, key)
        return
    trt = find_flavour(flavour)
    cae, loaded = _load(model, classifier)
    wanted = {out: part} if part else {out: "decoder" if loaded is None else "decoder-classifier"}
    if part is None:
        wanted[out.with_suffix(f".encoder{SUFFIX}")] = "encoder"
    if not gpu and not trt.targets():
        raise ValueError(f"--gpu: {trt.name} has nothing to build for here")
    built = []
    for path, name in wanted.items():
        request = EngineRequest(
            cae,
            str(name),
            loaded if "classifier" in str(name) else None,
            gpu or (),
            precision,
            max_batch,
            phases,
        )
        with printed.progress(f"building the {name}") as moved:
            built.append(
                build(
                    request,
                    path,
                    trt,
                    key=key,
                    timing=TimingCache(engine_folder(), key),
                    rebuild=rebuild,
                    on_progress=moved,
                )
            )
        _print_built(printed, built[-1])
    printed.result({"engines": [_as_json(one) for one in built]})


def _check(printed: Output, out: Path, model: Path, key: bytes | None) -> None:
    """Refuses an engine that is not what its manifest says, or of another model."""
    from cae_fast.engine_files import read_engine
    from cae_fast.errors import EngineError
    from cae_fast.model import CAE

    _, manifest = read_engine(out, key=key)
    sha256 = CAE.load(model).sha256
    if manifest.model_sha256 != sha256:
        raise EngineError(
            f"{out}: stale: built from model {manifest.model_sha256[:12]}, {model} is {sha256[:12]}"
        )
    signed = "signed and " if key is not None else ""
    printed.line(f"{out}: {signed}as it was built, {_about(manifest)}")
    printed.result({"engine": str(out), "signed": key is not None, **manifest.to_dict()})


def _load(model: Path, classifier: str | None) -> tuple[CAE, Classifier | None]:
    from cae_fast.classifier import Classifier
    from cae_fast.model import CAE

    loaded = CAE.load(model)
    return loaded, None if classifier is None else Classifier.load(classifier)


def _print_built(printed: Output, built: Built) -> None:
    if built.replaced:
        printed.warn(f"not used: {built.replaced}")
    how = "there already" if built.reused else f"{built.manifest.build_seconds:.1f} s"
    printed.line(f"{built.path}: {_about(built.manifest)}, {how}")


def _about(manifest: Manifest) -> str:
    return (
        f"{manifest.part} for {', '.join(manifest.gpus)}, {manifest.precision}, batches to "
        f"{manifest.max_batch}, {manifest.layers} layers, {_size(manifest.size_bytes)}, "
        f"{manifest.flavour} {manifest.version}"
    )


def _as_json(built: Built) -> dict[str, Any]:
    return {
        "engine": str(built.path),
        "reused": built.reused,
        "replaced": built.replaced,
        **built.manifest.to_dict(),
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
