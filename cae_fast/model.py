# SPDX-License-Identifier: Apache-2.0
"""The model: configuration and NumPy weights, and the file that carries both.

No torch is needed to load, check or save a model; :meth:`CAE.module` builds the trainable network.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from .errors import CAEError, ModelFileError
from .files import atomic_write

if TYPE_CHECKING:
    from .networks import CAEModule

FORMAT_VERSION = 1
METADATA_KEY = "cae_fast"
MAX_FILE_BYTES = 4 * 1024**3

_LIMITS = {
    "image_size": (16, 4096),
    "in_channels": (1, 4),
    "channels": (1, 1024),
    "num_blocks": (1, 64),
    "code_dim": (1, 1024),
    "num_classes": (2, 10_000),
    "modulation_width": (1, 8192),
}


@dataclasses.dataclass(frozen=True)
class CAEConfig:
    """Shape of the networks.

    Attributes:
        image_size: Height and width of the square images, a multiple of 4, at least 16.
        in_channels: Image channels, 1 to 4.
        channels: Width of the first layers; the individual code has four times as many channels.
        num_blocks: Residual blocks of the individual encoder and of the decoder.
        code_dim: Length of the class code.
        num_classes: Number of classes K.
        class_names: K distinct names; "0", "1", ... when empty.
        modulation_width: Hidden width of the modulation perceptron.
    """

    image_size: int = 256
    in_channels: int = 3
    channels: int = 64
    num_blocks: int = 6
    code_dim: int = 8
    num_classes: int = 2
    class_names: tuple[str, ...] = ()
    modulation_width: int = 256

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            CAEError: A field has a wrong type or lies outside its range.
        """
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise CAEError(f"{name} must be an integer, got {value!r}")
            if not low <= value <= high:
                raise CAEError(f"{name} must be in [{low}, {high}], got {value}")
            object.__setattr__(self, name, int(value))
        if self.image_size % 4:
            raise CAEError(f"image_size must be a multiple of 4, got {self.image_size}")
        given: object = self.class_names
        if not isinstance(given, tuple | list):
            raise CAEError(f"class_names must be a list of names, got {given!r}")
        names = tuple(self.class_names) or tuple(str(k) for k in range(self.num_classes))
        if any(not isinstance(name, str) or not name for name in names):
            raise CAEError(f"class_names must be non-empty texts, got {names!r}")
        if len(names) != self.num_classes or len(set(names)) != len(names):
            raise CAEError(
                f"class_names must be {self.num_classes} distinct names (num_classes), "
                f"got {list(names)}"
            )
        object.__setattr__(self, "class_names", names)

    @property
    def individual_shape(self) -> tuple[int, int, int]:
        """Shape of one individual code: (4 * channels, image_size / 4, image_size / 4)."""
        return (4 * self.channels, self.image_size // 4, self.image_size // 4)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (in_channels, image_size, image_size)."""
        return (self.in_channels, self.image_size, self.image_size)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return dataclasses.asdict(self) | {"class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CAEConfig:
        """Builds a configuration from JSON values.

        Raises:
            CAEError: A key is unknown (the message suggests the nearest one) or a value is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                raise CAEError(f"unknown configuration key {key!r}{hint}")
        fields = dict(values)
        if isinstance(fields.get("class_names"), list):
            fields["class_names"] = tuple(fields["class_names"])
        return cls(**fields)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights, in canonical order."""
        w = self.channels
        shapes: dict[str, tuple[int, ...]] = {}

        def add(name: str, *shape: int) -> None:
            shapes[f"{name}.weight"] = shape
            shapes[f"{name}.bias"] = shape[:1]

        for encoder, widths in (
            ("class_encoder", (w, 2 * w, 4 * w, 4 * w, 4 * w)),
            ("individual_encoder", (w, 2 * w, 4 * w)),
        ):
            before = self.in_channels
            for index, width in enumerate(widths):
                kernel = 4 if index else 7
                add(f"{encoder}.conv{index}", width, before, kernel, kernel)
                before = width
        add("class_encoder.head", self.code_dim, 4 * w, 1, 1)
        for part in ("individual_encoder", "decoder"):
            for block in range(self.num_blocks):
                for conv in range(2):
                    add(f"{part}.block{block}.conv{conv}", 4 * w, 4 * w, 3, 3)
        add("modulation.linear0", self.modulation_width, self.code_dim)
        add("modulation.linear1", self.modulation_width, self.modulation_width)
        add("modulation.linear2", self.num_blocks * 16 * w, self.modulation_width)
        for index, width in enumerate((2 * w, w)):
            add(f"decoder.up{index}", width, 2 * width, 5, 5)
            shapes[f"decoder.norm{index}.gamma"] = (width,)
            shapes[f"decoder.norm{index}.beta"] = (width,)
        add("decoder.out", self.in_channels, w, 7, 7)
        return shapes


class CAE:
    """A model: configuration, float32 NumPy weights, and where they come from.

    Attributes:
        config: Shape of the networks.
        weights: Read-only mapping from tensor name to float32 array, in canonical order.
        provenance: JSON values about origin: data, seed, steps, measured promises.
    """

    def __init__(
        self,
        config: CAEConfig,
        weights: Mapping[str, npt.NDArray[np.float32]],
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks and takes the weights; copies only what is not float32 and C-contiguous.

        Args:
            config: Shape of the networks.
            weights: One array per name of ``config.tensor_shapes()``.
            provenance: JSON values kept in the model file.

        Raises:
            ModelFileError: Tensors are missing, extra, mis-shaped, not floating or not finite; all
                are listed.
        """
        self.config = config
        self.weights: Mapping[str, npt.NDArray[np.float32]] = MappingProxyType(
            _checked_weights(config, weights)
        )
        self.provenance: dict[str, Any] = dict(provenance or {})
        self._sha256: str | None = None

    def __repr__(self) -> str:
        """One line: the configuration and the first digits of the hash."""
        c = self.config
        return (
            f"CAE({c.image_size}x{c.image_size}x{c.in_channels}, channels={c.channels}, "
            f"classes={list(c.class_names)}, sha256={self.sha256[:12]})"
        )

    def __reduce__(self) -> tuple[type[CAE], tuple[Any, ...]]:
        """Lets a model be sent to another process; the weights are checked again there."""
        return CAE, (self.config, dict(self.weights), self.provenance)

    @property
    def sha256(self) -> str:
        """SHA-256 over configuration, names, dtypes, shapes and bytes in canonical order.

        It speaks of integrity, not of authenticity.
        """
        if self._sha256 is None:
            digest = hashlib.sha256()
            digest.update(
                _canonical_json({"format": FORMAT_VERSION, "config": self.config.to_dict()})
            )
            for name, array in self.weights.items():
                digest.update(_canonical_json([name, "float32", list(array.shape)]))
                digest.update(np.ascontiguousarray(array, dtype="<f4").data)
            self._sha256 = digest.hexdigest()
        return self._sha256

    @classmethod
    def random(cls, config: CAEConfig, seed: int = 0) -> CAE:
        """Random weights: normal with std sqrt(2 / fan in), small biases, gamma about 1."""
        generator = np.random.default_rng(seed)
        weights = {}
        for name, shape in config.tensor_shapes().items():
            draw = generator.standard_normal(shape, dtype=np.float32)
            if name.endswith(".weight"):
                draw *= np.float32(math.sqrt(2 / math.prod(shape[1:])))
            elif name.endswith(".gamma"):
                draw = 1 + np.float32(0.1) * draw
            else:
                draw *= np.float32(0.05)
            weights[name] = draw
        return cls(config, weights, {"origin": "random", "seed": seed})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file with configuration, provenance and hash, atomically.

        Raises:
            CAEError: The folder does not exist or `path` is a folder.
            OSError: The file system refused.
        """
        metadata = {
            "format": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "provenance": self.provenance,
            "sha256": self.sha256,
        }
        try:
            text = json.dumps(metadata, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CAEError(f"provenance must hold finite JSON values: {error}") from None
        data = safetensors.numpy.save(dict(self.weights), metadata={METADATA_KEY: text})
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CAE:
        """Reads a model file written by :meth:`save`.

        Raises:
            ModelFileError: The file is missing, truncated, of another kind, or its content does
                not match its hash.
        """
        file = Path(path)
        metadata, tensors = _read_safetensors(file)
        config = _config_of(file, metadata)
        try:
            model = cls(config, tensors, metadata.get("provenance"))
        except ModelFileError as error:
            raise ModelFileError(f"{file}: {error}") from None
        if model.sha256 != metadata.get("sha256"):
            raise ModelFileError(
                f"{file}: content does not match the sha256 recorded in it; the file is damaged, "
                "fetch or write it again"
            )
        return model

    @classmethod
    def from_authors(
        cls,
        path: str | os.PathLike[str],
        *,
        image_size: int = 256,
        class_names: tuple[str, ...] = (),
    ) -> CAE:
        """Reads a generator checkpoint of the authors' code, see :mod:`cae_fast.authors`."""
        from .authors import read_checkpoint

        return read_checkpoint(path, image_size=image_size, class_names=class_names)

    def module(self) -> CAEModule:
        """Builds the trainable torch network with these weights (a copy)."""
        import torch

        from .networks import CAEModule

        module = CAEModule(self.config)
        module.load_state_dict(
            {name: torch.from_numpy(np.array(array)) for name, array in self.weights.items()}
        )
        return module

    @classmethod
    def from_module(cls, module: CAEModule, provenance: Mapping[str, Any] | None = None) -> CAE:
        """Takes the weights of a torch network, as float32 copies."""
        weights = {
            name: tensor.detach().to(device="cpu").float().numpy().copy()
            for name, tensor in module.state_dict().items()
        }
        return cls(module.config, weights, provenance)


def _canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _checked_weights(
    config: CAEConfig, weights: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Weights in canonical order as read-only float32, or one error that lists every difference."""
    shapes = config.tensor_shapes()
    problems = [
        f"missing {name} {list(shape)}" for name, shape in shapes.items() if name not in weights
    ]
    problems += [f"unexpected {name}" for name in weights if name not in shapes]
    checked: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        if name not in weights:
            continue
        array = np.asarray(weights[name])
        if tuple(array.shape) != shape:
            problems.append(f"{name} must be {list(shape)}, got {list(array.shape)}")
        elif not np.issubdtype(array.dtype, np.floating):
            problems.append(f"{name} must be floating, got {array.dtype}")
        elif not np.isfinite(array).all():
            problems.append(f"{name} holds NaN or Inf")
        else:
            view = np.ascontiguousarray(array, dtype=np.float32).view()
            view.flags.writeable = False
            checked[name] = view
    if problems:
        raise ModelFileError(f"weights do not fit the configuration: {'; '.join(problems)}")
    return checked


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Metadata and tensors of a model file; the structure is checked by the safetensors library."""
    if not file.is_file():
        raise ModelFileError(f"{file}: no such model file")
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ModelFileError(
            f"{file}: {size} bytes is more than a model file may have ({MAX_FILE_BYTES})"
        )
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            recorded = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    # AttributeError: a dtype that NumPy has not, such as float8.
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(f"{file}: not a readable safetensors file ({error})") from None
    if METADATA_KEY not in recorded:
        raise ModelFileError(
            f"{file}: a safetensors file without cae_fast's metadata; expected one written by "
            "CAE.save or `cae-fast train`"
        )
    try:
        metadata = json.loads(recorded[METADATA_KEY])
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise ModelFileError(f"{file}: its metadata is not valid JSON")
    return metadata, tensors


def _config_of(file: Path, metadata: Mapping[str, Any]) -> CAEConfig:
    """Configuration recorded in a model file."""
    version = metadata.get("format")
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{file}: format version {version!r}, this version reads {FORMAT_VERSION}"
        )
    config = metadata.get("config")
    provenance = metadata.get("provenance")
    if not isinstance(config, dict) or not isinstance(provenance, dict | None):
        raise ModelFileError(f"{file}: its metadata lacks the configuration")
    try:
        return CAEConfig.from_dict(config)
    except CAEError as error:
        raise ModelFileError(f"{file}: {error}") from None
