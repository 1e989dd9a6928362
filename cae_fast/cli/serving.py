# SPDX-License-Identifier: Apache-2.0
"""`cae-fast serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cae_fast.cli.explaining import refuse_options
from cae_fast.cli.output import Quiet, printable


def serve(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="model.safetensors.")
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Argument(metavar="CLASSIFIER", help=".onnx, .pt2, TorchScript or module:function."),
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(metavar="BANK", help="bank.parquet or bank.csv.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML or JSON: several models, and every setting."),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve the bundled models.")] = False,
    name: Annotated[str | None, typer.Option(help="The model's name in addresses.")] = None,
    samples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images offered on the page.")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", help="Nearest exemplars averaged.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port (8000); 0 takes a free one.")] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Lowest latency; no restart of a hung engine.")
    ] = False,
    backend: Annotated[str | None, typer.Option(help="auto, cpu, torch, cuda, tensorrt.")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Of an engine; repeat for several.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of each engine; all cores.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Images explained together (32).")] = None,
    batch_wait_ms: Annotated[float | None, typer.Option(help="Longest wait for company.")] = None,
    queue_size: Annotated[int | None, typer.Option(help="Requests waiting; then 503.")] = None,
    deadline_s: Annotated[float | None, typer.Option(help="Longest time of a request.")] = None,
    allow_reload: Annotated[
        bool, typer.Option("--allow-reload", help="Serve the routes that load models again.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Bearer token asked for; or CAE_SERVE_TOKEN."),
    ] = None,
    log: Annotated[str | None, typer.Option(help="json, text or off.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="In replicas under Ray Serve.")] = False,
    replicas: Annotated[int | None, typer.Option(help="With --ray: at least (1).")] = None,
    max_replicas: Annotated[int | None, typer.Option(help="With --ray: under load.")] = None,
    replica_cpus: Annotated[int | None, typer.Option(help="With --ray: of each (1).")] = None,
    replica_gpus: Annotated[float | None, typer.Option(help="With --ray: of each (0).")] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="With --ray: a cluster's, or auto.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Serve explanations: HTTP, a web page, KServe's and the Open Inference Protocol.

    SIGTERM answers what was accepted and ends; SIGHUP loads the models again.
    """
    from cae_fast.errors import CAEError
    from cae_fast.serving.server import print_address
    from cae_fast.serving.server import serve as run
    from cae_fast.serving.settings import TOKEN_VARIABLE, checked, load_settings

    of_ray = {
        "--replicas": replicas,
        "--max-replicas": max_replicas,
        "--replica-cpus": replica_cpus,
        "--replica-gpus": replica_gpus,
        "--ray-address": ray_address,
    }
    refuse_options({} if ray else of_ray, with_ray=ray)
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token_file is not None:
        token = token_file.read_text(encoding="utf-8").strip()
    said: dict[str, Any] = {
        "host": host,
        "port": port,
        "in_process": in_process or None,
        "backend": backend,
        "devices": tuple(device) if device else None,
        "threads": threads,
        "max_batch": max_batch,
        "batch_wait_ms": batch_wait_ms,
        "queue_size": queue_size,
        "deadline_s": deadline_s,
        "allow_reload": allow_reload or None,
        "token": token,
        "log": log,
    }
    one = (model, classifier, bank)
    if sum((config is not None, demo, any(value is not None for value in one))) != 1:
        raise CAEError("give MODEL CLASSIFIER --bank BANK, or --config FILE, or --demo")
    if model is None:
        for option, value in {"--name": name, "--samples": samples, "--k": k}.items():
            if value is not None:
                raise CAEError(f"{option} is for MODEL CLASSIFIER; with --config it stands there")
    if config is not None:
        settings = load_settings(config, **said)
    else:
        models = _bundled() if demo else {name or "model": _files(*one)}
        if not demo:
            extra = {"samples": None if samples is None else str(samples), "k": k}
            models[name or "model"] |= {key: v for key, v in extra.items() if v is not None}
        given = {key: value for key, value in said.items() if value is not None}
        settings = checked({"models": models, **given}, "serve")
    if settings.host not in ("127.0.0.1", "::1", "localhost") and settings.token is None:
        typer.echo(
            printable(f"cae-fast: warning: {settings.host} is open to others and asks no token"),
            err=True,
        )
    on_listening = (lambda url: None) if quiet else print_address
    if not ray:
        run(settings, on_listening=on_listening)
        return
    from cae_fast.ray_jobs.service import Replicas, serve_on_ray

    amount: dict[str, Any] = {
        "count": replicas,
        "most": max_replicas,
        "cpus": replica_cpus,
        "gpus": replica_gpus,
        "address": ray_address,
    }
    given = {key: value for key, value in amount.items() if value is not None}
    serve_on_ray(settings, Replicas(**given), on_listening=on_listening)


def _files(model: Path | None, classifier: str | None, bank: Path | None) -> dict[str, Any]:
    from cae_fast.errors import CAEError

    if model is None or classifier is None or bank is None:
        raise CAEError("MODEL, CLASSIFIER and --bank are needed together")
    return {"model": str(model), "classifier": classifier, "bank": str(bank)}


def _bundled() -> dict[str, dict[str, Any]]:
    from cae_fast.demo import MODELS, model_folder

    folders = {name: model_folder(name) for name in MODELS}
    return {
        name: {
            "model": str(folder / "model.safetensors"),
            "classifier": str(folder / "classifier.onnx"),
            "bank": str(folder / "bank.csv"),
        }
        for name, folder in folders.items()
    }
