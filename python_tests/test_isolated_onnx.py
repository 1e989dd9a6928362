# SPDX-License-Identifier: Apache-2.0
"""An ONNX classifier in a process of its own: the same answers, and its end is not ours."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from cli_workspace import write_linear_onnx

import cae_fast as cf
from cae_fast.testing import random_images, toy_model

pytest.importorskip("onnxruntime")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_linear_onnx(tmp_path / "c.onnx", toy_model(), ("a", "b", "c"))
    return tmp_path / "c.onnx"


def test_same_answers_and_metadata(file: Path) -> None:
    images = random_images(toy_model().config, 5)
    isolated, here = cf.Classifier.load(file, isolate=True), cf.Classifier.load(file)
    np.testing.assert_array_equal(isolated(images), here(images))
    assert (isolated.labels, isolated.sha256) == (here.labels, here.sha256)
    assert isolated.function._child.pid != os.getpid()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_process_that_dies_is_an_error_and_is_replaced(file: Path, number: int) -> None:
    images = random_images(toy_model().config, 2)
    classifier = cf.Classifier.load(file, isolate=True)
    expected = classifier(images)
    child = classifier.function._child
    child.send_signal(signal.SIGSTOP)
    classifier.function._timeout_s = 0.5
    with pytest.raises(cf.ClassifierError, match=r"c\.onnx: its process took more than 0\.5 s"):
        classifier(images)
    classifier.function._timeout_s = 60
    np.testing.assert_array_equal(classifier(images), expected)
    os.kill(classifier.function._child.pid, number)
    deadline = time.monotonic() + 10
    while classifier.function._child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    np.testing.assert_array_equal(classifier(images), expected)
    assert child.returncode == -signal.SIGKILL


def test_time_limit_holds_while_images_are_sent(file: Path) -> None:
    """More than a pipe holds, to a process that reads nothing of it."""
    images = random_images(toy_model().config, 2000)
    assert images.nbytes > 1 << 20
    classifier = cf.Classifier.load(file, isolate=True)
    network = classifier.function
    expected = network(images)
    assert len(expected) == len(images)
    child = network._child
    child.send_signal(signal.SIGSTOP)
    network._timeout_s = 0.5
    since = time.monotonic()
    with pytest.raises(cf.ClassifierError, match=r"c\.onnx: its process took more than 0\.5 s"):
        network(images)
    assert time.monotonic() - since < 10
    assert child.returncode == -signal.SIGKILL
    network._timeout_s = 60
    np.testing.assert_array_equal(network(images), expected)


def test_dying_while_it_loads_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cae_fast.isolated_onnx.sys.executable", "/bin/false")
    with pytest.raises(cf.ClassifierError, match="ended with code 1 while loading"):
        cf.Classifier.load(file, isolate=True)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_damaged_files(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(cf.ClassifierError, match=r"c\.onnx"):
        cf.Classifier.load(file, isolate=True)


def test_a_network_the_runtime_refuses_is_refused_in_one_line(file: Path) -> None:
    import onnx

    model = onnx.load(str(file))
    model.graph.node[0].op_type = "Flatter"
    onnx.save(model, str(file))
    with pytest.raises(cf.ClassifierError, match=r"^[^\n]*onnxruntime cannot load it[^\n]*$"):
        cf.Classifier.load(file, isolate=True)


def test_only_onnx_is_isolated(tmp_path: Path) -> None:
    (tmp_path / "c.pt2").write_bytes(b"x")
    with pytest.raises(cf.ClassifierError, match=r"only \.onnx files"):
        cf.Classifier.load(tmp_path / "c.pt2", isolate=True)
