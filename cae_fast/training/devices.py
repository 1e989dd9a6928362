# SPDX-License-Identifier: Apache-2.0
"""Choose where training runs."""

from __future__ import annotations

import torch

from ..errors import BackendUnavailable, CAEError


def choose_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device of this process.

    Args:
        name: "auto" (the GPU numbered `local_rank`, else the CPU) or a torch device.
        local_rank: Number of this process on its machine.

    Raises:
        CAEError: Not the name of a device.
        BackendUnavailable: The device is not there.
    """
    if name == "auto":
        return (
            torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CAEError(f"device must be auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs; use device='cpu'"
        )
    return device
