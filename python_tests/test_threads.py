# SPDX-License-Identifier: Apache-2.0
"""The thread pool seen from Python: counts, concurrent callers, forks, and the end of a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cae_fast import _backend
from cae_fast.testing import random_images, toy_model

MODEL = toy_model(image_size=32, channels=6, in_channels=3)
CHILD_TIMEOUT_S = 120


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    threads = _backend.get_num_threads()
    yield
    _backend.set_num_threads(threads)


@pytest.fixture(scope="module")
def engine() -> _backend.Engine:
    return _backend.Engine(MODEL.config.to_dict(), dict(MODEL.weights), max_batch=2)


def run_all(engine: _backend.Engine, count: int = 3) -> list[np.ndarray]:
    """Everything an engine computes, from the same inputs each time."""
    images = random_images(MODEL.config, count)
    individual, codes = engine.encode(images)
    index = np.arange(count, dtype=np.int32)
    decoded = engine.decode(individual, codes[::-1].copy(), index)
    vertices = np.stack([codes, codes[::-1]], axis=1)
    session = engine.session(individual, vertices, 64)
    return [individual, codes, decoded, session.decode(index, index)]


def check_equal(value: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(value, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parent)])
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=CHILD_TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize("channels", [6, 33], ids=["one panel", "ragged panels"])
def test_results_do_not_depend_on_the_number_of_threads(channels: int) -> None:
    model = toy_model(image_size=32, channels=channels, in_channels=3)
    engine = _backend.Engine(model.config.to_dict(), dict(model.weights), max_batch=2)
    _backend.set_num_threads(1)
    expected = run_all(engine)
    for threads in (2, 5, 3, 1):
        _backend.set_num_threads(threads)
        assert _backend.get_num_threads() == threads
        check_equal(run_all(engine), expected)


@pytest.mark.parametrize("threads", [0, -1, 257, 10**6, 2**31, 2**32 + 1, 10**30, -(10**30)])
def test_impossible_numbers_of_threads(threads: int) -> None:
    before = _backend.get_num_threads()
    with pytest.raises(ValueError, match=rf"num_threads must be in 1\.\.256, got {threads}$"):
        _backend.set_num_threads(threads)
    assert _backend.get_num_threads() == before


@pytest.mark.parametrize("threads", ["2", 2.0, None, True, False, np.True_], ids=repr)
def test_threads_that_are_no_integer(threads: object) -> None:
    expected = re.escape(f"num_threads must be an integer in 1..256, got {threads!r}")
    with pytest.raises(TypeError, match=f"^{expected}$"):
        _backend.set_num_threads(threads)  # type: ignore[arg-type]


def test_threads_as_numpy_counts_them() -> None:
    before = _backend.get_num_threads()
    try:
        _backend.set_num_threads(np.int64(3))  # type: ignore[arg-type]
        assert _backend.get_num_threads() == 3
    finally:
        _backend.set_num_threads(before)


def test_default_is_what_the_process_may_use() -> None:
    cores = len(os.sched_getaffinity(0))
    result = run_python("from cae_fast import _backend; print(_backend.get_num_threads())")
    assert 1 <= int(result.stdout) <= cores
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    result = run_python(one + "from cae_fast import _backend; print(_backend.get_num_threads())")
    assert result.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("value", "cap"), [("1", 1), ("1,4", 1), ("9999", 256), ("0", 256), ("-1", 256), ("many", 256)]
)
def test_default_is_capped_by_omp_num_threads(
    monkeypatch: pytest.MonkeyPatch, value: str, cap: int
) -> None:
    script = "from cae_fast import _backend; print(_backend.get_num_threads())"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    without = int(run_python(script).stdout)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert int(run_python(script).stdout) == min(without, cap)


def test_callers_in_many_threads(engine: _backend.Engine) -> None:
    """Two engines and six callers at once, each with its own batch size."""
    _backend.set_num_threads(2)
    other = _backend.Engine(MODEL.config.to_dict(), dict(MODEL.weights), max_batch=1)
    expected = {count: run_all(engine, count) for count in (1, 2, 3)}

    def call(i: int) -> None:
        for _ in range(3):
            count = 1 + i % 3
            check_equal(run_all(other if i % 2 else engine, count), expected[count])

    with ThreadPoolExecutor(6) as executor:
        list(executor.map(call, range(6)))


def test_number_of_threads_may_change_while_others_work(engine: _backend.Engine) -> None:
    expected = run_all(engine)
    stop = threading.Event()

    def change() -> None:
        threads = 1
        while not stop.is_set():
            threads = threads % 4 + 1
            _backend.set_num_threads(threads)
            stop.wait(0.001)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(10):
            check_equal(run_all(engine), expected)
    finally:
        stop.set()
        changer.join()


def test_the_interpreter_runs_on_during_work(engine: _backend.Engine) -> None:
    """The lock of the interpreter is free while an engine works."""
    images = random_images(MODEL.config, 64)
    done = threading.Event()
    ticks = 0

    def work() -> None:
        for _ in range(3):
            engine.encode(images)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not done.wait(0.001):
        ticks += 1
    worker.join()
    assert ticks >= 3


FORK = """
import os, sys, threading
import numpy as np
import test_threads as t

engine = t._backend.Engine(t.MODEL.config.to_dict(), dict(t.MODEL.weights), max_batch=2)
t._backend.set_num_threads(3)
expected = t.run_all(engine)
{before}
child = os.fork()
if child == 0:
    code = 1
    try:
        assert t._backend.get_num_threads() == 3
        t.check_equal(t.run_all(engine), expected)
        fresh = t._backend.Engine(t.MODEL.config.to_dict(), dict(t.MODEL.weights))
        t.check_equal(t.run_all(fresh), expected)
        code = 0
    finally:
        os._exit(code)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
t.check_equal(t.run_all(engine), expected)
{after}
sys.exit(status)
"""

BUSY = """
stop = threading.Event()
def work():
    while not stop.is_set():
        t.run_all(engine)
worker = threading.Thread(target=work)
worker.start()
"""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "while another thread works"])
def test_fork_after_use(busy: bool) -> None:
    """Both go on: the parent with its pool, the child with a new one."""
    script = FORK.format(
        before=BUSY if busy else "", after="stop.set(); worker.join()" if busy else ""
    )
    result = run_python("import warnings; warnings.simplefilter('ignore')\n" + script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "ending",
    ["", "import threading\nthreading.Thread(target=t.run_all, args=(engine, 40)).start()"],
    ids=["idle", "while a thread works"],
)
def test_process_ends_cleanly(ending: str) -> None:
    script = (
        "import test_threads as t\n"
        "engine = t._backend.Engine(t.MODEL.config.to_dict(), dict(t.MODEL.weights))\n"
        f"t.run_all(engine)\n{ending}\n"
    )
    result = run_python(script)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_process_ends_while_a_daemon_thread_works() -> None:
    script = (
        "import threading, test_threads as t\n"
        "engine = t._backend.Engine(t.MODEL.config.to_dict(), dict(t.MODEL.weights))\n"
        "def work():\n"
        "    while True:\n"
        "        t.run_all(engine)\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "t.run_all(engine)\n"
    )
    result = run_python(script)
    assert result.returncode == 0, result.stderr
