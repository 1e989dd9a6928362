# SPDX-License-Identifier: Apache-2.0
"""The service: explanations over HTTP.

`create_app(settings)` gives the ASGI app, `serve(settings)` runs it. A request goes through `edge`
(its id, token, refusals), a route (`routes_*`, which reads it by `asking` or `tensors`), the
`batcher`, an engine (`engine_process` with `engine_main` behind it, or `engines.LocalEngine`; both
run a `core`), and back through `answers`. `service` puts the parts together.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "ModelFiles": "settings",
    "Settings": "settings",
    "create_app": "app",
    "load_settings": "settings",
    "serve": "server",
}

__all__ = ["ModelFiles", "Settings", "create_app", "load_settings", "serve"]


def __getattr__(name: str) -> Any:
    """Resolves a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
