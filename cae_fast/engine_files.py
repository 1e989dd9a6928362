# SPDX-License-Identifier: Apache-2.0
"""TensorRT engine files: an engine is code that the runtime executes, so it is checked unread.

Beside `NAME.engine` lies `NAME.engine.json`, the manifest: what the engine is of, what built it for
which GPUs, its size and its sha256. Both are the owner's alone (mode 0600). Whoever can write the
engine can write its manifest: where that matters, sign with a key (`CAE_ENGINE_KEY_FILE`), and
engines without a good signature are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EngineError
from .files import atomic_write

SUFFIX = ".engine"
KEY_VARIABLE = "CAE_ENGINE_KEY_FILE"
FORMAT_VERSION = 1
_MODE = 0o600
_LARGEST_MANIFEST = 1 << 20
_SHORTEST_KEY = 16  # bytes
_DIGEST = re.compile(r"[0-9a-f]{64}")

Shapes = dict[str, list[int | str]]


@dataclass(frozen=True)
class Manifest:
    """What a file says of an engine.

    Attributes:
        part: Of the networks: "encoder", "decoder", "decoder-classifier" or "classifier".
        flavour: Package that built it, "tensorrt" or "tensorrt_rtx".
        version: Of that package; another one cannot read the engine.
        gpus: Targets, such as "sm89".
        precision: "fp32" or "fp16".
        phases: Whether upsampling is convolved at its source's size.
        max_batch: The largest batch.
        model_sha256: Of the model.
        classifier_sha256: Of the classifier's file, or None.
        class_names: Of the logits, in order.
        inputs: Shape by name, free sizes as text.
        outputs: The same.
        layers: Of the network as it was parsed.
        build_seconds: It took to build.
        built_by: Version of cae_fast.
        size_bytes: Of the engine.
        sha256: Of the engine.
        format_version: Of the manifest.
    """

    part: str
    flavour: str
    version: str
    gpus: tuple[str, ...]
    precision: str
    phases: bool
    max_batch: int
    model_sha256: str
    classifier_sha256: str | None
    class_names: tuple[str, ...]
    inputs: Shapes
    outputs: Shapes
    layers: int = 0
    build_seconds: float = 0.0
    built_by: str = ""
    size_bytes: int = 0
    sha256: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def key(self) -> str:
        """Names the engine by everything that it depends on; hexadecimal."""
        fields = {name: getattr(self, name) for name in _KEY_FIELDS}
        return hashlib.sha256(_canonical(fields)).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self) | {
            "gpus": list(self.gpus),
            "class_names": list(self.class_names),
        }


_KEY_FIELDS = (
    *("part", "flavour", "version", "gpus", "precision", "phases", "max_batch"),
    *("model_sha256", "classifier_sha256", "class_names", "inputs", "outputs", "built_by"),
)
_TYPES: dict[str, tuple[type, ...]] = {
    "tuple[str, ...]": (list,),
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Shapes": (dict,),
}


def manifest_path(path: Path) -> Path:
    """Of an engine file."""
    return path.with_name(path.name + ".json")


def signing_key(file: str | os.PathLike[str] | None = None) -> bytes | None:
    """The key that engines are signed with.

    Args:
        file: Holds it; None is the file that the environment variable `CAE_ENGINE_KEY_FILE` names.

    Returns:
        The key, or None where no file is named.

    Raises:
        EngineError: The file cannot be read, others can read it, or it is too short.
    """
    name = file if file is not None else os.environ.get(KEY_VARIABLE) or None
    if name is None:
        return None
    path = Path(name)
    key, mode = _read(path, 1 << 16, "engine key")
    if mode & 0o077:
        raise EngineError(f"{path}: others can read this engine key (mode {mode:04o}): chmod 600")
    if len(key) < _SHORTEST_KEY:
        raise EngineError(
            f"{path}: an engine key of {len(key)} bytes, expected at least {_SHORTEST_KEY}"
        )
    return key


def write_engine(
    path: str | os.PathLike[str], engine: bytes, manifest: Manifest, *, key: bytes | None = None
) -> Manifest:
    """Writes an engine and its manifest, each whole or not at all, for the owner only.

    Returns:
        The manifest with size and hash filled in.

    Raises:
        OSError: The file system refused; of an older engine, what is left is refused when read.
    """
    final = Path(path)
    digest = hashlib.sha256(engine).hexdigest()
    manifest = dataclasses.replace(manifest, sha256=digest, size_bytes=len(engine))
    values = manifest.to_dict()
    if key is not None:
        values["hmac_sha256"] = _signature(values, key)
    for file, data in (
        (final, engine),
        (manifest_path(final), json.dumps(values, indent=1, allow_nan=False).encode()),
    ):
        with atomic_write(file, mode=_MODE) as temporary:
            temporary.write_bytes(data)
    return manifest


def read_manifest(path: str | os.PathLike[str], *, key: bytes | None = None) -> Manifest:
    """The manifest of an engine file, checked for structure and, given a key, for its signature.

    Raises:
        EngineError: It is missing, damaged, of another format, writable by others, or not signed
            with the key.
    """
    file = manifest_path(Path(path))
    if not file.is_file():
        raise EngineError(
            f"{path}: has no manifest ({file.name}): not an engine of `cae-fast build-engine`, and "
            "so refused unread"
        )
    data, mode = _read(file, _LARGEST_MANIFEST, "manifest")
    _check_mode(file, mode)
    try:
        values = json.loads(data, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise EngineError(f"{file}: not a JSON object of finite numbers; the engine is refused")
    signature = values.pop("hmac_sha256", None)
    if values.get("format_version") != FORMAT_VERSION:
        raise EngineError(
            f"{file}: a manifest of format {values.get('format_version')!r}, expected "
            f"{FORMAT_VERSION}; build the engine anew"
        )
    fields = {field.name: str(field.type) for field in dataclasses.fields(Manifest)}
    wrong = sorted(set(fields) ^ set(values)) + [
        name
        for name, kind in fields.items()
        if name in values
        and (
            not isinstance(values[name], _TYPES[kind])
            or (isinstance(values[name], bool) and kind != "bool")
        )
    ]
    # Compared in constant time, which Python refuses for text that is not ASCII.
    digests = {"sha256": values.get("sha256"), "hmac_sha256": signature}
    wrong += [
        name
        for name, value in digests.items()
        if name not in wrong
        and not (name == "hmac_sha256" and value is None)
        and not (isinstance(value, str) and _DIGEST.fullmatch(value))
    ]
    if wrong:
        raise EngineError(f"{file}: wrong or missing {', '.join(map(repr, wrong))}; refused")
    if key is not None and not (
        signature is not None and hmac.compare_digest(signature, _signature(values, key))
    ):
        said = "is not signed" if signature is None else "does not bear the signature"
        raise EngineError(f"{file}: {said} of the key of {KEY_VARIABLE}; the engine is refused")
    for name in ("gpus", "class_names"):
        if not all(isinstance(item, str) for item in values[name]):
            raise EngineError(f"{file}: {name} must be texts; the engine is refused")
        values[name] = tuple(values[name])
    return Manifest(**values)


def read_engine(
    path: str | os.PathLike[str], *, key: bytes | None = None
) -> tuple[bytes, Manifest]:
    """An engine that is what its manifest says, byte for byte.

    Returns:
        The very bytes that were checked, and the manifest.

    Raises:
        EngineError: No such file, or as :func:`read_manifest`, or size or hash are others.
    """
    file = Path(path)
    if not file.is_file():
        raise EngineError(f"{file}: no such engine file")
    manifest = read_manifest(file, key=key)
    size = file.stat().st_size
    if size != manifest.size_bytes:
        raise EngineError(
            f"{file}: {size} bytes, its manifest says {manifest.size_bytes}: truncated or not the "
            "engine that was built; refused"
        )
    engine, mode = _read(file, size, "engine")
    _check_mode(file, mode)
    if not hmac.compare_digest(hashlib.sha256(engine).hexdigest(), manifest.sha256):
        raise EngineError(
            f"{file}: its sha256 is not the manifest's: damaged or tampered with; refused, build "
            "it anew"
        )
    return engine, manifest


def _read(path: Path, most: int, what: str) -> tuple[bytes, int]:
    """Contents and permission bits of a regular file of at most `most` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise EngineError(f"{path}: {what} cannot be read ({error.strerror})") from None
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise EngineError(f"{path}: {what} is no regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise EngineError(
                f"{path}: {what} belongs to user {status.st_uid}, expected {os.geteuid()} or root"
            )
        data = opened.read(most + 1)
    if len(data) > most:
        raise EngineError(f"{path}: {what} has more than {most} bytes")
    return data, stat.S_IMODE(status.st_mode)


def _check_mode(path: Path, mode: int) -> None:
    if mode & 0o022:
        raise EngineError(
            f"{path}: others may write to it (mode {mode:04o}), so it may not be what was built: "
            "chmod 600 if you trust it"
        )


def _finite(text: str) -> float:
    """A number of a manifest; ValueError for NaN and infinities, also those written as 1e999."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _signature(values: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, _canonical(values), hashlib.sha256).hexdigest()


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
