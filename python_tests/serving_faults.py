# SPDX-License-Identifier: Apache-2.0
"""Classifiers that misbehave when an image tells them to: for servers under test.

The digits classifier, but for what the first pixels of any image of a batch ask for. Named to the
server as `serving_faults:classifier`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cae_fast.classifier import Classifier
from cae_fast.demo import model_folder

# Pixel values (0..255) at [0, 0] of an image whose pixel [0, 1] is MARK.
MARK = 201
FAULTS = {
    "hang": 10,
    "kill": 20,
    "abort": 30,
    "segfault": 40,
    "memory": 50,
    "raise": 60,
    "nan": 70,
    "slow": 80,
    "hold": 90,
}


def _misbehave(fault: str) -> None:
    if fault == "hang":
        while True:
            time.sleep(0.05)
    elif fault == "hold":  # with the interpreter's lock: not even a heartbeat
        ctypes.PyDLL(None).sleep(3600)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "abort":
        os.abort()
    elif fault == "segfault":
        ctypes.string_at(0)
    elif fault == "memory":
        raise MemoryError
    elif fault == "raise":
        raise RuntimeError(f"secret of {__file__} at {hex(id(fault))}, {threading.get_ident()}")
    elif fault == "slow":
        time.sleep(float(os.environ.get("CAE_TEST_SLOW_S", "0.3")))


def classifier() -> Classifier:
    """The digits classifier with faults.

    Every call takes CAE_TEST_SLEEP_S seconds longer; while the file CAE_TEST_HANG_FILE is there,
    none comes back.
    """
    inner = Classifier.load(model_folder("digits") / "classifier.onnx")
    sleep_s = float(os.environ.get("CAE_TEST_SLEEP_S", "0"))
    hang_file = os.environ.get("CAE_TEST_HANG_FILE", "")

    def classify(images: Any) -> Any:
        if sleep_s:
            time.sleep(sleep_s)
        while hang_file and os.path.exists(hang_file):
            time.sleep(0.05)
        pixels = np.rint((images[:, 0, 0, :2] + 1) * 127.5).astype(int)
        asked = {int(value) for value, mark in pixels if mark == MARK}
        for fault, value in FAULTS.items():
            if value in asked:
                _misbehave(fault)
        logits = inner(images)
        logits[(pixels[:, 1] == MARK) & (pixels[:, 0] == FAULTS["nan"])] = np.nan
        return logits

    labels = inner.labels
    return Classifier(classify, labels=labels, name="faulty")


def broken() -> Callable[[Any], Any]:
    """A classifier that cannot be loaded."""
    print("loading", file=sys.stderr)
    raise RuntimeError("this classifier is broken on purpose")
