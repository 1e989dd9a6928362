# SPDX-License-Identifier: Apache-2.0
"""`cae-fast serve --ray`: two replicas under a real local Ray, one of which is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest
from cli_workspace import cae_fast
from serving_cases import SAMPLES, Server, digits_arguments, serving

TOKEN = "a token of the test"


def replicas_of(server: Server) -> list[psutil.Process]:
    """Processes of the replicas."""
    found = []
    for process in server.engines:
        with contextlib.suppress(psutil.Error):  # one that ends while it is looked at
            if "ServeReplica" in " ".join(process.cmdline()):
                found.append(process)
    return found


def ask(server: Server) -> httpx.Response:
    """One explanation, over a connection of its own."""
    return httpx.post(
        f"{server.url}/explain",
        files={"image": ("digit.png", SAMPLES[0].read_bytes(), "image/png")},
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=60,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_replicas_answer_and_are_replaced() -> None:
    grpc = pytest.importorskip("grpc")
    options = ("--ray", "--replicas", "2", "--in-process", "--backend", "cpu", "--log", "off")
    with serving(*digits_arguments(), *options, env={"CAE_SERVE_TOKEN": TOKEN}) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.http.get("/v2/health/ready").status_code == 200
        assert server.explain().status_code == 401
        first = ask(server)
        assert first.status_code == 200, first.text
        assert first.json()["status"] == "flipped"
        assert "cae_fast" in server.http.get("/").text

        before = replicas_of(server)
        assert len(before) == 2
        os.kill(before[0].pid, signal.SIGKILL)
        end = time.monotonic() + 60
        while len(replicas_of(server)) < 2 or before[0] in replicas_of(server):
            assert time.monotonic() < end, "the replica was not replaced"
            # Requests inside the killed replica fail at most; those after it are answered.
            assert ask(server).status_code in (200, 500, 503)
        answers = [ask(server) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert {answer.json()["t_flip"] for answer in answers} == {first.json()["t_flip"]}

        gcs = next(p for p in server.engines if p.name() == "gcs_server")
        ports = {c.laddr.port for c in gcs.net_connections("tcp") if c.status == "LISTEN"}
        assert ports
        for port in ports:  # Ray's own doors: without the token nothing is told
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
                with pytest.raises(grpc.RpcError) as refused:
                    call(b"", timeout=10)
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert server.process.returncode == 0, server.log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--replicas", "2"), "--replicas needs --ray"),
        (("--ray", "--replicas", "0"), "replicas must be at least 1"),
        (("--ray", "--replicas", "3", "--max-replicas", "2"), "max replicas must be at least 3"),
        (("--ray", "--allow-reload"), "allow_reload"),
    ],
)
def test_wrong_options(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = cae_fast("serve", *digits_arguments(), *options)
    assert done.code == 2
    assert done.err.startswith("cae-fast: ")
    assert done.err.count("\n") == 1, done.err
    assert words in done.err
