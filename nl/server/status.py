"""The health page of the HTTP/1.1 side: what probes and people ask when they want to know whether this works."""

from __future__ import annotations

import json
from http import HTTPStatus

import trio

from nl.services.health import HealthRegistry
from nl.storage.builder import StoreGraph
from nl.web.server import Request, Response


class StatusPage:
    """JSON: the state of the server and of each store, with its own figures. 503 while it is not serving.

    `tasks` is how many are alive: what only grows is a leak.
    """

    def __init__(self, health: HealthRegistry, graph: StoreGraph) -> None:
        self._health = health
        self._graph = graph

    async def answer(self, request: Request) -> Response:
        """The page; it asks nobody, so it answers while everything else is slow."""
        serving = bool(self._health.is_serving())
        body = {
            "status": "SERVING" if serving else "NOT_SERVING",
            "services": self._health.snapshot(),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
            "stores": {built.name: {"kind": built.kind, **built.store.statistics()} for built in self._graph},
        }
        return Response(
            status=HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE,
            body=json.dumps(body, indent=2).encode(),
            content_type="application/json; charset=utf-8",
        )
