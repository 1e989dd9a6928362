# SPDX-License-Identifier: Apache-2.0
"""The ASGI app: `create_app(settings)` for uvicorn, for another server, or for another app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cae_fast.errors import missing_extra
from cae_fast.serving.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

PAGE_FOLDER = Path(__file__).resolve().parent / "page"


def create_app(settings: Settings) -> FastAPI:
    """The service as a FastAPI app; engines start and end with its lifespan.

    Args:
        settings: What to serve, and within which limits.

    Returns:
        The app; `app.state.service` is its :class:`cae_fast.serving.service.Service`.

    Raises:
        MissingExtra: FastAPI or prometheus-client is not installed.
    """
    try:
        from fastapi import FastAPI
    except ImportError:
        raise missing_extra("serve", "fastapi") from None
    from cae_fast.environment import package_version
    from cae_fast.serving import routes_explain, routes_health, routes_v1, routes_v2
    from cae_fast.serving.edge import Edge
    from cae_fast.serving.service import Service

    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        try:
            await service.start()
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="cae_fast",
        version=package_version("cae-fast") or "unknown",
        summary="Explanations of image classifiers by class association embedding",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    for routes in (routes_health, routes_explain, routes_v1, routes_v2):
        app.include_router(routes.router(service))
    _serve_page(app)
    _say_it_one_way(app)
    app.add_middleware(Edge, settings=settings, metrics=service.metrics)
    return app


def _serve_page(app: FastAPI) -> None:
    """The static page: `/`, and its parts below `/page/`."""
    from starlette.responses import FileResponse
    from starlette.staticfiles import StaticFiles

    async def index(_: Any) -> FileResponse:
        return FileResponse(PAGE_FOLDER / "index.html")

    app.router.add_route("/", index, methods=["GET"], name="index", include_in_schema=False)
    app.mount("/page", StaticFiles(directory=PAGE_FOLDER), name="page")


def _say_it_one_way(app: FastAPI) -> None:
    """Turns what the framework refuses into refusals of the service's form."""
    from starlette.exceptions import HTTPException

    from cae_fast.serving.jobs import Refused

    codes = {404: "not_found", 405: "method_not_allowed"}

    async def refuse(_: Any, error: Exception) -> Any:
        assert isinstance(error, HTTPException)
        said = {404: "there is nothing at this address", 405: "not by this method"}
        raise Refused(
            error.status_code,
            codes.get(error.status_code, "refused"),
            said.get(error.status_code, str(error.detail)),
        )

    app.add_exception_handler(HTTPException, refuse)
