"""The administration of a listener that has `admin`: taking workers out of service and back, as NativeLink has it.

`POST {path}/scheduler/{scheduler}/set_drain_worker/{worker_id}/{0|1}`, and of our own
`.../set_drain_property/{name}/{value}/{0|1}` for all workers that declare it, also those that connect later. Whoever
asks must be allowed to administer every instance: a worker gets actions of any.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import unquote

from nl.errors import NotFoundError
from nl.model.access import Right
from nl.scheduler.contract import Scheduler, WorkerPool
from nl.server.doors import Doors
from nl.web.server import HttpError, Request, Response, Route

_USAGE = (
    "expected POST .../scheduler/{scheduler}/set_drain_worker/{worker_id}/{0|1} or "
    ".../set_drain_property/{name}/{value}/{0|1}"
)


class Administration:
    """What is done by a request's path."""

    def __init__(self, schedulers: Mapping[str, Scheduler], doors: Doors) -> None:
        self._schedulers = schedulers
        self._doors = doors

    def routes(self, path: str) -> Mapping[str, Route]:
        """By path, for a listener whose `admin` begins there."""
        return {f"{path.rstrip('/')}/scheduler/": Route(self.answer, frozenset({"POST"}))}

    async def answer(self, request: Request) -> Response:
        """Does it, and says so in a line of text."""
        for name in self._doors.instances:
            request.identity.require(Right.ADMINISTER, name)
        match [unquote(each) for each in request.path.split("/")]:
            case [*_, "scheduler", scheduler, "set_drain_worker", worker_id, "0" | "1" as flag]:
                return Response(body=_drain_worker(self._pool(scheduler), worker_id, drained=flag == "1").encode())
            case [*_, "scheduler", scheduler, "set_drain_property", name, value, "0" | "1" as flag]:
                return Response(body=_drain_property(self._pool(scheduler), name, value, drained=flag == "1").encode())
        raise HttpError(HTTPStatus.NOT_FOUND, _USAGE)

    def _pool(self, name: str) -> WorkerPool:
        scheduler = self._schedulers.get(name)
        pool = scheduler.worker_pool if scheduler is not None else None
        if pool is None:
            known = ", ".join(repr(each) for each, one in self._schedulers.items() if one.worker_pool is not None)
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is no scheduler {name!r} with workers; there are: {known}")
        return pool


def _drain_worker(pool: WorkerPool, worker_id: str, *, drained: bool) -> str:
    try:
        (pool.drain if drained else pool.undrain)(worker_id)
    except NotFoundError as exc:
        raise HttpError(HTTPStatus.NOT_FOUND, exc.message) from exc
    return f"{'Draining' if drained else 'Undraining'} worker {worker_id}"


def _drain_property(pool: WorkerPool, name: str, value: str, *, drained: bool) -> str:
    found = pool.drain_offering(name, value, drained=drained)
    verb = "Draining" if drained else "Undraining"
    return f"{verb} workers with {name}={value}: {', '.join(found) or 'none is connected'}"
