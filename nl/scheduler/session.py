"""A worker's session: what a connected worker is told and what it reports. Not here: the wire (services/worker_api)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from nl.errors import NlError
from nl.model.execution import ActionRequest
from nl.scheduler.core import Order, SchedulerCore
from nl.scheduler.state import Lease
from nl.scheduler.worker import Worker


@dataclass(frozen=True, slots=True)
class StartAction:
    """Run this. `operation_id` names the attempt: reports about it carry it back."""

    operation_id: str
    request: ActionRequest
    queued_at: float
    """Unix seconds."""

    @property
    def platform(self) -> tuple[tuple[str, str], ...]:
        """The properties the action was matched by, sorted."""
        return self.request.platform


@dataclass(frozen=True, slots=True)
class KillOperation:
    """Stop this attempt and report its end."""

    operation_id: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The scheduler has removed the worker; `reason` is for logs."""

    reason: str


Update = StartAction | KillOperation | Disconnect


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A connected worker as logs and pages show it."""

    worker_id: str
    state: str
    """`working`, `idle`, `paused`, or `draining`."""
    running: int
    max_inflight: int
    """0: unlimited."""
    free: Mapping[str, int]
    """What is left of its `minimum` properties."""
    properties: Mapping[str, frozenset[str]]
    silent_s: float
    """How long ago it was last heard of."""
    why_paused: str = ""
    """If it is paused."""
    kept_for: str = ""
    """The execution that it gets nothing less urgent for, if there is one."""


class WorkerSession:
    """One stream of one worker. Reports raise NlError ABORTED for an attempt that this worker does not hold (any more).

    *Concurrency*: one task waits for updates; reports may come from any task.
    """

    def __init__(
        self, worker: Worker, *, core: SchedulerCore, deliver: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self.worker = worker
        self._core = core
        self._deliver = deliver
        self._clock = clock
        self._updates: deque[Update] = deque()  # bounded by the unfinished operations: two orders for each at most
        self._arrived = trio.lowlevel.ParkingLot()
        self._evicted = trio.Event()

    @property
    def worker_id(self) -> str:
        return self.worker.id

    async def next_update(self) -> Update:
        """The next order, in order. After `Disconnect` there are no more. *Cancellation*: no update is lost."""
        while not self._updates:
            await self._arrived.park()
        return self._updates.popleft()

    def next_update_nowait(self) -> Update | None:
        """An order that is there already, or None: so that several can leave in one write."""
        return self._updates.popleft() if self._updates else None

    async def wait_evicted(self) -> None:
        """Returns once the scheduler has removed the worker of its own accord."""
        await self._evicted.wait()

    def keep_alive(self) -> None:
        """The worker is there."""
        self.worker.last_seen = self._clock()

    @property
    def is_quiet(self) -> bool:
        """Whether it has said nothing for so long that a sign of life would be welcome."""
        return self._clock() - self.worker.last_seen > self._core.options.worker_timeout_s / 2

    def reachable(self, at: float) -> None:
        """Its end of the connection gave a sign of life then, on the loop's clock; the worker itself need not have."""
        self.worker.reached = max(self.worker.reached, at)

    def executed(self, operation_id: str) -> None:
        """The process has ended, outputs are being uploaded: `minimum` properties are free again."""
        self.keep_alive()
        self._core.executed(self.worker, operation_id, now=self._clock())
        self._deliver()

    def complete(self, operation_id: str, response: bytes) -> bool:
        """The encoded ExecuteResponse. False if nobody waits for it because the attempt had been killed."""
        self.keep_alive()
        live = self._core.complete(self.worker, operation_id, response=response, now=self._clock())
        self._deliver()
        return live

    def fail(self, operation_id: str, error: NlError) -> bool:
        """The worker could not run it. RESOURCE_EXHAUSTED: not now; costs no attempt. False as for `complete`."""
        self.keep_alive()
        live = self._core.fail(self.worker, operation_id, error=error, now=self._clock())
        self._deliver()
        return live

    def going_away(self) -> None:
        """The worker wants no more work. It may finish what it has; what it leaves costs no attempt."""
        self.keep_alive()
        self._core.drain(self.worker, leaving=True, now=self._clock())
        self._deliver()

    @property
    def state(self) -> WorkerState:
        """A snapshot."""
        worker = self.worker
        state = "working" if worker.leases else "idle"
        state = "draining" if worker.draining else "paused" if worker.paused_until is not None else state
        silent_s = self._clock() - worker.last_seen
        running = len(worker.leases)
        held_for = worker.held_for
        return WorkerState(
            worker.id, state, running, worker.max_inflight, dict(worker.free), worker.offer.values, silent_s,
            why_paused=worker.why_paused if worker.paused_until is not None else "",
            kept_for=held_for.id if held_for is not None else "",
        )

    def push(self, order: Order, lease: Lease) -> None:
        """For the scheduler: queues an order."""
        if order is Order.START:
            execution = lease.execution
            self._updates.append(StartAction(lease.id, execution.request, execution.queued_at))
        else:
            self._updates.append(KillOperation(lease.id))
        self._arrived.unpark()

    def push_disconnect(self, reason: str) -> None:
        """For the scheduler: the last update."""
        self._updates.clear()
        self._updates.append(Disconnect(reason))
        self._evicted.set()
        self._arrived.unpark()

    def __repr__(self) -> str:
        return f"<WorkerSession {self.worker!r} pending={len(self._updates)}>"
