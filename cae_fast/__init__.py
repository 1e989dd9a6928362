# SPDX-License-Identifier: Apache-2.0
"""cae_fast: fast, honest explanations of image classifiers by class association embedding.

Conventions used everywhere: images are float32 [N, C, H, W] in [-1, 1]; class codes [N, D];
individual codes [N, 4 * channels, H / 4, W / 4]; logits [N, K]; positions t on a guided path lie
in [0, 1].

Importing the package loads no torch; names are resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._backend import build_config, set_num_threads
    from .bank import CodeBank
    from .classifier import Classifier
    from .client import Client
    from .codec import Codes
    from .colors import overlay
    from .data import ImageDataset
    from .environment import info
    from .errors import (
        BackendUnavailable,
        BankError,
        CAEError,
        ClassifierError,
        ExtensionMissing,
        ImageDecodeError,
        MissingExtra,
        ModelFileError,
        OutOfMemory,
        ServiceError,
    )
    from .explainer import Explainer
    from .explanation import Explanation
    from .images import load_images
    from .model import CAE, CAEConfig

# No public function shares its module's name: importing the module would hide the function.
_HOMES = {
    "_backend": ("build_config", "set_num_threads"),
    "bank": ("CodeBank",),
    "classifier": ("Classifier",),
    "client": ("Client",),
    "colors": ("overlay",),
    "data": ("ImageDataset",),
    "environment": ("info",),
    "errors": (
        "BackendUnavailable",
        "BankError",
        "CAEError",
        "ClassifierError",
        "ExtensionMissing",
        "ImageDecodeError",
        "MissingExtra",
        "ModelFileError",
        "OutOfMemory",
        "ServiceError",
    ),
    "explainer": ("Explainer",),
    "codec": ("Codes",),
    "explanation": ("Explanation",),
    "images": ("load_images",),
    "model": ("CAE", "CAEConfig"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CAE",
    "BackendUnavailable",
    "BankError",
    "CAEConfig",
    "CAEError",
    "Classifier",
    "ClassifierError",
    "Client",
    "CodeBank",
    "Codes",
    "Explainer",
    "Explanation",
    "ExtensionMissing",
    "ImageDataset",
    "ImageDecodeError",
    "MissingExtra",
    "ModelFileError",
    "OutOfMemory",
    "ServiceError",
    "__version__",
    "build_config",
    "info",
    "load_images",
    "overlay",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    """Resolves a public name on first use."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("cae-fast")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
