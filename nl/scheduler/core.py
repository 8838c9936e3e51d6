"""The scheduler without its loop: executions, queue, workers and leases under one set of rules. Pure.

Every method is one event. What has to be done about it (tell a worker, wake a client) is left in `outbox`, which the
caller empties after each event; time comes in as an argument. The trio shell is `simple.py`.

Rules for this file:

1. While anything of a shape waits, no worker can take that shape: so a newcomer of that shape just queues up, and
   only the worker that an event concerns needs to be looked at.
2. An execution is in exactly one place: being looked up, in one queue, under one lease, or finished and gone from here.
3. A failed attempt is offered to the other workers before the worker that failed it.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from nl.errors import (
    Code,
    ExhaustedError,
    InternalError,
    NlError,
    PreconditionError,
    UnavailableError,
    Violation,
)
from nl.model.execution import ActionRequest, Outcome, Stage
from nl.scheduler.matching import Offer, PropertyRules
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.pool import Pool, Shape, WaitingShapes, Worker
from nl.scheduler.queue import InFlightIndex
from nl.scheduler.state import Event, Execution, Lease

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
"""A worker that is out of resources gets nothing for a while, doubling from the first to the longest pause."""


class Order(enum.Enum):
    """What a worker is told about a lease."""

    START = "start"
    KILL = "kill"


@dataclass(slots=True)
class Outbox:
    """What the shell has to do after an event: orders to workers, in this order, and clients to wake."""

    orders: list[tuple[Order, Lease]] = field(default_factory=list)
    changed: dict[Execution, None] = field(default_factory=dict)


class SchedulerCore:
    """All state of one scheduler but for clients' operations. `new_id` makes ids of leases after the first."""

    def __init__(self, options: SimpleSchedulerOptions, *, new_id: Callable[[], str]) -> None:
        self.options = options
        self.outbox = Outbox()
        self.rules = PropertyRules(
            options.supported_platform_properties,
            implied=options.implied_platform_properties,
            reject_unknown=options.unknown_platform_properties == "reject",
        )
        self.pool = Pool(options.allocation_strategy)
        self.executions: dict[str, Execution] = {}
        self._in_flight = InFlightIndex()
        self._waiting = WaitingShapes()
        self._running: OrderedDict[Lease, None] = OrderedDict()
        self._revoked: OrderedDict[Lease, None] = OrderedDict()
        self._sequence = 0
        self._new_id = new_id

    # --- clients ------------------------------------------------------------------------------------------------

    def join(self, request: ActionRequest, *, client: str) -> Execution | None:
        """Lets the client share an unfinished execution, which takes the higher urgency of the two; or None."""
        execution = self._in_flight.find(request)
        if execution is None:
            return None
        execution.clients.add(client)
        if request.priority < execution.priority:
            execution.priority = request.priority
            if execution.stage is Stage.QUEUED:
                shape = self._shape(execution, now=execution.waiting_since)
                shape.queue.push(execution)
                self._waiting.update(shape)
        return execution

    def admit(
        self, request: ActionRequest, *, client: str, id: str, lookup: bool, now: float, unix_now: float
    ) -> Execution:
        """A new execution, which waits for `cache_hit` or `cache_miss` if `lookup`, else is queued.

        Raises InvalidRequestError for platform properties that make no sense here, ExhaustedError when full.
        """
        needs = self.rules.requirements(request.platform)
        if len(self.executions) >= self.options.max_operations:
            raise ExhaustedError(f"the scheduler holds {len(self.executions)} unfinished operations, its maximum")
        self._sequence += 1
        execution = self.executions[id] = Execution(
            id=id,
            request=request,
            needs=needs,
            sequence=self._sequence,
            priority=request.priority,
            stage=Stage.CACHE_CHECK if lookup else Stage.QUEUED,
            queued_at=unix_now,
            waiting_since=now,
            clients={client},
        )
        self._in_flight.add(execution)
        if not lookup:
            self._enqueue(execution, now=now)
        return execution

    def leave(self, execution: Execution, *, client: str, error: NlError, now: float) -> None:
        """The client is no longer interested; when it was the last one, the execution ends with `error`."""
        execution.clients.discard(client)
        if not execution.clients and execution.stage is not Stage.COMPLETED:
            self._abandon(execution, error, now=now)

    def cache_hit(self, execution: Execution, response: bytes) -> None:
        """The lookup found a result. A lookup that comes back for an execution that is over changes nothing."""
        if execution.stage is Stage.CACHE_CHECK:
            self._end(execution, Event.CACHE_HIT, Outcome(response=response, cached=True))

    def cache_miss(self, execution: Execution, *, now: float) -> None:
        if execution.stage is Stage.CACHE_CHECK:
            execution.advance(Event.CACHE_MISS)
            self.outbox.changed[execution] = None
            execution.waiting_since = now
            self._enqueue(execution, now=now)

    # --- workers ------------------------------------------------------------------------------------------------

    def attach(self, worker_id: str, *, offer: Offer, max_inflight: int, now: float) -> Worker:
        worker = Worker(worker_id, offer, max_inflight, last_seen=now)
        self.pool.add(worker)
        self._fill(worker, now=now)
        return worker

    def detach(self, worker: Worker, *, error: NlError, now: float) -> None:
        """The worker is gone: what it had is queued again, at the cost of an attempt unless it left by itself."""
        if self.pool.workers.get(worker.id) is not worker:
            return
        self.pool.remove(worker, now=now)
        leases = list(worker.leases.values())
        worker.leases.clear()
        live = [lease for lease in leases if lease.revoked_at is None]
        for lease in leases:
            self._forget(lease)
        for lease in sorted(live, key=lambda lease: lease.execution.rank):
            self._retry(lease.execution, error, counts=not worker.leaving, now=now)

    def executed(self, worker: Worker, lease_id: str, *, now: float) -> None:
        """The process has ended: gives `minimum` properties back early. Raises NlError ABORTED for a foreign lease."""
        lease = self._owned(worker, lease_id)
        lease.executed = True
        worker.give_back(lease)
        self._fill(worker, now=now)

    def complete(self, worker: Worker, lease_id: str, *, response: bytes, now: float) -> bool:
        """The worker's final word. False if the attempt had been revoked and nobody waits for it.

        Raises NlError ABORTED for a lease that this worker does not hold.
        """
        lease = self._owned(worker, lease_id)
        worker.refusals = 0
        worker.paused_until = None
        live = lease.revoked_at is None
        if live:
            self._end(lease.execution, Event.RESPOND, Outcome(response=response))
        self._return(worker, lease, now=now)
        return live

    def fail(self, worker: Worker, lease_id: str, *, error: NlError, now: float) -> bool:
        """The worker could not run it. RESOURCE_EXHAUSTED pauses the worker and costs no attempt. As `complete`."""
        lease = self._owned(worker, lease_id)
        refused = error.code is Code.RESOURCE_EXHAUSTED
        live = lease.revoked_at is None
        if live and refused:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(worker.refusals, 10))
            worker.refusals += 1
            worker.paused_until = now + pause
            self.pool.refresh(worker)
        if live:
            self._retry(lease.execution, error, counts=not refused, now=now)
        self._return(worker, lease, now=now)
        return live

    def drain(self, worker: Worker, *, leaving: bool = False) -> None:
        """No new work for it; what it has goes on. `leaving`: it asked for that itself."""
        worker.draining = True
        worker.leaving = worker.leaving or leaving
        self.pool.refresh(worker)

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, *, now: float) -> None:
        """Everything that happens because time passes, but for workers that have to go (`overdue_workers`)."""
        for worker in list(self.pool.workers.values()):
            if worker.paused_until is not None and worker.paused_until <= now:
                worker.paused_until = None
                self.pool.refresh(worker)
                self.pool.touch(worker)
                self._fill(worker, now=now)
        limit = self.options.max_action_executing_timeout_s
        while limit and self._running:
            lease = next(iter(self._running))
            if now - lease.started_at < limit:
                break
            self._revoke(lease, now=now)
            error = NlError(f"Operation timed out after {limit:g} seconds", code=Code.DEADLINE_EXCEEDED)
            self._retry(lease.execution, error, counts=True, now=now)
        if self.options.unmatched_grace_s:
            for shape in self._waiting:
                self._fail_unmatched(shape, now=now)

    def forgive(self, seconds: float) -> None:
        """Time in which nobody could be heard does not count against the workers."""
        for worker in self.pool.workers.values():
            worker.last_seen += seconds

    def overdue_workers(self, *, now: float) -> list[tuple[Worker, str]]:
        """Workers that have been silent, or have not acknowledged a kill, for too long, each with the reason."""
        options = self.options
        overdue = {
            worker: f"nothing heard for {options.worker_timeout_s:g} s"
            for worker in self.pool.workers.values()
            if worker.last_seen <= now - options.worker_timeout_s
        }
        for lease in self._revoked:
            if lease.revoked_at is None or now - lease.revoked_at < options.unacknowledged_kill_timeout_s:
                break
            worker = self.pool.workers[lease.worker_id]
            overdue.setdefault(worker, f"kill of {lease.id} not acknowledged")
        return list(overdue.items())

    def why_waiting(self, *, now: float) -> str | None:
        """One line about what waits and why, or None if nothing waits."""
        if not self._waiting:
            return None
        parts = []
        for shape in sorted(self._waiting, key=lambda shape: -len(shape.queue))[:5]:
            oldest = now - min(execution.waiting_since for execution in shape.queue)
            parts.append(f"{len(shape.queue)} queued, oldest {oldest:.0f} s: {self.pool.why_not(shape)}")
        if len(self._waiting) > len(parts):
            parts.append(f"and {len(self._waiting) - len(parts)} more kinds of requirements")
        return "; ".join(parts)

    def counts(self) -> dict[str, int]:
        queued = sum(len(shape.queue) for shape in self._waiting)
        executing = len(self._running)
        return {
            "workers": len(self.pool.workers),
            "cache_check": len(self.executions) - queued - executing,
            "queued": queued,
            "executing": executing,
            "being_killed": len(self._revoked),
        }

    # --- inside -------------------------------------------------------------------------------------------------

    def _shape(self, execution: Execution, *, now: float) -> Shape:
        return self.pool.shape(execution.needs, now=now)

    def _enqueue(self, execution: Execution, *, now: float) -> None:
        shape = self._shape(execution, now=now)
        if not shape.queue:
            worker = self.pool.pick(shape)
            if worker is not None:
                self._assign(execution, worker, now=now)
                return
        shape.queue.push(execution)
        self._waiting.update(shape)

    def _fill(self, worker: Worker, *, now: float) -> None:
        """Gives the worker what it can take, the most urgent first."""
        index = 0  # what did not fit earlier in the order does not fit later on: there is only less
        while worker.has_slot and (shape := self._waiting.at(index)) is not None:
            if shape in worker.shapes and worker.fits(shape.needs):
                execution = shape.queue.pop()
                self._waiting.update(shape)
                self._assign(execution, worker, now=now)
            else:
                index += 1

    def _assign(self, execution: Execution, worker: Worker, *, now: float) -> None:
        execution.advance(Event.ASSIGN)
        lease_id = self._new_id() if execution.leases_given else execution.id
        execution.leases_given += 1
        lease = execution.lease = Lease(lease_id, execution, worker.id, started_at=now)
        worker.reserve(lease, execution.needs)
        self._running[lease] = None
        self.pool.refresh(worker)
        self.pool.touch(worker)
        self.outbox.orders.append((Order.START, lease))
        self.outbox.changed[execution] = None

    def _owned(self, worker: Worker, lease_id: str) -> Lease:
        lease = worker.leases.get(lease_id)
        if lease is None:
            raise NlError(f"Worker ids do not match: {worker.id} does not run operation {lease_id}", code=Code.ABORTED)
        return lease

    def _return(self, worker: Worker, lease: Lease, *, now: float) -> None:
        """The worker is done with the lease: frees its place and fills it again."""
        del worker.leases[lease.id]
        worker.give_back(lease)
        self._forget(lease)
        self.pool.refresh(worker)
        self.pool.touch(worker)
        self._fill(worker, now=now)

    def _forget(self, lease: Lease) -> None:
        self._running.pop(lease, None)
        self._revoked.pop(lease, None)

    def _revoke(self, lease: Lease, *, now: float) -> None:
        lease.revoked_at = now
        self._running.pop(lease, None)
        self._revoked[lease] = None
        self.outbox.orders.append((Order.KILL, lease))

    def _retry(self, execution: Execution, error: NlError, *, counts: bool, now: float) -> None:
        """Another attempt, unless they have run out or the client has to mend something first (missing inputs)."""
        limit = self.options.max_job_retries
        execution.attempts += counts
        if any(isinstance(each, Violation) and each.type == "MISSING" for each in error.details):
            self._end(execution, Event.ABANDON, Outcome(error=error))
            return
        if execution.attempts > limit:
            text = f"Job cancelled because it attempted to execute too many times {execution.attempts} > {limit} times"
            # a client that sees UNAVAILABLE tries again, and an action that kills its workers would go on and on
            code = Code.INTERNAL if error.code is Code.UNAVAILABLE else error.code
            final = NlError(f"{text}; last failure: {error.message}", code=code, details=error.details)
            self._end(execution, Event.ABANDON, Outcome(error=final))
            return
        execution.advance(Event.PUT_BACK)
        execution.lease = None
        execution.waiting_since = now
        self.outbox.changed[execution] = None
        self._enqueue(execution, now=now)

    def _abandon(self, execution: Execution, error: NlError, *, now: float) -> None:
        if execution.stage is Stage.QUEUED:
            shape = self._shape(execution, now=now)
            shape.queue.discard(execution)
            self._waiting.update(shape)
        elif execution.lease is not None:
            self._revoke(execution.lease, now=now)
        self._end(execution, Event.ABANDON, Outcome(error=error))

    def _end(self, execution: Execution, event: Event, outcome: Outcome) -> None:
        execution.advance(event)
        execution.lease = None
        execution.outcome = outcome
        if self.executions.pop(execution.id, None) is None:
            raise InternalError(f"execution {execution.id} ended twice")
        self._in_flight.discard(execution)
        self.outbox.changed[execution] = None

    def _fail_unmatched(self, shape: Shape, *, now: float) -> None:
        grace = self.options.unmatched_grace_s
        if shape.candidates or now - shape.unmatched_since < grace:
            return
        error: NlError
        if self.pool.workers:
            missing = self.pool.missing(shape.needs)
            error = PreconditionError(f"no worker offers {missing} (waited {grace:g} s)")
        else:
            error = UnavailableError(f"no worker is connected (waited {grace:g} s)")
        for execution in [each for each in shape.queue if now - each.waiting_since >= grace]:
            self._abandon(execution, error, now=now)
