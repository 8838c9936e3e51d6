"""grpc.health.v1: what load balancers and probes ask. The server sets the state, this tells it.

The empty service name stands for the server; every mounted service has an entry of its own. Check of an unknown name
is NOT_FOUND, Watch of one says SERVICE_UNKNOWN and goes on (grpc/health/v1). No right is needed: probes have none,
and learn names and states of services only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grpclib.const
import trio

from nl.errors import NotFoundError, UnavailableError
from nl.pb import health
from nl.rpc.contract import ServerStream
from nl.services.requests import receive_from_anybody

_Status = health.HealthCheckResponseServingStatus
_CARDINALITY = grpclib.const.Cardinality
Reply = health.HealthCheckResponse


class HealthRegistry:
    """Which services are serving. Everything starts as NOT_SERVING, until the server says otherwise."""

    def __init__(self, services: Iterable[str] = ()) -> None:
        self._serving: dict[str, bool] = {"": False, **dict.fromkeys(services, False)}
        self._changed = trio.Event()
        self._closed = False

    def add_service(self, service: str) -> None:
        """Makes a service known, in the state of the server."""
        self._serving.setdefault(service, self._serving[""])
        self._notify()

    def set_serving(self, serving: bool, *, service: str | None = None) -> None:
        """Sets the state of one service, or of all when none is named (lame duck: all NOT_SERVING)."""
        for name in list(self._serving) if service is None else [service]:
            self._serving[name] = serving
        self._notify()

    def close(self) -> None:
        """The server goes: nothing is serving, nothing will be, and whoever waits for a change is told so."""
        self._closed = True
        self.set_serving(False)

    def is_serving(self, service: str = "") -> bool | None:
        """The state of a service (the empty name: of the server), None if it is unknown."""
        return self._serving.get(service)

    async def wait_changed(self, service: str, known: bool | None) -> bool | None:
        """Waits until the state of a service is another than `known`; the new one. UnavailableError after `close`."""
        while (state := self._serving.get(service)) is known:
            if self._closed:
                raise UnavailableError("the server is shutting down")
            await self._changed.wait()
        return state

    def snapshot(self) -> Mapping[str, bool]:
        """All states, for pages."""
        return dict(self._serving)

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


class HealthService:
    """The gRPC side of a HealthRegistry."""

    def __init__(self, registry: HealthRegistry) -> None:
        self._registry = registry

    async def check(self, stream: ServerStream[health.HealthCheckRequest, Reply]) -> None:
        """The state now; NotFoundError for an unknown service."""
        service = (await receive_from_anybody(stream)).service
        serving = self._registry.is_serving(service)
        if serving is None:
            raise NotFoundError(f"unknown service {service[:200]!r}")
        await stream.send_message(_reply(serving))

    async def watch(self, stream: ServerStream[health.HealthCheckRequest, Reply]) -> None:
        """The state now and after each change, until the client or the server goes."""
        service = (await receive_from_anybody(stream)).service
        serving = self._registry.is_serving(service)
        while True:
            await stream.send_message(_reply(serving))
            serving = await self._registry.wait_changed(service, serving)

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {
            "/grpc.health.v1.Health/Check": grpclib.const.Handler(
                self.check, _CARDINALITY.UNARY_UNARY, health.HealthCheckRequest, Reply
            ),
            "/grpc.health.v1.Health/Watch": grpclib.const.Handler(
                self.watch, _CARDINALITY.UNARY_STREAM, health.HealthCheckRequest, Reply
            ),
        }


def _reply(serving: bool | None) -> Reply:
    if serving is None:
        return Reply(status=_Status.SERVICE_UNKNOWN)
    return Reply(status=_Status.SERVING if serving else _Status.NOT_SERVING)
