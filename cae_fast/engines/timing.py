# SPDX-License-Identifier: Apache-2.0
"""Timings of kernels that `tensorrt` keeps between builds; `tensorrt_rtx` takes none."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import atomic_write, made_parents
from .flavours import Flavour

_MODE = 0o600
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class TimingCache:
    """Files of timings, one for each version and GPU: a sha256 (an HMAC given a key), then data.

    What does not match is left out; the build then takes the timings anew.

    Attributes:
        folder: Where they lie.
        key: Signs them.
    """

    folder: Path
    key: bytes | None = None

    def attach(self, config: Any, flavour: Flavour, gpus: tuple[str, ...]) -> None:
        """Gives a builder configuration the timings of earlier builds."""
        cache = config.create_timing_cache(self._read(self._path(flavour, gpus)))
        config.set_timing_cache(cache, ignore_mismatch=False)

    def keep(self, config: Any, flavour: Flavour, gpus: tuple[str, ...]) -> None:
        """Writes what a build has timed."""
        cache = config.get_timing_cache()
        if cache is None:
            return
        data = bytes(cache.serialize())
        path = self._path(flavour, gpus)
        with made_parents(path), atomic_write(path, mode=_MODE) as temporary:
            temporary.write_bytes(self._digest(data) + data)

    def _path(self, flavour: Flavour, gpus: tuple[str, ...]) -> Path:
        return self.folder / f"{flavour.name}-{flavour.version}-{'-'.join(gpus)}.timing"

    def _read(self, path: Path) -> bytes:
        try:
            written = path.read_bytes()
        except OSError:
            return b""
        data = written[_DIGEST_BYTES:]
        good = hmac.compare_digest(written[:_DIGEST_BYTES], self._digest(data))
        return data if good else b""

    def _digest(self, data: bytes) -> bytes:
        if self.key is not None:
            return hmac.new(self.key, data, hashlib.sha256).digest()
        return hashlib.sha256(data).digest()
