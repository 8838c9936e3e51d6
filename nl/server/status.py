"""The health page of the HTTP/1.1 side: what probes and people ask when they want to know whether this works."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Protocol

import trio

from nl.config.servers import ServerOptions
from nl.model.access import Right
from nl.server.doors import Doors
from nl.services.health import HealthRegistry
from nl.storage.builder import StoreGraph
from nl.web.server import Request, Response, Route


class Counting(Protocol):
    """A listener with figures to show."""

    @property
    def addresses(self) -> Sequence[str]: ...

    def statistics(self) -> Mapping[str, object]: ...


def routes(server: ServerOptions, page: StatusPage) -> Mapping[str, Route]:
    """What a listener serves over HTTP/1.1, by path."""
    options = server.services.health
    return {options.path if options is not None else "/status": Route(page.answer)}


class StatusPage:
    """JSON: the state of the server, each listener and each store, with their figures. 503 while it is not serving.

    `tasks` is how many are alive: what only grows is a leak. Who may not administer every instance gets the state and
    nothing else: probes have no credentials.
    """

    def __init__(
        self, health: HealthRegistry, graph: StoreGraph, listeners: Sequence[Counting], doors: Doors
    ) -> None:
        """`listeners` may still grow."""
        self._doors = doors
        self._health = health
        self._graph = graph
        self._listeners = listeners

    async def answer(self, request: Request) -> Response:
        """The page; it asks nobody, so it answers while everything else is slow."""
        serving = bool(self._health.is_serving())
        body: dict[str, object] = {"status": "SERVING" if serving else "NOT_SERVING"}
        if all(request.identity.may(Right.ADMINISTER, name) for name in self._doors.instances):
            body |= {
                "services": self._health.snapshot(),
                "tasks": trio.lowlevel.current_statistics().tasks_living,
                "listeners": {", ".join(each.addresses): each.statistics() for each in self._listeners},
                "stores": {built.name: {"kind": built.kind, **built.store.statistics()} for built in self._graph},
                "coder_memory": self._graph.coder_memory.statistics(),
                "auth": self._doors.statistics(),
            }
        return Response(
            status=HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE,
            body=json.dumps(body, indent=2).encode(),
            content_type="application/json; charset=utf-8",
        )
