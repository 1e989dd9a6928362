# SPDX-License-Identifier: Apache-2.0
"""Engines that hang, die or fail under a real server: what its other requests see."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from serving_cases import DIGITS, ROOT, Server, digits_arguments, faulty_png, serving

FAULTY = digits_arguments("serving_faults:classifier")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(*FAULTY, "--log", "json", env={"CAE_TEST_SLOW_S": "0.5"}) as running:
        yield running


def leaks(text: str) -> bool:
    """Whether a body tells of paths, addresses or code."""
    return bool(re.search(r"0x[0-9a-f]{4,}|Traceback|\.py\b|/work|/home|/tmp|/usr|site-pack", text))


@pytest.mark.parametrize("fault", ["kill", "abort", "segfault"])
def test_worker_dies(server: Server, fault: str) -> None:
    server.wait_ready()
    restarts = server.metric("engine_restarts")
    (before,) = server.engines
    images = [faulty_png(None, i % 12) for i in range(7)]
    with ThreadPoolExecutor(8) as pool:
        mates = [pool.submit(server.explain, image) for image in images]
        bad = pool.submit(server.explain, faulty_png(fault))
        good = [mate.result() for mate in mates]
        refused = bad.result()
    # Tried twice, alone the second time: whoever was in its batch is answered.
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "engine_lost"
    assert refused.headers["retry-after"]
    assert [answer.status_code for answer in good] == [200] * 7
    server.wait_ready()
    assert server.metric("engine_restarts") == restarts + 2
    (after,) = server.engines
    assert after.pid != before.pid
    assert not psutil.pid_exists(before.pid) or before.status() == psutil.STATUS_ZOMBIE


def test_killed_engine_is_noticed_and_replaced(server: Server) -> None:
    server.wait_ready()
    (engine,) = server.engines
    os.kill(engine.pid, signal.SIGKILL)
    assert server.wait_ready(2, ready=False) < 2
    waiting = server.explain()  # waits for the new engine
    assert waiting.status_code == 200
    server.wait_ready()
    assert len(server.engines) == 1


def test_stopped_engine_is_replaced() -> None:
    """No sign of life: the process is there and does nothing."""
    with serving(*write_config("heartbeat_s = 1")) as server:
        (engine,) = server.engines
        engine.suspend()
        assert server.explain(timeout_ms="500").status_code == 504
        assert server.explain().status_code == 200
        assert server.engines[0].pid != engine.pid


def write_config(*lines: str) -> list[str]:
    """Arguments for a config file with the faulty digits."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    models = [
        "[models.digits]",
        f'model = "{DIGITS / "model.safetensors"}"',
        'classifier = "serving_faults:classifier"',
        f'bank = "{DIGITS / "bank.csv"}"',
    ]
    (folder / "service.toml").write_text("\n".join([*lines, *models]))
    return ["--config", str(folder / "service.toml")]


@pytest.mark.parametrize("fault", ["hang", "hold"])
def test_hung_batch_is_ended(fault: str) -> None:
    arguments = write_config("hang_s = 1.5", "heartbeat_s = 3", "deadline_s = 20")
    with serving(*arguments) as server, ThreadPoolExecutor(4) as pool:
        bad = pool.submit(server.explain, faulty_png(fault))
        time.sleep(0.3)
        impatient = pool.submit(server.explain, None, timeout_ms="300")
        patient = pool.submit(server.explain)
        assert impatient.result().status_code == 504
        assert patient.result().status_code == 200
        assert bad.result().status_code == 503
        assert server.http.get("/v2/health/live").status_code == 200
        server.wait_ready()


def test_hung_canary_ends_the_engine(tmp_path: Path) -> None:
    """Nobody asks anything: the engine's own trial finds out that it hangs."""
    file = tmp_path / "hang"
    arguments = write_config("hang_s = 1", "canary_s = 0.8")
    with serving(*arguments, env={"CAE_TEST_HANG_FILE": str(file)}) as server:
        (before,) = server.engines
        file.touch()
        assert server.wait_ready(15, ready=False) < 15
        psutil.wait_procs([before], timeout=5)
        file.unlink()
        server.wait_ready()
        assert server.explain().status_code == 200
        assert server.engines[0].pid != before.pid


def test_hung_in_process_is_not_live() -> None:
    arguments = [*write_config("hang_s = 0.5", "drain_s = 1"), "--in-process"]
    server = Server(*arguments)
    try:
        assert server.explain(faulty_png("hang"), timeout_ms="900").status_code == 504
        assert server.http.get("/v2/health/live").status_code == 503
        assert server.http.get("/v2/health/ready").status_code == 503
    finally:
        server.process.kill()
        server.process.wait(5)


@pytest.mark.parametrize(("fault", "status"), [("raise", 500), ("memory", 503)])
def test_poisoned_item_fails_alone(server: Server, fault: str, status: int) -> None:
    server.wait_ready()
    images = [faulty_png(None, i % 12) for i in range(7)]
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(server.explain, faulty_png("slow"))  # company gathers behind it
        time.sleep(0.1)
        mates = [pool.submit(server.explain, image) for image in images]
        bad = pool.submit(server.explain, faulty_png(fault))
        assert first.result().status_code == 200
        assert [mate.result().status_code for mate in mates] == [200] * 7
        assert bad.result().status_code == status
    assert not leaks(bad.result().text)
    assert bad.result().json()["error"]["request_id"]
    if fault == "raise":  # what happened is in the log
        assert "secret of" in server.log


def test_nan_classifier_is_an_answer(server: Server) -> None:
    server.wait_ready()
    said = server.explain(faulty_png("nan")).json()
    assert said["status"] == "non_finite"
    assert said["images"]["counterfactual"] is None
    assert said["probabilities_source"] == [None] * 10


def test_log_is_json_with_request_ids(server: Server) -> None:
    import json

    request_id = server.explain().headers["x-request-id"]
    deadline = time.monotonic() + 5
    while request_id not in server.log and time.monotonic() < deadline:
        time.sleep(0.02)
    (line,) = [line for line in server.log.splitlines() if request_id in line]
    said = json.loads(line)
    assert said["path"] == "/explain"
    assert said["status"] == 200


def test_crash_loop_answers_and_recovers(tmp_path: Path) -> None:
    """A model whose files went away cannot be loaded again; when they are back, it is."""
    shutil.copy(DIGITS / "bank.csv", tmp_path / "bank.csv")
    arguments = [*digits_arguments()[:3], str(tmp_path / "bank.csv")]
    with serving(*arguments) as server:
        (tmp_path / "bank.csv").rename(tmp_path / "gone.csv")
        assert server.explain().status_code == 200  # deleted while serving
        server.engines[0].kill()
        refused = server.explain(timeout_ms="1000")
        assert refused.status_code == 504
        assert not leaks(refused.text)
        assert server.http.get("/v2/health/ready").status_code == 503
        (tmp_path / "gone.csv").rename(tmp_path / "bank.csv")
        server.wait_ready()
        assert server.explain().status_code == 200


def test_front_killed_leaves_no_engine() -> None:
    server = Server(*FAULTY)
    (engine,) = server.engines
    server.process.kill()
    server.process.wait(5)
    gone, alive = psutil.wait_procs([engine], timeout=5)
    assert gone
    assert not alive


def test_cannot_load_is_one_line() -> None:
    command = [
        sys.executable,
        "-m",
        "cae_fast",
        "serve",
        *digits_arguments("serving_faults:broken"),
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "python_tests")])
    done = subprocess.run(
        [*command, "--port", "0", "--log", "off"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 2
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("cae-fast:")]
    assert "could not be loaded" in line
    assert "Traceback" not in done.stderr


def test_port_taken_is_one_line(server: Server) -> None:
    command = [sys.executable, "-m", "cae_fast", "serve", *digits_arguments()]
    done = subprocess.run(
        [*command, "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1
    assert "127.0.0.1" in done.stderr
    assert "Traceback" not in done.stderr
