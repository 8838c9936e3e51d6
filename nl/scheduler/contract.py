"""What services and schedulers in front of others need of a scheduler, and of what it hands out.

`SimpleScheduler` is one with workers of its own; `SchedulerWrapper` stands in front of another and changes some of
what it is asked. Not here: which kinds there are (nl.config.schedulers), how they are put together (builder.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import trio

from nl.model.execution import ActionRequest, OperationState
from nl.scheduler.claims import ActionId
from nl.scheduler.session import WorkerSession, WorkerState

Lookup = Callable[[ActionRequest], Awaitable[bytes | None]]
"""Asks the action cache: the encoded ExecuteResponse (cached_result set) of a hit, or None."""


class Operation(Protocol):
    """One client's handle on an action that is looked up, queued, executed or finished."""

    @property
    def name(self) -> str:
        """`{instance}/{id}`, or the id alone for the instance ""."""

    @property
    def owner(self) -> str:
        """The name of whoever asked."""

    @property
    def number(self) -> int:
        """Grows from one operation of this process to the next."""

    @property
    def request(self) -> ActionRequest:
        """What was asked for, by this client or by a twin with whom it shares the execution."""

    @property
    def state(self) -> OperationState:
        """A snapshot."""

    @property
    def done(self) -> bool:
        """Whether it has an outcome."""

    async def wait_changed(self, version: int) -> OperationState:
        """Returns as soon as the version is later than `version`, at once if it is already.

        *Cancellation*: safe. *Concurrency*: any number of waiters.
        """

    def watched(self) -> AbstractContextManager[None]:
        """Says that a client listens, for the length of the block."""


class WorkerPool(Protocol):
    """Where workers connect."""

    def attach_worker(
        self,
        properties: Iterable[tuple[str, str]],
        *,
        prefix: str = "",
        max_inflight: int = 0,
        max_timeout_s: float = ...,
        running: Sequence[ActionId] = (),
    ) -> AbstractContextManager[WorkerSession]:
        """A worker is connected for the length of the block; what it has not finished at the end is tried elsewhere.
        `max_timeout_s` is the longest time limit that it lets an action have; `running` are actions that go on there
        since an earlier connection, and are given to it first.

        Raises InvalidRequestError for a `minimum` property that is not a number and for a prefix that is no name,
        UnavailableError during a shutdown.
        """

    def workers(self) -> Sequence[WorkerState]:
        """The connected workers, the longest connected first."""

    def drain(self, worker_id: str) -> None:
        """No new work for this worker; what it has goes on. Raises NotFoundError."""

    def undrain(self, worker_id: str) -> None:
        """It gets work again, unless it has said itself that it goes. Raises NotFoundError."""

    def drain_offering(self, name: str, value: str, *, drained: bool) -> Sequence[str]:
        """No new work for the workers that declare this value of a property, now or later; or again. The ids of those
        that are connected.
        """


class Scheduler(Protocol):
    """Takes actions and knows what becomes of them. *Concurrency*: all methods, from any task of the loop."""

    @property
    def name(self) -> str:
        """As in the config."""

    @property
    def worker_pool(self) -> WorkerPool | None:
        """Where its workers connect; None if they are somebody else's."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Its background work, until cancelled. Started once operations may be submitted."""

    async def submit(self, request: ActionRequest, *, owner: str = "", lookup: Lookup | None = None) -> Operation:
        """Starts, or joins, the execution of an action. The operation counts as not listened to until `watched`.

        `owner` is the name of whoever asks; twins of others share the execution, never the operation. `lookup` is asked
        first, instead of what the scheduler would ask itself.

        Raises InvalidRequestError for platform properties that nobody here knows, ExhaustedError when the queue is
        full, UnavailableError during a shutdown.
        """

    def operation(self, name: str, *, owner: str | None = None) -> Operation:
        """The operation of that name; if `owner` is given, only one of its own: others' are not there for it.

        Asking counts as interest. Raises NotFoundError.
        """

    def operations(self) -> Sequence[Operation]:
        """All that are known, the oldest first."""

    async def cancel(self, name: str) -> None:
        """Ends the operation as CANCELLED; kills the action unless others wait for it. Over already: no effect.

        Raises NotFoundError.
        """

    def forget(self, name: str) -> None:
        """Drops a finished operation before its time. Raises NotFoundError, or PreconditionError if it goes on."""

    def known_properties(self) -> Sequence[str]:
        """Names of platform properties that actions may use here."""

    def statistics(self) -> Mapping[str, int | float | str]:
        """A snapshot of levels and counters."""

    def stop_admission(self) -> None:
        """The first step of a shutdown: nothing new is taken or started, what runs goes on."""

    async def finish(self) -> None:
        """The second step: returns when nothing runs any more, or when running actions have had their time."""

    def shut_down(self) -> None:
        """The last step: what is unfinished ends as UNAVAILABLE, and workers are sent away."""


class SchedulerWrapper:
    """Stands in front of another scheduler and passes everything on. Derived classes change some of it."""

    def __init__(self, inner: Scheduler, *, name: str = "") -> None:
        self.inner = inner
        self.name = name

    @property
    def worker_pool(self) -> WorkerPool | None:
        return self.inner.worker_pool

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The inner scheduler's background work, and that of this one, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.inner.run)
            await nursery.start(self.background)
            task_status.started()

    async def background(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """What a derived class does besides; nothing here."""
        task_status.started()

    async def submit(self, request: ActionRequest, *, owner: str = "", lookup: Lookup | None = None) -> Operation:
        return await self.inner.submit(request, owner=owner, lookup=lookup)

    def operation(self, name: str, *, owner: str | None = None) -> Operation:
        return self.inner.operation(name, owner=owner)

    def operations(self) -> Sequence[Operation]:
        return self.inner.operations()

    async def cancel(self, name: str) -> None:
        await self.inner.cancel(name)

    def forget(self, name: str) -> None:
        self.inner.forget(name)

    def known_properties(self) -> Sequence[str]:
        return self.inner.known_properties()

    def statistics(self) -> Mapping[str, int | float | str]:
        return self.inner.statistics()

    def stop_admission(self) -> None:
        self.inner.stop_admission()

    async def finish(self) -> None:
        await self.inner.finish()

    def shut_down(self) -> None:
        self.inner.shut_down()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} before {self.inner!r}>"
