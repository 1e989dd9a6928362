# SPDX-License-Identifier: Apache-2.0
"""Health, readiness, metrics."""

from typing import TYPE_CHECKING

from cae_fast.serving.jobs import Refused

if TYPE_CHECKING:
    from fastapi import APIRouter

    from cae_fast.serving.service import Service


def router(service: "Service") -> "APIRouter":
    """The routes of a service."""
    from fastapi import APIRouter
    from fastapi.responses import Response

    routes = APIRouter(tags=["health"])

    @routes.get("/v2/health/live")
    async def live() -> Response:
        """200 unless only a new process would help."""
        if why := service.not_live():
            raise Refused(503, "not_live", why)
        return Response()

    @routes.get("/v2/health/ready")
    async def ready() -> Response:
        """200 when every model explained an image, an engine is alive and the queue has room."""
        if why := service.not_ready():
            raise Refused(503, "not_ready", why, retry_after_s=1)
        return Response()

    @routes.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)

    return routes
