# SPDX-License-Identifier: Apache-2.0
"""What the function of a classifier wants its images to be: where, in which dtype and layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from .arrays import Float32, Kind, is_module, kind_of

NARROW_BYTES = 2  # numbers of so many bytes and fewer are made last, of float32


@dataclass(frozen=True)
class InputForm:
    """How the decoder's last kernel writes images for a classifier, all steps done.

    Attributes:
        dtype: "float32" or "float16".
        channels: 3 for images of 1: grey, three times.
        channels_last: [N, H, W, C] in memory.
        mean: Subtracted from images in [0, 1], by channel; None: images stay in [-1, 1].
        std: What they are divided by then, by channel; None as `mean`.
    """

    dtype: str
    channels: int
    channels_last: bool
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """As the native search takes it."""
        return asdict(self)


def form_of(
    fn: Any, have: int, want: int | None, mean: Float32 | None, std: Float32 | None
) -> InputForm | None:
    """The form in which a torch function gets images of `have` channels, size as it is.

    Args:
        fn: The function; a module says its dtype and layout by its parameters.
        have: Channels of the images.
        want: Channels that the function takes, None: any.
        mean: One number, or one per channel; None: 0.
        std: One number, or one per channel; None: 1.

    Returns:
        None where images serve as they are, or the kernel cannot make what the function wants.
    """
    dtype, channels_last = "float32", False
    if is_module(fn):
        place = module_place(fn)
        dtype = "float32" if place is None else str(place[1]).removeprefix("torch.")
        channels_last = _is_channels_last(fn)
    channels = want or have
    normalised = mean is not None or std is not None
    if dtype not in ("float32", "float16") or (channels != have and (have, channels) != (1, 3)):
        return None
    if not (normalised or channels_last or dtype != "float32" or channels != have):
        return None
    columns = []
    for numbers, neutral in ((mean, 0.0), (std, 1.0)):
        column = [neutral] if numbers is None else [float(number) for number in numbers]
        if len(column) not in (1, channels):
            return None
        columns.append(tuple(column * channels if len(column) == 1 else column))
    return InputForm(
        dtype=dtype,
        channels=channels,
        channels_last=channels_last,
        mean=columns[0] if normalised else None,
        std=columns[1] if normalised else None,
    )


def module_place(module: Any) -> tuple[Any, Any] | None:
    """Device and floating dtype of a torch module, of its first floating parameter or buffer."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return None


def _is_channels_last(module: Any) -> bool:
    """Whether weights of convolutions lie so: then torch wants images that do, too."""
    import torch

    return any(
        parameter.dim() == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in module.parameters()
    )


def as_dtype(array: Any, template: Any) -> Any:
    """An array of the same kind in the dtype of `template`."""
    if array.dtype == template.dtype:
        return array
    return array.to(template.dtype) if kind_of(array) == "torch" else array.astype(template.dtype)


@contextmanager
def inference(fn: Any, arrays: Kind | None) -> Iterator[None]:
    """No gradients for torch functions; eval mode for a module, undone afterwards."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or arrays in ("numpy", "cupy"):
        yield
        return
    training = [part for part in fn.modules() if part.training] if is_module(fn) else []
    with torch.no_grad():
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True
