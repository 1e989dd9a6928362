# SPDX-License-Identifier: Apache-2.0
"""A Ray that is started for one command, or one that runs already."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cae_fast.errors import BackendUnavailable, CAEError, missing_extra

#: Ray takes no less.
LEAST_STORE_MB = 80
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def ray_session(
    address: str | None = None, *, cpus: int | None = None, store_mb: int = 200
) -> Iterator[Any]:
    """Ray for the length of a block; one that the caller has connected to is taken as it is.

    Without an address Ray is started on this machine, without its dashboard, and ends with the
    block. Its ports listen on every address of the machine, whatever it is told: it asks for a
    token (`RAY_AUTH_MODE=token`, one made for the session where none is set). It reports nothing
    (`RAY_USAGE_STATS_ENABLED=0`). What the environment says otherwise stays.

    Args:
        address: Of a Ray cluster, such as "10.0.0.5:6379" or "auto"; its token must be set.
        cpus: CPUs that a Ray started here hands out; None: all.
        store_mb: Its object store, MB; little is kept there, since workers read and write files.

    Yields:
        The module `ray`.

    Raises:
        MissingExtra: Ray is not installed.
        CAEError: `cpus` or `store_mb` is out of range.
        BackendUnavailable: The cluster cannot be reached, or refuses.
    """
    if store_mb < LEAST_STORE_MB:
        raise CAEError(f"store_mb must be at least {LEAST_STORE_MB}, got {store_mb}")
    if cpus is not None and cpus < 1:
        raise CAEError(f"cpus must be at least 1, got {cpus}")
    set_environment(make_token=address is None)
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray") from None
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(
                num_cpus=cpus,
                object_store_memory=store_mb * 2**20,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = address or "a Ray of its own"
        reason = " ".join(str(error).split())
        raise BackendUnavailable(f"{where} cannot be used: {reason[:300]}") from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of workers that ended
            yield ray
    finally:
        ray.shutdown()


def set_environment(*, make_token: bool) -> None:
    """Sets what Ray reads while it is imported; what is set already stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    kept = Path.home() / ".ray" / "auth_token"
    known = any(os.environ.get(name) for name in _TOKEN_VARIABLES) or kept.is_file()
    if make_token and mode == "token" and not known:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
