# SPDX-License-Identifier: Apache-2.0
"""Python processes with little memory, for the tests of what happens when it runs out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Without these, threads and allocators take address space by the gigabyte, and keep what is freed.
_SPARING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "CAE_EMU_THREADS": "1",  # a second one gets its stacks when it first comes in time for a block
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

_HEAD = """
import gc, resource, sys
import numpy as np
import cae_fast as cf
from cae_fast import _backend
from cae_fast.testing import random_images, toy_classifier, toy_model
from explain_cases import assert_same

MIB = 1024**2

def leave(mebibytes):
    "Lets the process have so much more than it has now; None lifts the limit."
    gc.collect()
    if mebibytes is None:
        wanted = resource.RLIM_INFINITY
    else:
        pages = int(open("/proc/self/statm").read().split()[0])
        wanted = pages * resource.getpagesize() + int(mebibytes * MIB)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, resource.RLIM_INFINITY))

def refusal(call, *arguments, **options):
    "Message of the OutOfMemory that a call raises."
    try:
        call(*arguments, **options)
    except cf.OutOfMemory as error:
        assert isinstance(error, MemoryError)
        assert error.__context__ is None, "what did not fit must not be kept"
        text = str(error)
        assert text.startswith("out of memory: ") and "\\n" not in text, text
        return text
    raise AssertionError("it fitted")
"""


def run_sparingly(code: str, *, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs `code` after the imports and helpers above, in a process of its own."""
    here = str(Path(__file__).resolve().parent)
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", _HEAD + code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | _SPARING | {"PYTHONPATH": path},
    )
