# SPDX-License-Identifier: Apache-2.0
"""`cae-fast serve --ray`: the service's app in replicas, under the ingress of Ray Serve."""

from __future__ import annotations

import dataclasses
import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cae_fast.errors import BackendUnavailable, CAEError
from cae_fast.ray_jobs.session import ray_session
from cae_fast.ray_jobs.shards import Recipe

if TYPE_CHECKING:
    from cae_fast.serving.settings import Settings

_NAME = "cae_fast"
#: Batches under way in a replica, and what waits for the next.
_BATCHES_INSIDE = 2
_HEALTH_PERIOD_S = 2.0
#: The service of this process, where it is a replica.
_services: list[Any] = []


@dataclasses.dataclass(frozen=True)
class Replicas:
    """How many run the app, and on what.

    Attributes:
        count: Replicas, at the least.
        most: Replicas, at the most; None: `count`. More than `count` come and go with the load.
        cpus: CPUs of each, also its engine's threads where the settings name none.
        gpus: GPUs of each; a fraction shares one.
        address: Of a Ray cluster; None starts Ray on this machine.
        store_mb: Object store of a Ray started here, MB.
    """

    count: int = 1
    most: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None
    store_mb: int = 200

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            CAEError: One is out of range.
        """
        for name, value, least in (
            ("replicas", self.count, 1),
            ("max replicas", self.largest, self.count),
            ("cpus of a replica", self.cpus, 1),
            ("gpus of a replica", self.gpus, 0),
        ):
            if not value >= least:
                raise CAEError(f"{name} must be at least {least}, got {value}")

    @property
    def largest(self) -> int:
        """Replicas at the most."""
        return self.count if self.most is None else self.most


def serve_on_ray(
    settings: Settings,
    replicas: Replicas,
    *,
    on_listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        settings: As for the service on one machine; `max_batch * 2` requests are inside a replica,
            `queue_size` wait in front, and more are answered 503.
        replicas: How many, and on what.
        on_listening: Called with the address once every replica is ready.

    Raises:
        CAEError: A file is damaged, or an option has no meaning here.
        BackendUnavailable: Ray cannot be used, or a replica does not start.
        MissingExtra: A package of the extras `ray` and `serve` is not installed.
    """
    if settings.allow_reload:
        raise CAEError("allow_reload would reach one replica of several: leave it out with --ray")
    for files in settings.models.values():  # faults of files show before Ray starts
        Recipe(
            files.model, files.classifier, files.bank, "cpu", None, None, False, {}, False
        ).explainer()
    settings = dataclasses.replace(
        settings,
        port=settings.port or _free_port(settings.host),
        threads=settings.threads or replicas.cpus,
    )
    ended = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        cpus = replicas.largest * replicas.cpus
        with ray_session(replicas.address, cpus=cpus, store_mb=replicas.store_mb):
            for number in before:  # in the place of Ray's own, which end in an abort
                signal.signal(number, lambda *_: ended.set())
            _serve(settings, replicas, ended, on_listening)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def deployment(settings: Settings, replicas: Replicas) -> Any:
    """The application for `ray.serve.run`, to be run beside others."""
    from ray import serve

    def build() -> Any:
        return _replica_app(settings)

    @serve.ingress(build)
    class Replica:
        def check_health(self) -> None:
            """Tells Ray to replace a replica that only a new process can mend."""
            _check_service()

    inside = settings.max_batch * _BATCHES_INSIDE
    amount: dict[str, Any] = {"num_replicas": replicas.count}
    if replicas.largest > replicas.count:
        amount = {
            "autoscaling_config": {
                "min_replicas": replicas.count,
                "max_replicas": replicas.largest,
                "target_ongoing_requests": settings.max_batch,
            }
        }
    return serve.deployment(
        name=_NAME,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=inside,
        max_queued_requests=settings.queue_size,
        health_check_period_s=_HEALTH_PERIOD_S,
        graceful_shutdown_timeout_s=max(1.0, settings.drain_s),
        max_constructor_retry_count=1,
        **amount,
    )(Replica).bind()


def _serve(
    settings: Settings,
    replicas: Replicas,
    ended: threading.Event,
    on_listening: Callable[[str], None],
) -> None:
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="HeadOnly" if replicas.address is None else "EveryNode",
        http_options={
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": settings.deadline_s + settings.body_timeout_s,
            "keep_alive_timeout_s": max(1, round(settings.keep_alive_s)),
        },
    )
    try:
        try:
            serve.run(deployment(settings, replicas), name=_NAME, route_prefix="/")
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise BackendUnavailable(
                f"the replicas do not start (see the logs of Ray): {reason}"
            ) from None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_listening(f"http://{host}:{settings.port}")
        ended.wait()
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _replica_app(settings: Settings) -> Any:
    """The app of a replica; its lifespan starts and ends the engines."""
    from cae_fast.serving.app import create_app
    from cae_fast.serving.logs import set_up_logging

    set_up_logging(settings.log)
    app = create_app(settings)
    _services.append(app.state.service)
    return app


def _check_service() -> None:
    """Raises why this process must be replaced, if it must.

    A function of the module, which travels by its name: what travels by value sees other globals.
    """
    if fault := _services[-1].not_live():
        raise RuntimeError(fault)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
