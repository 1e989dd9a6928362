# SPDX-License-Identifier: Apache-2.0
"""Around every request: its id, the token, refusals in one form, headers, log and metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cae_fast.serving.jobs import Refused
from cae_fast.serving.metrics import Metrics
from cae_fast.serving.settings import Settings

log = logging.getLogger("cae_fast.serving")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_LONGEST_PATH = 2048
_PAGE_POLICY = b"default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
_POLICY = b"default-src 'self'"
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
_GROUPS = ("/explain", "/v1", "/v2", "/models", "/metrics")


class Edge:
    """ASGI middleware; the outermost."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        """Around `app`."""
        self.app = app
        self.settings = settings
        self.metrics = metrics
        token = settings.token
        self._token = None if token is None else b"Bearer " + token.encode()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        path = _inside(scope)  # routing changes the scope's root path
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = self._headers(path, message.get("headers", ()), request_id)
            # A client that does not read must not hold on to the answer for ever.
            async with asyncio.timeout(self.settings.write_timeout_s):
                await send(message)

        try:
            self._check(scope, path, headers)
            await self.app(scope, receive, sending)
        except Refused as refused:
            if status == 0 and refused.status != 499:
                await _answer(sending, path, refused, request_id)
            status = status or refused.status
        except TimeoutError:
            log.warning("an answer was not read in time")
            status = 499
            raise
        except Exception as error:
            log.error(
                "a request failed", exc_info=error, extra={"fields": {"request_id": request_id}}
            )
            if status == 0:
                internal = Refused(500, "internal", "something went wrong here")
                await _answer(sending, path, internal, request_id)
        finally:
            self._note(scope, path, status, time.perf_counter() - start, request_id)

    def _check(self, scope: Any, inside: str, headers: dict[bytes, bytes]) -> None:
        """Refuses addresses that are no addresses, and who has no token."""
        path: str = scope["path"]
        raw = scope.get("raw_path") or b""
        parts = path.split("/")
        if len(raw) > _LONGEST_PATH or len(path) > _LONGEST_PATH:
            raise Refused(400, "bad_path", "the address is too long")
        if not path.isprintable() or "\\" in path or ".." in parts or b"%2f" in raw.lower():
            raise Refused(400, "bad_path", "the address has characters or parts that none has")
        if self._token is None or _is_open(inside):
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            raise Refused(401, "unauthorized", "a bearer token is needed")

    @staticmethod
    def _headers(path: str, headers: Any, request_id: str) -> list[tuple[bytes, bytes]]:
        kept = list(headers)
        names = {name.lower() for name, _ in kept}
        page = _route(path) == "page"
        added = [*_HEADERS, (b"x-request-id", request_id.encode())]
        added.append((b"content-security-policy", _PAGE_POLICY if page else _POLICY))
        if not page:
            added.append((b"cache-control", b"no-store"))
        return [*kept, *(pair for pair in added if pair[0] not in names)]

    def _note(self, scope: Any, path: str, status: int, seconds: float, request_id: str) -> None:
        route = _route(path)
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if log.isEnabledFor(logging.INFO) and route not in ("/v2/health", "/metrics"):
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"][:256],
                "status": status,
                "ms": round(seconds * 1000, 2),
            }
            log.info("request", extra={"fields": fields})


def _inside(scope: Any) -> str:
    """The address below the root path (of a mount or a proxy), as routing takes it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path


def _is_open(path: str) -> bool:
    """Health is for load balancers, and the page only asks for the token; all else needs it."""
    return path == "/" or path.startswith(("/page/", "/v2/health/"))


def _route(path: str) -> str:
    """A label of few values for an address."""
    if path.startswith("/v2/health/"):
        return "/v2/health"
    for group in _GROUPS:
        if path == group or path.startswith(group + "/"):
            return group
    if path == "/" or path.startswith("/page/"):
        return "page"
    return "/openapi" if path in ("/openapi.json", "/docs") else "other"


async def _answer(send: Send, path: str, refused: Refused, request_id: str) -> None:
    """A refusal: an object on the service's own routes, a text where a protocol says so."""
    said: Any = {
        "code": refused.code,
        "message": refused.message,
        "request_id": request_id,
    }
    protocol = path.startswith("/v2") or (path.startswith("/v1/") and ":" in path)
    value = {"error": refused.message if protocol else said, "request_id": request_id}
    if protocol:
        value["code"] = refused.code
    body = json.dumps(value).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if refused.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(refused.retry_after_s))).encode()))
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status in (408, 413):  # what is left of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
