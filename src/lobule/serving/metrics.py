"""What is counted while serving, as Prometheus reads it."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lobule.serving.service import Service


class Metrics:
    """The counters of one server."""

    def __init__(self, service: Service) -> None:
        """Begin at 0."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lobule_requests", "Requests by route and status.", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "lobule_request_seconds", "Time from request to answer.", ["route"],
            registry=self.registry,
        )  # fmt: skip
        self.images = Counter(
            "lobule_images", "Images by what became of them.", ["outcome"], registry=self.registry
        )
        waiting = Gauge(
            "lobule_images_waiting", "Images that wait or are in work.", registry=self.registry
        )
        waiting.set_function(lambda: service.batches.taken)
        restarts = Gauge(
            "lobule_decoder_restarts", "Decoders that an image brought down.",
            registry=self.registry,
        )  # fmt: skip
        restarts.set_function(lambda: service.decoder.restarts)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)


class Counting:
    """ASGI middleware that counts and times requests by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Stand before `app`."""
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count what became of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # a path that is none of ours must not become a name of its own
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(route, message["status"]).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, counted)
