# SPDX-License-Identifier: Apache-2.0
"""Requests that nobody should send: bodies, addresses, connections, too many of them."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import signal
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from serving_cases import DIGITS, SAMPLES, Server, digits_arguments, faulty_png, serving

from cae_fast.errors import CAEError
from cae_fast.serving.settings import load_settings

LIMITS = (
    *("max_body_mb = 1", "header_timeout_s = 4", "body_timeout_s = 3", "queue_size = 16"),
    *("max_connections = 300", "drain_s = 10", "allow_reload = true"),
)
LEAK = re.compile(r"0x[0-9a-f]{4,}|Traceback|\.py\b|/work|/home|/tmp|/usr|site-pack|BytesIO")
PNG = SAMPLES[0].read_bytes()


def config(folder: Path, *lines: str, classifier: str = "serving_faults:classifier") -> list[str]:
    text = [
        *lines,
        "[models.digits]",
        f'model = "{DIGITS / "model.safetensors"}"',
        f'classifier = "{classifier}"',
        f'bank = "{DIGITS / "bank.csv"}"',
    ]
    (folder / "service.toml").write_text("\n".join(text))
    return ["--config", str(folder / "service.toml")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = config(tmp_path_factory.mktemp("service"), *LIMITS)
    with serving(*arguments, env={"CAE_TEST_SLOW_S": "0.5"}) as running:
        yield running


def raw(server: Server, data: bytes, *, seconds: float = 10) -> bytes:
    """What comes back for these bytes until the server closes or is quiet."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
                head, _, body = received.partition(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head)
                if found and len(body) >= int(found[1]):
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1") else 0


def chunk_png(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def huge_png(side: int, *, data: bool) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 1 if data else 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9) if data else b""
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk_png(*part) for part in parts)


def test_bodies(server: Server) -> None:
    front = psutil.Process(server.process.pid)
    before = front.memory_info().rss
    post = server.http.post
    octets = {"content-type": "application/octet-stream"}
    large = bytes(2 * 2**20)
    assert post("/explain", content=large, headers=octets).status_code == 413
    head = b"POST /explain HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
    # Announced too large: refused before it comes.
    assert status_of(raw(server, head + b"content-length: 99999999999\r\n\r\n")) == 413
    # Announced larger than it is: the rest is waited for, not for ever.
    assert status_of(raw(server, head + b"content-length: 1000\r\n\r\nabc")) == 408
    chunks = b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 65537 + b"0\r\n\r\n"
    assert status_of(raw(server, head + chunks)) == 400
    endless = b"transfer-encoding: chunked\r\n\r\n" + (b"8000\r\n" + bytes(0x8000) + b"\r\n") * 40
    assert status_of(raw(server, head + endless)) == 413
    bomb = gzip.compress(bytes(20 * 2**20))
    packed = post("/explain", content=bomb, headers={**octets, "content-encoding": "gzip"})
    assert packed.status_code == 415
    for picture in (
        huge_png(9000, data=True),
        huge_png(20000, data=False),
        b"",
        b"GIF89a",
        PNG[:90],
    ):
        assert post("/explain", content=picture, headers=octets).status_code == 400
    part = b'--b\r\ncontent-disposition: form-data; name="field%d"\r\n\r\nx\r\n'
    many = b"".join(part % i for i in range(10_000)) + b"--b--\r\n"
    form = {"content-type": "multipart/form-data; boundary=b"}
    assert post("/explain", content=many, headers=form).status_code == 413
    assert post("/explain", content=PNG, headers={"content-type": "text/plain"}).status_code == 415
    assert front.memory_info().rss - before < 50 * 2**20
    assert server.explain().status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"instances": [' + b"[" * 40 + b"1" + b"]" * 40 + b"]}",
        b'{"instances": ' + b"9" * 100_000 + b"}",
        b'{"instances": [1e999]}',
        b'{"instances": [NaN]}',
        b'{"instances": ["\xff\xfe"]}',
        b'{"instances": [[["a"]]]}',
        b"",
        b"null",
        b"\x00",
    ],
)
def test_json(server: Server, body: bytes) -> None:
    for address in ("/v1/models/digits:explain", "/v2/models/digits/infer"):
        response = server.http.post(address, content=body)
        if response.status_code == 200:  # an instance refused by itself
            (only,) = response.json()["explanations"]
            assert only["error"]["status"] == 400
        else:
            assert response.status_code == 400
        assert not LEAK.search(response.text)


NAMES = (
    *("..", "../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd", "a%00b", "%20"),
    *("a\\b", "a%0ab", "x" * 4096, "digits%2f..%2fdigits", "<script>alert(1)</script>", "~root"),
)


@pytest.mark.parametrize("name", NAMES)
def test_names(server: Server, name: str) -> None:
    for address in (f"/v2/models/{name}/ready", f"/models/{name}/samples/0", f"/{name}"):
        answer = raw(server, f"GET {address} HTTP/1.1\r\nhost: x\r\n\r\n".encode("latin-1"))
        assert status_of(answer) in (400, 404), answer[:200]
        assert b"root:" not in answer
        assert b"<script>" not in answer or b"application/json" in answer
    assert server.explain(model=name).status_code in (400, 404)
    if len(name) < 2000:
        files = {"image": (f"{name}.png", PNG, "image/png")}
        assert server.http.post("/explain", files=files).status_code == 200
    line = f"POST /v2/repository/models/{name}/load HTTP/1.1\r\n"
    loaded = raw(server, f"{line}host: x\r\ncontent-length: 0\r\n\r\n".encode())
    assert status_of(loaded) in (400, 404)


def test_addresses_are_never_fetched(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.5)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/x.png"
        form = {"image": (None, url)}
        assert server.http.post("/explain", files=form).status_code == 400
        assert server.http.post("/explain?url=" + url, content=PNG).status_code in (400, 415)
        body = {"instances": [url]}
        (only,) = server.http.post("/v1/models/digits:explain", json=body).json()["explanations"]
        assert only["error"]["status"] == 400
        with pytest.raises(TimeoutError):
            bait.accept()


def test_errors_carry_an_id_and_leak_nothing(server: Server) -> None:
    post, get = server.http.post, server.http.get
    octets = {"content-type": "application/octet-stream"}
    answers = [
        get("/nothing/here"),
        post("/metrics"),
        get("/explain"),
        post("/explain", content=b"\x89PNG\r\n\x1a\nrubbish", headers=octets),
        post("/explain", content=PNG[: len(PNG) // 2], headers=octets),
        post("/explain", content=b"x", headers={"content-type": "multipart/form-data"}),
        post(
            "/explain", content=b"--b", headers={"content-type": "multipart/form-data; boundary=b"}
        ),
        server.explain(target="<script>"),
        post("/v2/models/digits/infer", content=b"{"),
        post("/v2/repository/models/cats/load"),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.headers["x-request-id"]
        assert answer.headers["x-request-id"] in answer.text
        assert answer.headers["content-type"].startswith("application/json")
        assert not LEAK.search(answer.text), answer.text


def test_slow_sockets_do_not_disturb(server: Server) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    for i, connection in enumerate(slow):
        connection.sendall(b"" if i % 2 else b"POST /explain HTTP/1.1\r\nx-slow: ")
    for _ in range(5):
        assert server.explain().status_code == 200
    deadline = time.monotonic() + 15
    closed = 0
    for connection in slow:
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            closed += connection.recv(100) == b""
        except ConnectionResetError:
            closed += 1
        connection.close()
    assert closed == 200


def test_overload_answers_everyone_once(server: Server) -> None:
    with ThreadPoolExecutor(64) as pool:
        hold = pool.submit(server.explain, faulty_png("slow"))
        time.sleep(0.1)

        def ask(i: int) -> httpx.Response:
            with httpx.Client(base_url=server.url, timeout=30) as http:
                return http.post(
                    "/explain?format=raw",
                    content=SAMPLES[i % 12].read_bytes(),
                    headers={"content-type": "image/png", "x-request-id": f"ask-{i}"},
                )

        answers = list(pool.map(ask, range(96)))
        assert hold.result().status_code == 200
    assert sorted(a.headers["x-request-id"] for a in answers) == sorted(
        f"ask-{i}" for i in range(96)
    )
    assert {a.status_code for a in answers} == {200, 503}
    for refused in (a for a in answers if a.status_code == 503):
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    assert server.metric("queue_length") == 0
    by_sample = {}
    for i, answer in enumerate(answers):  # nobody got another's answer
        if answer.status_code == 200:
            assert (
                by_sample.setdefault(i % 12, answer.headers["x-source-class"])
                == (answer.headers["x-source-class"])
            )


def test_who_leaves_is_not_explained(server: Server) -> None:
    front = psutil.Process(server.process.pid)
    descriptors, threads = front.num_fds(), front.num_threads()
    explained = server.metric("explanations_total")
    with ThreadPoolExecutor(1) as pool:
        hold = pool.submit(server.explain, faulty_png("slow"))
        time.sleep(0.15)
        head = b"POST /explain HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head + b"content-length: %d\r\n\r\n" % len(PNG) + PNG)
        assert hold.result().status_code == 200
    assert server.explain().status_code == 200
    assert server.metric("queue_length") == 0
    assert server.metric("explanations_total") - explained < 60
    assert front.num_fds() <= descriptors + 4
    assert front.num_threads() <= threads + 2


def test_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-secret-token\n")
    with serving(*digits_arguments(), "--token-file", str(tmp_path / "token")) as server:
        assert server.http.get("/v2/health/ready").status_code == 200
        for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": "a-secret-token"}):
            assert server.http.get("/v1/models", headers=wrong).status_code == 401
        right = {"authorization": "Bearer a-secret-token"}
        assert server.http.get("/v1/models", headers=right).status_code == 200
        assert "a-secret-token" not in server.log


def test_drain(tmp_path: Path) -> None:
    arguments = config(tmp_path, "max_batch = 1")
    with serving(*arguments, env={"CAE_TEST_SLOW_S": "0.2"}) as server:
        children = server.engines
        with ThreadPoolExecutor(6) as pool:
            accepted = [pool.submit(server.explain, faulty_png("slow")) for _ in range(6)]
            time.sleep(0.4)
            server.process.send_signal(signal.SIGTERM)
            assert [answer.result().status_code for answer in accepted] == [200] * 6
        assert server.process.wait(15) == 0
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", server.port))


def test_reload_keeps_what_works(tmp_path: Path) -> None:
    bank = tmp_path / "bank.csv"
    good = (DIGITS / "bank.csv").read_bytes()
    bank.write_bytes(good)
    with serving(*digits_arguments()[:3], str(bank), "--name", "m", "--allow-reload") as server:
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(server.explain) for _ in range(40)]
            versions = []
            for i in range(6):
                bank.write_bytes(good if i % 2 else good[:5000])
                loaded = server.http.post("/v2/repository/models/m/load")
                assert loaded.status_code == (200 if i % 2 else 500), loaded.text
                assert not LEAK.search(loaded.text)
                versions.append(server.http.get("/v1/models/m").json()["version"])
            assert {answer.result().status_code for answer in asked} == {200}
        assert len(set(versions)) == 4  # the first, and one for each load that worked
        assert server.explain().status_code == 200


def test_few_descriptors_and_no_log() -> None:
    """EMFILE, a log that cannot be written, no place for temporary files."""
    env = {"TMPDIR": "/proc"}
    with serving(*digits_arguments(), prefix="ulimit -n 64", env=env) as server:
        many = []
        for _ in range(80):
            try:
                many.append(socket.create_connection(("127.0.0.1", server.port), timeout=1))
            except OSError:
                break
        for connection in many:
            connection.close()
        server.http.close()
        server.http = httpx.Client(base_url=server.url, timeout=30)
        assert server.explain(format="html").status_code == 200
        server.close_log()  # nobody reads it any more
        for _ in range(3):
            assert server.explain().status_code == 200


def test_config_says_what_is_meant(tmp_path: Path) -> None:
    for line, said in (
        ("quue_size = 3", "unknown key 'quue_size', did you mean 'queue_size'?"),
        ("queue_size = 0", "queue_size must be at least 1"),
        ('queue_size = "many"', "queue_size: .* got 'many'"),
        ("port = 70000", "port must be in 0..65535"),
        ("queue_size = ", "not readable"),
    ):
        arguments = config(tmp_path, line)
        with pytest.raises(CAEError, match=said):
            load_settings(arguments[1])
    arguments = config(tmp_path, "max_batch = 4", classifier="classifier.onnx")
    settings = load_settings(arguments[1], port=0)
    assert settings.port == 0
    assert settings.max_batch == 4
    assert settings.models["digits"].classifier == str(tmp_path / "classifier.onnx")
    (tmp_path / "service.json").write_text(json.dumps({"models": {"a/b": {}}}))
    with pytest.raises(CAEError, match="models"):
        load_settings(tmp_path / "service.json")


def test_soak_in_short(server: Server) -> None:
    """Memory does not grow with requests; bench/soak_service.py is the long form."""
    processes = [psutil.Process(server.process.pid), *server.engines]

    def rss() -> int:
        return sum(process.memory_info().rss for process in processes)

    def mixed(i: int) -> None:
        if i % 4 == 0:
            server.explain(target="dog")
        elif i % 4 == 1:
            server.explain(SAMPLES[i % 12].read_bytes(), format="raw")
        elif i % 4 == 2:
            server.explain(SAMPLES[i % 12].read_bytes())
        else:
            server.http.get("/metrics")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(mixed, range(100)))
        before = rss()
        list(pool.map(mixed, range(200)))
    assert rss() - before < 4 * 2**20
