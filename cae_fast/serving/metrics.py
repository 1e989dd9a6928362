# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cae_fast.errors import missing_extra
from cae_fast.serving.jobs import Outcome

if TYPE_CHECKING:
    from cae_fast.serving.batcher import Batcher

_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_DECODES = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 64)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        """Begins at zero.

        Raises:
            MissingExtra: prometheus-client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError:
            raise missing_extra("serve", "prometheus-client") from None
        self.registry = CollectorRegistry()
        #: By model: images explained, batches, images that failed, seconds in engines.
        self.totals: dict[str, tuple[int, int, int, float]] = {}

        def named(kind: Any, name: str, text: str, *labels: str, **options: Any) -> Any:
            return kind(f"cae_fast_{name}", text, labels, registry=self.registry, **options)

        self._gauge = Gauge
        self.requests = named(Counter, "requests", "Requests answered", "route", "status")
        self.seconds = named(
            Histogram, "request_seconds", "From head to answer", "route", buckets=_SECONDS
        )
        self.stages = named(
            Histogram,
            "stage_seconds",
            "Time of one request in a stage: decode (its image), queue, engine (its batch), encode "
            "(its answer)",
            "stage",
            buckets=_SECONDS,
        )
        self.batch_size = named(
            Histogram, "batch_size", "Images explained together", buckets=_SIZES
        )
        self.decodes = named(
            Histogram, "decodes_per_explanation", "Decoder calls of a search", buckets=_DECODES
        )
        self.statuses = named(Counter, "explanations", "Explanations by status", "status")
        self.requeued_jobs = named(Counter, "requeued", "Jobs whose engine ended")
        self._batches = {
            stage: self.stages.labels(stage) for stage in ("decode", "queue", "engine", "encode")
        }
        self._named = named

    def watch(self, batcher: Batcher, ready: Callable[[], bool]) -> None:
        """Reads what is counted elsewhere when asked."""
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "queue_length": ("Jobs waiting", lambda: batcher.waiting),
            "batches_running": ("Batches in engines", lambda: batcher.running),
            "ready": ("1 when ready", lambda: float(ready())),
            "engines_ready": (
                "Engines that take batches",
                lambda: sum(not engine.fault for engine in batcher.engines),
            ),
            "engine_restarts": (
                "Engines started again",
                lambda: sum(engine.restarts for engine in batcher.engines),
            ),
        }
        for name, (text, read) in gauges.items():
            self._named(self._gauge, name, text).set_function(read)

    def stage(self, name: str, seconds: float) -> None:
        """Time of one request in a stage."""
        self._batches[name].observe(seconds)

    def batch_done(self, model: str, size: int, outcome: Outcome) -> None:
        """A batch was answered."""
        images, batches, failures, seconds = self.totals.get(model, (0, 0, 0, 0.0))
        failed = len(outcome.failures)
        self.totals[model] = (
            *(images + size - failed, batches + 1, failures + failed),
            seconds + outcome.seconds,
        )
        self.batch_size.observe(size)
        for group in outcome.groups:
            fields = group["fields"]
            if "evaluations" not in fields:
                continue
            for status, decodes in zip(fields["status"], fields["evaluations"], strict=True):
                self.statuses.labels(str(status)).inc()
                self.decodes.observe(int(decodes))

    def requeued(self, count: int) -> None:
        """Jobs go back into the queue."""
        self.requeued_jobs.inc(count)

    def text(self) -> tuple[bytes, str]:
        """The page and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
