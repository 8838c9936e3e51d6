"""The health page of the HTTP/1.1 side: what probes and people ask when they want to know whether this works."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Protocol

import trio

from nl.config.servers import ServerOptions
from nl.model.access import Right
from nl.scheduler.contract import Scheduler
from nl.server.admin import Administration
from nl.server.doors import Doors
from nl.services.health import HealthRegistry
from nl.storage.builder import StoreGraph
from nl.web.server import Request, Response, Route


class Counting(Protocol):
    """A listener with figures to show."""

    @property
    def addresses(self) -> Sequence[str]: ...

    def statistics(self) -> Mapping[str, object]: ...


def routes(server: ServerOptions, page: StatusPage, administration: Administration) -> Mapping[str, Route]:
    """What a listener serves over HTTP/1.1, by path."""
    health, admin = server.services.health, server.services.admin
    return {
        health.path if health is not None else "/status": Route(page.answer),
        **(administration.routes(admin.path) if admin is not None else {}),
    }


class StatusPage:
    """JSON: the state of the server, each listener, store and scheduler, with their figures, and each worker. 503 while
    it is not serving.

    `tasks` is how many are alive: what only grows is a leak. Who may not administer every instance gets the state and
    nothing else: probes have no credentials.
    """

    def __init__(
        self,
        health: HealthRegistry,
        graph: StoreGraph,
        listeners: Sequence[Counting],
        doors: Doors,
        schedulers: Mapping[str, Scheduler],
    ) -> None:
        """`listeners` may still grow."""
        self._doors = doors
        self._health = health
        self._graph = graph
        self._listeners = listeners
        self._schedulers = schedulers

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
                "schedulers": {name: _scheduler(each) for name, each in self._schedulers.items()},
                "coder_memory": self._graph.coder_memory.statistics(),
                "auth": self._doors.statistics(),
            }
        return Response(
            status=HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE,
            body=json.dumps(body, indent=2).encode(),
            content_type="application/json; charset=utf-8",
        )


def _scheduler(scheduler: Scheduler) -> dict[str, object]:
    pool = scheduler.worker_pool
    workers = pool.workers() if pool is not None else ()
    return {
        **scheduler.statistics(),
        "connected": {
            each.worker_id: {
                "state": each.state,
                "running": each.running,
                "max_inflight": each.max_inflight,
                "free": dict(each.free),
                "silent_s": round(each.silent_s, 1),
                **({"why_paused": each.why_paused} if each.why_paused else {}),
                **({"kept_for": each.kept_for} if each.kept_for else {}),
            }
            for each in workers
        },
    }
