# SPDX-License-Identifier: Apache-2.0
"""Reads generator checkpoints of the authors' public code (``gen_*.pt``), weights only.

The file is ``torch.save({"ab": state_dict})``. It is read with torch's restricted loader, which
builds tensors and plain containers only; whatever asks for more is refused, with no other loader
tried.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CAEError, ModelFileError, missing_extra
from .model import CAE, CAEConfig

_UNUSED = re.compile(r"\.(running_mean|running_var|num_batches_tracked)$")
_INSTEAD = (
    "save torch.save({'ab': model.state_dict()}, FILE) where you trust the file, and import that"
)


def authors_names(config: CAEConfig) -> dict[str, str]:
    """Authors' tensor name of every canonical tensor name."""
    names: dict[str, str] = {}

    def both(canonical: str, theirs: str) -> None:
        names[f"{canonical}.weight"] = f"{theirs}.weight"
        names[f"{canonical}.bias"] = f"{theirs}.bias"

    for index in range(5):
        both(f"class_encoder.conv{index}", f"enc_style.model.{index}.conv")
    both("class_encoder.head", "enc_style.model.5")
    for index in range(3):
        both(f"individual_encoder.conv{index}", f"enc_content.model.{index}.conv")
    for part, theirs in (
        ("individual_encoder", "enc_content.model.3"),
        ("decoder", "dec.model.0"),
    ):
        for block in range(config.num_blocks):
            for conv in range(2):
                both(
                    f"{part}.block{block}.conv{conv}",
                    f"{theirs}.model.{block}.model.{conv}.conv",
                )
    for index in range(3):
        both(f"modulation.linear{index}", f"mlp.model.{index}.fc")
    for index, position in enumerate((2, 4)):
        both(f"decoder.up{index}", f"dec.model.{position}.conv")
        for kind in ("gamma", "beta"):
            names[f"decoder.norm{index}.{kind}"] = f"dec.model.{position}.norm.{kind}"
    both("decoder.out", "dec.model.5.conv")
    return names


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    image_size: int = 256,
    class_names: tuple[str, ...] = (),
) -> CAE:
    """Converts a generator checkpoint of the authors' public code.

    Width, blocks, code length and image channels are read from the tensors; what the file does not
    hold is given here.

    Args:
        path: ``gen_*.pt``.
        image_size: Size the networks were trained at.
        class_names: Names of the classes; two classes "0", "1" when empty.

    Returns:
        The model, with file name and origin in its provenance.

    Raises:
        ModelFileError: The file is unreadable, needs unpickling, or its tensors do not fit; all
            differences are listed.
        MissingExtra: torch is not installed.
    """
    file = Path(path)
    state = _read_state(file)
    try:
        config = _infer_config(state, image_size, tuple(class_names))
    except ModelFileError as error:
        raise ModelFileError(f"{file}: {error}") from None
    names = authors_names(config)
    shapes = config.tensor_shapes()
    problems = [
        f"missing {theirs} {list(shapes[ours])}"
        for ours, theirs in names.items()
        if theirs not in state
    ]
    expected = set(names.values())
    problems += [
        f"unexpected {name}" for name in state if name not in expected and not _UNUSED.search(name)
    ]
    for ours, theirs in names.items():
        if theirs not in state:
            continue
        array = state[theirs]
        if tuple(array.shape) != shapes[ours]:
            problems.append(f"{theirs} must be {list(shapes[ours])}, got {list(array.shape)}")
        elif not np.issubdtype(array.dtype, np.floating):
            problems.append(f"{theirs} must be floating, got {array.dtype}")
        elif not np.isfinite(array).all():
            problems.append(f"{theirs} holds NaN or Inf")
    if problems:
        raise ModelFileError(f"{file}: not a generator checkpoint that fits: {'; '.join(problems)}")
    weights = {ours: state[theirs].astype(np.float32) for ours, theirs in names.items()}
    return CAE(config, weights, {"origin": "authors' checkpoint", "file": file.name})


def _read_state(file: Path) -> Mapping[str, npt.NDArray[Any]]:
    """State dict of the checkpoint as NumPy arrays (bfloat16 widened to float32)."""
    if not file.is_file():
        raise ModelFileError(f"{file}: no such checkpoint file")
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "torch") from None
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported global" in str(error) or "nsupported class" in str(error):
            raise ModelFileError(
                f"{file}: holds Python objects beside tensors, which can run code: refused; "
                f"{_INSTEAD}"
            ) from None
        raise ModelFileError(
            f"{file}: not a readable torch checkpoint ({_first_line(error)})"
        ) from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        UnicodeDecodeError,
        zipfile.BadZipFile,
        OverflowError,
        OSError,
    ) as error:
        raise ModelFileError(
            f"{file}: not a readable torch checkpoint ({_first_line(error)})"
        ) from None
    state = loaded.get("ab") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        found = sorted(map(str, loaded))[:8] if isinstance(loaded, dict) else type(loaded).__name__
        raise ModelFileError(
            f"{file}: expected {{'ab': state_dict}} as the authors' code saves its generator, "
            f"got {found}"
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.is_sparse:
            raise ModelFileError(
                f"{file}: 'ab' must map names to dense tensors, "
                f"got {name!r}: {type(tensor).__name__}"
            )
        dense = tensor.detach()
        arrays[name] = (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    return arrays


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _infer_config(
    state: Mapping[str, npt.NDArray[Any]], image_size: int, class_names: tuple[str, ...]
) -> CAEConfig:
    """Configuration the tensors' shapes speak of; reference values where a tensor is missing."""
    reference = CAEConfig()

    def length(name: str, axis: int, rank: int, otherwise: int) -> int:
        array = state.get(name)
        return int(array.shape[axis]) if array is not None and array.ndim == rank else otherwise

    first = "enc_content.model.0.conv.weight"
    blocks = [
        int(match.group(1))
        for name in state
        if (match := re.match(r"enc_content\.model\.3\.model\.(\d{1,3})\.", name))
    ]
    try:
        return CAEConfig(
            image_size=image_size,
            in_channels=length(first, 1, 4, reference.in_channels),
            channels=length(first, 0, 4, reference.channels),
            num_blocks=max(blocks) + 1 if blocks else reference.num_blocks,
            code_dim=length("mlp.model.0.fc.weight", 1, 2, reference.code_dim),
            num_classes=len(class_names) or reference.num_classes,
            class_names=class_names,
            modulation_width=length("mlp.model.0.fc.weight", 0, 2, reference.modulation_width),
        )
    except CAEError as error:
        raise ModelFileError(str(error)) from None
