# SPDX-License-Identifier: Apache-2.0
"""What a service is told: models, limits, times; from the command line or a file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from cae_fast.errors import CAEError, missing_extra

#: What a model may be called in an address.
MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
#: Environment variable that holds the bearer token.
TOKEN_VARIABLE = "CAE_SERVE_TOKEN"

_FORBID = {"extra": "forbid"}


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """One model to serve, and the files it is made of.

    Attributes:
        model: model.safetensors.
        classifier: .onnx, .pt2, TorchScript or `module:function`.
        bank: bank.parquet or bank.csv.
        samples: Folder of images offered on the page; by default `samples` beside the model.
        k: Nearest exemplars averaged; by default the model card's `k`, else the explainer's.
    """

    model: str
    classifier: str
    bank: str
    samples: str | None = None
    k: int | None = None

    __pydantic_config__ = _FORBID

    @property
    def samples_folder(self) -> Path:
        """Where samples are looked for; need not exist."""
        return Path(self.samples) if self.samples else Path(self.model).parent / "samples"


@dataclasses.dataclass(frozen=True)
class Settings:
    """A service.

    Attributes:
        models: By the name in addresses.
        host: Address to listen at.
        port: Port; 0 takes a free one.
        in_process: Explain in the serving process: lowest latency, no restart of a hung engine.
        backend: As in `cf.Explainer`.
        devices: One engine for each, as in `cf.Explainer`; empty: one, on the default device.
        threads: Threads of each engine, None: all cores.
        max_batch: Requests explained together.
        batch_wait_ms: Longest wait for company, taken only while others are under way.
        queue_size: Requests waiting; more are answered 503.
        deadline_s: Longest time of a request from its arrival, also the default.
        hang_s: A batch that takes longer than this hangs: its engine is started again.
        heartbeat_s: An engine that gave no sign of life for this long is started again.
        canary_s: After so long without work a canary is explained; 0: never.
        slot_mb: Shared memory for one batch; only what is used is taken.
        max_body_mb: Largest request body.
        max_pixels: Largest width x height of an image.
        max_frames: Most frames of one answer.
        max_instances: Most images of one request.
        header_timeout_s: Time for a request's head.
        body_timeout_s: Time for a request's body.
        write_timeout_s: Time in which a client must read an answer.
        keep_alive_s: Time that an idle connection is kept.
        max_connections: More are answered 503; no more than file descriptors allow.
        drain_s: On SIGTERM, time for what was accepted.
        allow_reload: Serve `/v2/repository/models/{m}/load` and `/unload`.
        token: Bearer token asked of every request but health and page; None: none.
        log: "json", "text" or "off".
    """

    models: dict[str, ModelFiles]
    host: str = "127.0.0.1"
    port: int = 8000
    in_process: bool = False
    backend: str = "auto"
    devices: tuple[str, ...] = ()
    threads: int | None = None
    max_batch: int = 32
    batch_wait_ms: float = 2.0
    queue_size: int = 256
    deadline_s: float = 30.0
    hang_s: float = 60.0
    heartbeat_s: float = 10.0
    canary_s: float = 30.0
    slot_mb: int = 512
    max_body_mb: float = 32.0
    max_pixels: int = 16_000_000
    max_frames: int = 64
    max_instances: int = 64
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    keep_alive_s: float = 15.0
    max_connections: int = 1024
    drain_s: float = 30.0
    allow_reload: bool = False
    token: str | None = dataclasses.field(default=None, repr=False)
    log: str = "json"

    __pydantic_config__ = _FORBID

    def __post_init__(self) -> None:
        """Checks every number and name.

        Raises:
            CAEError: One is out of range; the message names it.
        """
        if not self.models:
            raise CAEError("models is empty: a service needs at least one model")
        for name in self.models:
            if not MODEL_NAME.fullmatch(name):
                raise CAEError(
                    f"models: {name!r} is no name: wanted 1 to 64 letters, digits, '_', '.', '-'"
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            low = _LOWEST.get(field.name)
            if low is not None and value is not None and not value >= low:
                raise CAEError(f"{field.name} must be at least {low}, got {value!r}")
        if not 0 <= self.port <= 65535:
            raise CAEError(f"port must be in 0..65535, got {self.port}")
        if self.log not in ("json", "text", "off"):
            raise CAEError(f"log must be 'json', 'text' or 'off', got {self.log!r}")
        if self.token is not None and len(self.token) < 8:
            raise CAEError("token must have at least 8 characters")
        if self.in_process and len(self.devices) > 1:
            raise CAEError("in_process serves one device; leave it out for several")

    @property
    def max_body_bytes(self) -> int:
        """Largest request body, bytes."""
        return int(self.max_body_mb * 2**20)


_LOWEST: dict[str, float] = {
    "threads": 1,
    "max_batch": 1,
    "batch_wait_ms": 0,
    "queue_size": 1,
    "deadline_s": 0.001,
    "hang_s": 0.1,
    "heartbeat_s": 1,
    "canary_s": 0,
    "slot_mb": 1,
    "max_body_mb": 0.001,
    "max_pixels": 1,
    "max_frames": 0,
    "max_instances": 1,
    "header_timeout_s": 0.1,
    "body_timeout_s": 0.1,
    "write_timeout_s": 0.1,
    "keep_alive_s": 0.1,
    "max_connections": 1,
    "drain_s": 0,
}


def load_settings(path: str | os.PathLike[str], **overrides: Any) -> Settings:
    """Reads a service's file, TOML or JSON; its relative paths start at its folder.

    Args:
        path: The file: the fields of :class:`Settings`, with a table `models.NAME` for each model.
        **overrides: Fields that go before the file's; None leaves the file's.

    Raises:
        CAEError: Unreadable, an unknown key (the message suggests one), or a wrong value.
        MissingExtra: pydantic is not installed.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise CAEError(f"{file}: not UTF-8 text") from None
    try:
        value = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CAEError(f"{file}: not readable ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise CAEError(f"{file}: expected a table of settings, got {type(value).__name__}")
    value |= {key: new for key, new in overrides.items() if new is not None}
    settings = checked(value, str(file))
    here = file.resolve().parent
    models = {name: _beside(here, files) for name, files in settings.models.items()}
    return dataclasses.replace(settings, models=models)


def checked(value: dict[str, Any], where: str) -> Settings:
    """Settings of a tree of plain values.

    Raises:
        CAEError: An unknown key or a wrong value; one line that begins with `where`.
        MissingExtra: pydantic is not installed.
    """
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError:
        raise missing_extra("serve", "pydantic") from None
    try:
        return TypeAdapter(Settings).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CAEError(f"{where}: {_said(first)}") from None


def _said(error: Any) -> str:
    """One finding of pydantic's in words."""
    place = [str(part) for part in error["loc"]]
    name = ".".join(place) or "settings"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = ModelFiles if len(place) == 3 and place[0] == "models" else Settings
        known = [field.name for field in dataclasses.fields(owner)]
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
        return f"unknown key {name!r}{hint}"
    if error["type"] == "value_error" and "ctx" in error:
        return str(error["ctx"]["error"])
    return f"{name}: {error['msg'][:1].lower()}{error['msg'][1:]}, got {error['input']!r:.80}"


def _beside(folder: Path, files: ModelFiles) -> ModelFiles:
    """The files of one model, with relative paths made absolute."""

    def path(name: str | None) -> str | None:
        return None if name is None else str(folder / name)

    is_object = ":" in files.classifier and not (folder / files.classifier).exists()
    return dataclasses.replace(
        files,
        model=str(folder / files.model),
        classifier=files.classifier if is_object else str(folder / files.classifier),
        bank=str(folder / files.bank),
        samples=path(files.samples),
    )
