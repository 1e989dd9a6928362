# SPDX-License-Identifier: Apache-2.0
"""The cuda backend given what it cannot use: arrays, memory, forks, and the end of a process."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_cases import run_sparingly

import cae_fast as cf
from cae_fast.arrays import to_numpy
from cae_fast.backends import cuda, select_backend
from cae_fast.testing import random_images, toy_model

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks and limits as Linux has")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parent)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_bad_arrays(gpu: str) -> None:
    model = toy_model()
    backend = select_backend("cuda", model, device=gpu, max_batch=2)
    images = random_images(model.config, 1)
    codes, zero = np.zeros((1, 4), np.float32), np.zeros(1, np.int32)
    individual = np.zeros((1, *model.config.individual_shape), np.float32)
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 16, 16\], got \[1, 16, 16\]"):
        backend.encode(images[0])
    for encode in (backend.encode, backend.encode_class):
        with pytest.raises(ValueError, match="images must be float32, got float64"):
            encode(images.astype(np.float64))
    with pytest.raises(ValueError, match=r"individual must be \[N, 16, 4, 4\], got \[1, 15, 4, 4"):
        backend.decode(individual[:, 1:], codes, zero)
    with pytest.raises(ValueError, match=r"class_code must be \[M, 4\], got \[1, 3\]"):
        backend.decode(individual, codes[:, 1:], zero)
    with pytest.raises(ValueError, match=r"image_index must be \[1\], got \[2\]"):
        backend.decode(individual, codes, np.zeros(2, np.int32))
    for index in (-1, 1):
        with pytest.raises(ValueError, match=f"image_index must be in .*, got {index}"):
            backend.decode(individual, codes, zero + np.int32(index))
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        backend.session(individual, codes[:, None], 0)
    with pytest.raises(ValueError, match=r"vertices must be \[1, V, 4\], got \[2, 1, 4\]"):
        backend.session(individual, np.zeros((2, 1, 4)), 4)
    session = backend.session(individual, codes[:, None], 4)
    for step in (-1, 5):
        with pytest.raises(ValueError, match=f"step must be in .*, got {step}"):
            session.decode(zero, zero + np.int32(step))
    explainer = cf.Explainer(model, lambda x: x, backend="cuda", device=gpu)
    with pytest.raises(ValueError, match="images must be float32"):
        explainer.explain(images.astype(np.float64))


def test_bad_inputs_of_a_search(gpu: str) -> None:
    """Each is named; paths in memory of the device serve as those of NumPy do."""
    model = toy_model()
    backend = select_backend("cuda", model, device=gpu, max_batch=2)
    assert isinstance(backend, cuda.CudaBackend)
    module = backend.module
    search = module.GpuSearch(backend.engine, None, images=2, num_classes=3, grid=4)
    images, ones = random_images(model.config, 2), np.ones(2, np.int32)
    paths = np.random.default_rng(0).normal(0, 1, (2, 2, 4)).astype(np.float32)
    good = {
        "images": images,
        "wanted": ones,
        "reachable": np.ones(3, np.int32),
        "left_out": ones * 0,
        "paths": paths,
    }
    for name, bad, said in (
        ("images", images[:1], r"images must be \[2, 1, 16, 16\], got \[1, 1, 16, 16\]"),
        ("images", images.astype(np.float64), "images must be float32"),
        ("wanted", ones[:1], r"wanted must be \[2\], got \[1\]"),
        ("reachable", ones, r"reachable must be \[3\], got \[2\]"),
        ("left_out", ones.astype(np.int64), "left_out must be int32"),
        ("paths", paths[:, :, 1:], r"paths must be \[2, 2, 4\], got \[2, 2, 3\]"),
    ):
        with pytest.raises(ValueError, match=said):
            search.set_inputs(**(good | {name: bad}))
    points = []
    for given in (paths, module.DeviceArray.from_host(paths)):
        search.set_inputs(**(good | {"paths": given}))
        search.begin(np.array([[2, 1, 0]] * 2, np.float32), True)
        points.append(search.decode(0).numpy())
    np.testing.assert_array_equal(*points)
    found = search.result()
    assert found["status"].shape == (2,)
    np.testing.assert_array_equal(found["class_code"], backend.encode_class(images))


def test_nan_stays_in_its_image(gpu: str) -> None:
    model = toy_model()
    backend = select_backend("cuda", model, device=gpu, max_batch=2)
    images = random_images(model.config, 2)
    clean, clean_codes = backend.encode(images)
    images[1, 0, 5, 5] = np.nan
    broken, codes = backend.encode(images)
    assert np.isnan(to_numpy(broken)[1]).any()
    assert np.isnan(codes[1]).any()
    np.testing.assert_array_equal(to_numpy(broken)[0], to_numpy(clean)[0])
    np.testing.assert_array_equal(codes[0], clean_codes[0])
    decoded = to_numpy(backend.decode(broken, clean_codes, np.arange(2, dtype=np.int32)))
    assert np.isnan(decoded[1]).any()
    assert np.isfinite(decoded[0]).all()


def test_more_in_flight_than_the_engine_counts(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LARGEST_BATCH", 3)
    assert select_backend("cuda", toy_model(), device=gpu, max_batch=2**31 - 1).max_batch == 3


class Streams:
    """Stands in for torch.cuda: a stream that is current, and whether torch uses the GPU."""

    def __init__(self) -> None:
        self.used = False
        self.handle = 0xABC

    def is_initialized(self) -> bool:
        return self.used

    def current_stream(self, index: int) -> Any:
        return types.SimpleNamespace(cuda_stream=self.handle + index)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[Streams]:
    streams = Streams()
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=streams))
    return streams


def test_work_is_queued_on_the_stream_of_torch(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for GPU 2: torch's current stream of that GPU, where torch uses one at all."""
    backend = select_backend("cuda", toy_model(), device="emu", max_batch=1)
    assert backend.queue() == 0  # the emulator has no streams
    monkeypatch.setattr(backend, "index", 2)
    assert backend.queue() == 0
    streams.used = True
    assert backend.queue() == 0xABC + 2
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))  # half imported
    assert backend.queue() == 0


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, numpy as np, cae_fast as cf\n"
        "from cae_fast.testing import random_images, toy_classifier, toy_model\n"
        "model = toy_model()\n"
        "clf = toy_classifier(model.config)\n"
        "explainer = cf.Explainer(model, clf, backend='cuda', device='emu')\n"
        "codes = np.ones((1, 4), np.float32)\n"
        "explainer.explain(random_images(model.config, 1), 'any', codes, tolerance=1, coarse=1)\n"
        "print('torch' in sys.modules)\n"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


FORK = """
import os, sys
import numpy as np
import cae_fast as cf
from cae_fast.backends import select_backend
from cae_fast.testing import random_images, toy_model

model, device = toy_model(), sys.argv[1]
backend = select_backend("cuda", model, device=device, max_batch=1)
images = random_images(model.config, 1)
individual, codes = backend.encode(images)
session = backend.session(individual, codes[:, None], 4)
zero = np.zeros(1, np.int32)
child = os.fork()
if child == 0:
    code = 1
    try:
        calls = (
            lambda: backend.encode(images),
            lambda: backend.encode_class(images),
            lambda: backend.decode(np.zeros((1, 16, 4, 4), np.float32), codes, zero),
            lambda: session.decode(zero, zero),
        )
        for call in calls:
            try:
                call()
            except cf.BackendUnavailable as error:
                assert "before this process was forked" in str(error), error
                assert "spawn" in str(error) and "\\n" not in str(error), error
            else:
                raise AssertionError("no error")
        if device == "emu":
            fresh = select_backend("cuda", model, device=device, max_batch=1)
            np.testing.assert_array_equal(fresh.encode_class(images), codes)
        else:
            try:
                select_backend("cuda", model, device=device)
            except cf.BackendUnavailable as error:
                assert "was in use before this process was forked" in str(error), error
            else:
                raise AssertionError("no error")
        del backend, session, individual
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
np.testing.assert_array_equal(backend.encode_class(images), codes)
sys.exit(status)
"""


@needs_linux
def test_a_fork_gets_a_clear_error(gpu: str) -> None:
    """The child's calls raise and nothing hangs; the parent goes on."""
    done = run_python(f"import sys; sys.argv = ['-c', {gpu!r}]\n" + FORK)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_engine_on_a_gpu_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from the child: its parent, another process, has used CUDA."""
    status = {"built": True, "reason": "", "devices": [], "error": "initialization error"}
    monkeypatch.setattr("cae_fast._backend.cuda_status", lambda: status)
    monkeypatch.setattr(cuda, "_made_in", {os.getpid()})
    assert cuda.why_unusable(0) == "no usable GPU: initialization error"
    monkeypatch.setattr(cuda, "_made_in", {os.getppid()})
    assert "CUDA was in use before this process was forked" in cuda.why_unusable(0)


@pytest.mark.parametrize("daemon", [False, True])
def test_process_ends_while_a_thread_works(daemon: bool, gpu: str) -> None:
    work = "while True:\n        work()" if daemon else "work()"
    done = run_python(
        "import threading, time\n"
        "from cae_fast.backends import select_backend\n"
        "from cae_fast.testing import random_images, toy_model\n"
        "model = toy_model()\n"
        f"backend = select_backend('cuda', model, device={gpu!r}, max_batch=1)\n"
        "images = random_images(model.config, 1)\n"
        "def work():\n    backend.encode(images)\n"
        f"def run():\n    {work}\n"
        f"threading.Thread(target=run, daemon={daemon}).start()\n"
        "time.sleep(0.2)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_linux
def test_what_does_not_fit_is_halved() -> None:
    """In the emulator, whose device memory is the process's: workspace, then sessions, then all."""
    done = run_sparingly(
        """
from cae_fast.backends import select_backend
model, wide = toy_model(), toy_model(channels=48)
images = random_images(model.config, 2)
first = select_backend("cuda", model, device="emu", max_batch=1)
individual, codes = first.encode(images)  # the emulator's threads have their stacks now
leave(256)
backend = select_backend("cuda", model, device="emu", max_batch=65535)
assert 16 < backend.max_batch < 65535 and backend.max_batch in {65535 >> i for i in range(16)}
np.testing.assert_array_equal(backend.encode_class(images), codes)
del backend
leave(1)
text = refusal(select_backend, "cuda", wide, device="emu", max_batch=2)
assert "weights and buffers of the model do not fit: max_batch=2 was tried and halved" in text, text
leave(64)
clf = lambda images: np.zeros((len(images), 3), np.float32)
explainer = cf.Explainer(model, clf, backend="cuda", device="emu", max_batch=8)
leave(4)
many = np.broadcast_to(images[:1], (4096, 1, 16, 16))
text = refusal(explainer.encode, many)
assert "codes of 4096 images do not fit" in text, text
np.testing.assert_array_equal(explainer.encode(images).class_code, codes)
leave(None)
print("alive")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
