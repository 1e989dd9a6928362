# SPDX-License-Identifier: Apache-2.0
"""GPUs by name: what users call them, and the architecture that engines are built for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ..errors import EngineError

# Architecture -> products. From NVIDIA's list of compute capabilities, developer.nvidia.com.
GPUS: dict[str, tuple[str, ...]] = {
    "sm75": ("T4", "RTX 2060", "RTX 2070", "RTX 2080", "RTX 2080 Ti", "Quadro RTX 6000"),
    "sm80": ("A100", "A30", "A800"),
    "sm86": (
        *("A10", "A16", "A2", "A40", "RTX A2000", "RTX A4000", "RTX A5000", "RTX A6000"),
        *("RTX 3050", "RTX 3060", "RTX 3070", "RTX 3080", "RTX 3090"),
    ),
    "sm87": ("Jetson AGX Orin", "Jetson Orin NX", "Jetson Orin Nano"),
    "sm89": (
        *("L4", "L40", "L40S", "RTX 6000 Ada", "RTX 5000 Ada", "RTX 4000 Ada", "RTX 2000 Ada"),
        *("RTX 4060", "RTX 4070", "RTX 4080", "RTX 4090"),
    ),
    "sm90": ("H100", "H200", "GH200"),
    "sm100": ("B200", "GB200"),
    "sm103": ("B300", "GB300"),
    "sm110": ("Jetson Thor",),
    "sm120": (
        *("RTX PRO 6000 Blackwell", "RTX PRO 5000 Blackwell", "RTX PRO 4000 Blackwell"),
        *("RTX 5050", "RTX 5060", "RTX 5070", "RTX 5080", "RTX 5090"),
    ),
    "sm121": ("GB10", "DGX Spark"),
}


def _plain(name: str) -> str:
    """A name without what people spell differently."""
    words = re.sub(r"nvidia|geforce|tesla|generation|laptop|gpu", " ", name.lower())
    return re.sub(r"[^a-z0-9]", "", words)


_BY_NAME = {_plain(product): arch for arch, products in GPUS.items() for product in products}


def architecture(name: str) -> str:
    """The architecture of a GPU, such as "sm89".

    Args:
        name: "sm89", "8.9", or a product such as "RTX 4090" or "l40s".

    Raises:
        EngineError: Unknown; the message lists the known ones, and the nearest first.
    """
    text = name.strip().lower()
    numbers = re.fullmatch(r"(?:sm_?)?(\d{2,3})|(\d{1,2})\.(\d)", text)
    if numbers:
        arch = f"sm{numbers.group(1) or numbers.group(2) + numbers.group(3)}"
        if arch in GPUS:
            return arch
    plain = _plain(text)
    if plain in _BY_NAME:
        return _BY_NAME[plain]
    without_suffix = re.sub(r"(ti|super|\d+gb|sxm\d?|pcie|nvl)+.*$", "", plain)
    if without_suffix in _BY_NAME:
        return _BY_NAME[without_suffix]
    products = {product.lower(): product for all_of in GPUS.values() for product in all_of}
    near = difflib.get_close_matches(text, [*GPUS, *products], n=1)
    hint = f", did you mean {products.get(near[0], near[0])}" if near else ""
    known = "; ".join(f"{arch} ({', '.join(of)})" for arch, of in GPUS.items())
    raise EngineError(f"unknown GPU {name!r}{hint}; known are {known}")


def architectures(names: Sequence[str], served: Sequence[str], builder: str) -> tuple[str, ...]:
    """Architectures of several GPUs, each once, in the order of `served`.

    Args:
        names: As for :func:`architecture`.
        served: What the builder can build for.
        builder: Its name, for messages.

    Raises:
        EngineError: A GPU is unknown, or the builder cannot build for it.
    """
    asked = {architecture(name): name for name in names}
    for arch, name in asked.items():
        if arch not in served:
            raise EngineError(
                f"{builder} cannot build for {name!r} ({arch}) here, only for {', '.join(served)}; "
                "build with the package tensorrt on a machine with that GPU, or use backend 'cuda'"
            )
    return tuple(arch for arch in served if arch in asked)
