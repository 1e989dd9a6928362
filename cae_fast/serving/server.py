# SPDX-License-Identifier: Apache-2.0
"""The service as a program: uvicorn with limits on connections, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from cae_fast.errors import CAEError, missing_extra
from cae_fast.serving.jobs import EngineLost
from cae_fast.serving.settings import Settings

log = logging.getLogger("cae_fast.serving")

#: File descriptors that connections must leave: the engines' memory, libraries, logs.
_KEPT_DESCRIPTORS = 40
_GRACE_S = 0.1


def serve(settings: Settings, *, on_listening: Callable[[str], None] = lambda url: None) -> None:
    """Serves until SIGTERM or SIGINT, then answers what was accepted.

    SIGHUP loads every model again.

    Args:
        settings: What to serve.
        on_listening: Called with the service's address once it is ready.

    Raises:
        CAEError: A model cannot be loaded; the message says why.
        MissingExtra: A package of the extra `serve` is not installed.
        OSError: The address is taken, or not this machine's.
    """
    try:
        import uvicorn
    except ImportError:
        raise missing_extra("serve", "uvicorn") from None
    from cae_fast.serving.app import create_app
    from cae_fast.serving.catalog import LoadFailed
    from cae_fast.serving.logs import set_up_logging

    set_up_logging(settings.log)
    listener = _listener(settings)
    app = create_app(settings)
    service = app.state.service
    failures: list[BaseException] = []
    start = service.start

    async def starting() -> None:
        try:
            await start()
        except BaseException as error:
            failures.append(error)
            raise

    service.start = starting
    config = uvicorn.Config(
        app,
        http=_protocol(settings),
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.keep_alive_s)),
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        limit_concurrency=_most_connections(settings),
        backlog=512,
    )
    server = _Server(config, service, lambda: on_listening(_address(listener)))
    with listener, contextlib.suppress(KeyboardInterrupt):
        try:
            server.run(sockets=[listener])
        except SystemExit:
            if not failures:
                raise
    if failures:
        error = failures[0]
        if isinstance(error, LoadFailed):
            raise CAEError(f"{error.message}: {error.reason}") from None
        if isinstance(error, EngineLost):
            raise CAEError("the engine process ended while it started; see the log") from None
        raise error


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"{settings.host}:{settings.port}") from None
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _most_connections(settings: Settings) -> int:
    """Connections that file descriptors allow; the limit is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + _KEPT_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY:
        return settings.max_connections
    return max(8, min(settings.max_connections, soft - _KEPT_DESCRIPTORS))


def _Server(config: Any, service: Any, on_started: Callable[[], None]) -> Any:
    """Uvicorn's server with signals of our own and an exit status of 0 after SIGTERM."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.should_exit:
                on_started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.batcher.draining = True
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            tasks: set[asyncio.Task[None]] = set()

            def end() -> None:
                if self.should_exit:
                    self.force_exit = True
                self.should_exit = True

            def reload() -> None:
                task = loop.create_task(service.reload_all())
                tasks.add(task)
                task.add_done_callback(tasks.discard)

            calls = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: reload}
            for number, call in calls.items():
                loop.add_signal_handler(number, call)
            try:
                yield
            finally:
                for number in calls:
                    loop.remove_signal_handler(number)

    return Server(config)


def _protocol(settings: Settings) -> Any:
    """Uvicorn's HTTP protocol that closes connections whose peers are too slow."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        _head_timer: asyncio.TimerHandle | None = None
        _turned_away = False

        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= self.config.limit_concurrency + 8:  # type: ignore[operator]
                self._turned_away = True
                transport.abort()  # no descriptor is left to answer with
                return
            super().connection_made(transport)
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            if not self._turned_away:
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._turned_away:
                return
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self._head_timer is None:
                self._expect_head()
            super().data_received(data)

        def on_headers_complete(self) -> None:
            self._head_came()
            super().on_headers_complete()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            # What was answered but is not read may stay in the buffer only so long.
            if self.transport.get_write_buffer_size():
                self.loop.call_later(settings.write_timeout_s, self.transport.abort)

        def _expect_head(self) -> None:
            self._head_timer = self.loop.call_later(settings.header_timeout_s, self._head_is_late)

        def _head_came(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _head_is_late(self) -> None:
            # A loop that was held up fires this before it reads what has come meanwhile.
            self._head_timer = self.loop.call_later(_GRACE_S, self._give_up)

        def _give_up(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self.transport.abort()

    return Protocol


def print_address(url: str) -> None:
    """Says where the service is, on standard error."""
    with contextlib.suppress(OSError, ValueError):
        print(f"serving at {url}", file=sys.stderr, flush=True)
