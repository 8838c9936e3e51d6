"""The scheduler without its loop: executions, queue, workers and leases under one set of rules. Pure.

Every method is one event. What has to be done about it (tell a worker, wake a client) is left in `outbox`, which the
caller empties after each event; time comes in as an argument. The trio shell is `simple.py`.

Rules for this file:

1. Whatever waits fits on no worker that has a slot, unless that worker is kept for something more urgent. So a newcomer
   that asks for the same as one that waits just queues up behind it, and only the workers that an event concerns are
   looked at: they are put on `_due`, and every event ends with `_settle`.
2. An execution is in exactly one place: being looked up, in one queue, under one lease, or finished and gone from here.
3. A failed attempt does not go back to the worker that failed it while another one could ever take it.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import islice

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
from nl.scheduler.claims import ActionId, Claims
from nl.scheduler.history import History
from nl.scheduler.matching import Offer, PropertyRules
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.order import QueueOrder
from nl.scheduler.pool import Pool
from nl.scheduler.queue import InFlightIndex
from nl.scheduler.reservations import Reservations
from nl.scheduler.state import LAST, Event, Execution, Lease, Rank
from nl.scheduler.waiting import Shape, WaitingIndex
from nl.scheduler.worker import TROUBLED_AFTER, Worker

LOOKS_PER_TICK = 500
"""So many shapes are looked at in each tick whether any worker could still take them."""
MAX_WHY_CHARS = 500
"""As much of a worker's reasons is kept."""
LOOKS_PER_LINE = 100
"""So many workers, and leases of each, are looked at to tell in the log how long a wait may take."""


class Order(enum.Enum):
    """What a worker is told about a lease."""

    START = "start"
    KILL = "kill"


@dataclass(slots=True)
class Outbox:
    """What the shell has to do after an event: orders to workers, in this order, and clients to wake."""

    orders: list[tuple[Order, Lease]] = field(default_factory=list)
    changed: dict[Execution, None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """For the log."""


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
        self.closing = False
        """Nothing is started any more."""
        self._in_flight = InFlightIndex()
        self._waiting = WaitingIndex()
        self._order = QueueOrder(ageing_s=options.priority_ageing_s)
        self._reservations = Reservations()
        self._history = History()
        self._claims = Claims()
        self._running: OrderedDict[Lease, None] = OrderedDict()
        self._revoked: OrderedDict[Lease, None] = OrderedDict()
        self._paused: dict[Worker, None] = {}
        self._due: dict[Worker, None] = {}
        self._sequence = 0
        self._new_id = new_id

    # --- clients ------------------------------------------------------------------------------------------------

    def join(self, request: ActionRequest, *, client: str, now: float) -> Execution | None:
        """Lets the client share an unfinished execution, which takes the better place of the two; or None."""
        execution = self._in_flight.find(request)
        if execution is None:
            return None
        execution.clients.add(client)
        execution.priority = min(execution.priority, request.priority)
        if execution.stage is Stage.QUEUED:
            virtual = self.pool.virtual(self._shape(execution).lane)
            rank = self._order.joined(execution, request, virtual=virtual)
            if rank < execution.rank:
                self._move(execution, rank, now=now)
                self._settle(now=now)
        return execution

    def admit(
        self, request: ActionRequest, *, client: str, id: str, lookup: bool, now: float, unix_now: float
    ) -> Execution:
        """A new execution, which waits for `cache_hit` or `cache_miss` if `lookup`, else is queued.

        Raises InvalidRequestError for platform properties that make no sense here, ExhaustedError when full.
        """
        needs = self.rules.requirements(request.platform, timeout_s=request.timeout_s)
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
            self._settle(now=now)
        return execution

    def leave(self, execution: Execution, *, client: str, error: NlError, now: float) -> None:
        """The client is no longer interested; when it was the last one, the execution ends with `error`."""
        execution.clients.discard(client)
        if not execution.clients and execution.stage is not Stage.COMPLETED:
            self._abandon(execution, error, now=now)
            self._settle(now=now)

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
            self._settle(now=now)

    # --- workers ------------------------------------------------------------------------------------------------

    def attach(
        self,
        worker_id: str,
        *,
        offer: Offer,
        max_inflight: int,
        running: Collection[ActionId] = (),
        draining: bool = False,
        now: float,
    ) -> Worker:
        """A worker is there. `running`: what goes on there since before, and is to come to it again. `draining`: it
        gets nothing until it is undrained.
        """
        worker = Worker(worker_id, offer, max_inflight, last_seen=now, draining=draining)
        worker.virtual = max((each.virtual for each in self._some_workers()), default=0.0)
        self.pool.add(worker)
        if running:
            self._claims.add(worker, running, now=now)
            wanted = frozenset(running)
            for execution in [each for each in self.executions.values() if _action_id(each) in wanted]:
                if execution.stage is Stage.QUEUED:
                    self._dequeue(execution)
                    self._start_or_wait(execution, self._shape(execution), now=now)
        self._due[worker] = None
        self._settle(now=now)
        return worker

    def detach(self, worker: Worker, *, error: NlError, now: float) -> None:
        """The worker is gone: what it had is queued again, at the cost of an attempt unless it left by itself."""
        if self.pool.workers.get(worker.id) is not worker:
            return
        self.pool.remove(worker, now=now)
        self._reservations.let_go(worker)
        self._paused.pop(worker, None)
        self._claims.drop(worker)
        leases = list(worker.leases.values())
        worker.leases.clear()
        live = [lease for lease in leases if lease.revoked_at is None]
        for lease in leases:
            self._forget(lease)
        for lease in sorted(live, key=lambda lease: lease.execution.rank):
            if not worker.leaving:
                lease.execution.lost_with += (worker.id,)
            self._retry(lease.execution, error, counts=not worker.leaving, now=now)
        self._settle(now=now)

    def executed(self, worker: Worker, lease_id: str, *, now: float) -> None:
        """The process has ended: gives `minimum` properties back early. Raises NlError ABORTED for a foreign lease."""
        lease = self._owned(worker, lease_id)
        lease.executed = True
        worker.give_back(lease)
        self.pool.refresh(worker)
        self._due[worker] = None
        self._settle(now=now)

    def complete(self, worker: Worker, lease_id: str, *, response: bytes, now: float) -> bool:
        """The worker's final word. False if the attempt had been revoked and nobody waits for it.

        Raises NlError ABORTED for a lease that this worker does not hold.
        """
        lease = self._owned(worker, lease_id)
        worker.refusals = 0
        worker.failed.clear()
        self._end_pause(worker)
        live = lease.revoked_at is None
        if live:
            self._history.ran(lease.execution.request, now - lease.started_at)
            self._end(lease.execution, Event.RESPOND, Outcome(response=response))
        self._return(worker, lease, now=now)
        return live

    def fail(self, worker: Worker, lease_id: str, *, error: NlError, now: float) -> bool:
        """The worker could not run it. RESOURCE_EXHAUSTED pauses the worker and costs no attempt. As `complete`."""
        lease = self._owned(worker, lease_id)
        live = lease.revoked_at is None
        if live:
            lease.execution.lost_with = ()
            self._note_failure(worker, lease.execution, error, now=now)
            self._retry(lease.execution, error, counts=error.code is not Code.RESOURCE_EXHAUSTED, now=now)
        self._return(worker, lease, now=now)
        return live

    def drain(self, worker: Worker, *, leaving: bool = False, now: float) -> None:
        """No new work for it; what it has goes on. `leaving`: it asked for that itself."""
        worker.draining = True
        worker.leaving = worker.leaving or leaving
        self._reservations.let_go(worker)
        self.pool.refresh(worker)
        self._settle(now=now)

    def undrain(self, worker: Worker, *, now: float) -> None:
        """It gets work again, unless it has said itself that it goes."""
        if not worker.leaving:
            worker.draining = False
            self.pool.refresh(worker)
            self._due[worker] = None
            self._settle(now=now)

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, *, now: float) -> None:
        """Everything that happens because time passes, but for workers that have to go (`overdue_workers`)."""
        for worker in list(self._paused):
            if worker.paused_until is not None and worker.paused_until <= now:
                self._end_pause(worker)
                self.pool.touch(worker)
                self._due[worker] = None
        self._settle(now=now)
        limit = self.options.max_action_executing_timeout_s
        while limit and self._running:
            lease = next(iter(self._running))
            if now - lease.started_at < limit:
                break
            self._revoke(lease, now=now)
            error = NlError(f"Operation timed out after {limit:g} seconds", code=Code.DEADLINE_EXCEEDED)
            self._retry(lease.execution, error, counts=True, now=now)
        for execution, rank in self._order.aged(lambda each: self.pool.virtual(self._shape(each).lane), now=now):
            self._move(execution, rank, now=now)
        for shape in self._waiting.some(LOOKS_PER_TICK):
            self._look_after(shape, now=now)
        self._claims.drop_old(now=now)
        self.pool.forget_departures(before=now - self.options.unmatched_grace_s)
        self._settle(now=now)

    def forgive(self, seconds: float) -> None:
        """Time in which nobody could be heard does not count against the workers."""
        for worker in self.pool.workers.values():
            worker.last_seen += seconds
            worker.reached += seconds

    def overdue_workers(self, *, now: float) -> list[tuple[Worker, str]]:
        """Workers that have been silent, or have not acknowledged a kill, for too long, each with the reason."""
        options = self.options
        overdue = {
            worker: f"nothing heard for {now - worker.last_seen:.0f} s"
            for worker in self.pool.workers.values()
            if worker.is_silent(options.worker_timeout_s, now=now)
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
            soon_s = self._next_place_s(shape, now=now)
            soon = "" if soon_s is None else f"; the next place is expected in about {soon_s:.0f} s"
            parts.append(f"{len(shape.queue)} queued, oldest {oldest:.0f} s: {self.pool.why_not(shape)}{soon}")
        if len(self._waiting) > len(parts):
            parts.append(f"and {len(self._waiting) - len(parts)} more kinds of requirements")
        return "; ".join(parts)

    def _next_place_s(self, shape: Shape, *, now: float) -> float | None:
        """When one of the actions that hold the places for this shape should have ended, by what such have taken."""
        soonest: float | None = None
        for worker in islice(self.pool.able(shape.needs, shape.avoided), LOOKS_PER_LINE):
            for lease in islice(worker.leases.values(), LOOKS_PER_LINE):
                expected_s = self._history.expected_s(lease.execution.request)
                if expected_s is not None:
                    left_s = max(0.0, lease.started_at + expected_s - now)
                    soonest = left_s if soonest is None else min(soonest, left_s)
        return soonest

    @property
    def is_executing(self) -> bool:
        """Whether any attempt runs that somebody waits for."""
        return bool(self._running)

    def counts(self) -> dict[str, int]:
        queued = len(self._order)
        executing = len(self._running)
        return {
            "workers": len(self.pool.workers),
            "cache_check": len(self.executions) - queued - executing,
            "queued": queued,
            "executing": executing,
            "being_killed": len(self._revoked),
            "workers_kept": len(self._reservations),
        }

    # --- inside: the queue --------------------------------------------------------------------------------------

    def _shape(self, execution: Execution) -> Shape:
        shape = self._waiting.find(execution.needs, execution.failed_on)
        if shape is None:
            lane = self.pool.lane(execution.needs)
            shape = Shape(execution.needs, avoided=execution.failed_on, lane=lane)
        return shape

    def _enqueue(self, execution: Execution, *, now: float) -> None:
        """It is up for a worker. One that has failed it counts only if there is no other."""
        if execution.failed_on and next(self.pool.able(execution.needs, execution.failed_on), None) is None:
            execution.failed_on = frozenset()
        shape = self._shape(execution)
        virtual = self.pool.virtual(shape.lane)
        self._order.enter(execution, lane=shape.lane, virtual=virtual, now=now)
        self._start_or_wait(execution, shape, now=now)

    def _start_or_wait(self, execution: Execution, shape: Shape, *, now: float) -> None:
        """The worker that runs it already comes first, whatever the order. A newcomer behind one that asks for the same
        need not look for another.
        """
        claimed = self._claims.take(_action_id(execution), now=now)
        if claimed is not None and not self.closing and claimed.has_slot:
            room = claimed.room_for(execution.rank)
            if room is not None and shape.fits(claimed, room):
                self._assign(execution, claimed, now=now)
                return
        if not self.closing and (shape.head is None or execution.rank < shape.head):
            while (worker := self.pool.pick(shape, rank=execution.rank)) is not None:
                if not self._keep(worker, upto=execution.rank, now=now):
                    self._assign(execution, worker, now=now)
                    return
        shape.queue.push(execution)
        self._waiting.update(shape)

    def _dequeue(self, execution: Execution) -> None:
        shape = self._shape(execution)
        shape.queue.discard(execution)
        self._waiting.update(shape)

    def _move(self, execution: Execution, rank: Rank, *, now: float) -> None:
        """Gives it a better place; with that it may pass what a worker is kept for."""
        self._dequeue(execution)
        self._order.move(execution, rank)
        self._start_or_wait(execution, self._shape(execution), now=now)

    def _keep(self, worker: Worker, *, upto: Rank, now: float) -> bool:
        """Keeps the worker for what is more urgent than `upto` and needs more room, if there is such that may."""
        for execution in self._waiting.wider_for(worker, upto=upto):
            if self._reservations.may_hold(worker, execution, workers=len(self.pool.workers), now=now):
                self._reservations.hold(worker, execution)
                return True
        return False

    def _settle(self, *, now: float) -> None:
        """Gives the workers that something has changed for what they can take, the most urgent first."""
        while self._due:
            worker, _ = self._due.popitem()
            while worker.has_slot and not self.closing:
                shape = self._next_for(worker)
                if shape is None or shape.head is None:
                    break
                if not self._keep(worker, upto=shape.head, now=now):
                    execution = shape.queue.pop()
                    self._waiting.update(shape)
                    self._assign(execution, worker, now=now)

    def _next_for(self, worker: Worker) -> Shape | None:
        """What waits and fits, the most urgent first; on a worker that is kept, then what fits beside that."""
        held_for = worker.held_for
        if held_for is None:
            return self._waiting.best_for(worker, worker.free)
        shape = self._waiting.best_for(worker, worker.free, upto=held_for.rank)
        if shape is None:
            room = worker.room_for(LAST)
            shape = None if room is None else self._waiting.best_for(worker, room)
        return shape

    def _assign(self, execution: Execution, worker: Worker, *, now: float) -> None:
        execution.advance(Event.ASSIGN)
        self._order.leave(execution)
        for kept in self._reservations.release(execution):
            self._due[kept] = None
        lease_id = self._new_id() if execution.leases_given else execution.id
        execution.leases_given += 1
        lease = execution.lease = Lease(lease_id, execution, worker.id, started_at=now)
        held_for = worker.held_for
        lease.beside = held_for is not None and held_for.rank < execution.rank
        worker.reserve(lease, execution.needs)
        worker.virtual = max(worker.virtual, execution.rank[1])
        self._running[lease] = None
        self.pool.touch(worker, assigned=True)
        self.outbox.orders.append((Order.START, lease))
        self.outbox.changed[execution] = None

    # --- inside: leases -----------------------------------------------------------------------------------------

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
        self.pool.touch(worker)
        self._due[worker] = None
        self._settle(now=now)

    def _forget(self, lease: Lease) -> None:
        self._running.pop(lease, None)
        self._revoked.pop(lease, None)

    def _revoke(self, lease: Lease, *, now: float) -> None:
        lease.revoked_at = now
        self._running.pop(lease, None)
        self._revoked[lease] = None
        self.outbox.orders.append((Order.KILL, lease))

    def _note_failure(self, worker: Worker, execution: Execution, error: NlError, *, now: float) -> None:
        """What a failure says about the worker."""
        if error.code is Code.RESOURCE_EXHAUSTED:
            self._pause(worker, error.message, now=now)
            return
        if _is_for_the_client(error):
            return
        execution.failed_on |= {worker.id}
        if len(worker.failed) < TROUBLED_AFTER:
            worker.failed.add(execution.id)
        if len(worker.failed) >= TROUBLED_AFTER:
            pause = self._pause(worker, error.message, now=now)
            text = f"worker {worker.id} has failed {TROUBLED_AFTER} actions in a row and gets none for {pause:g} s"
            self.outbox.warnings.append(f"{text}; the last failure: {error.message}")

    def _pause(self, worker: Worker, why: str, *, now: float) -> float:
        pause = worker.pause(why[:MAX_WHY_CHARS], now=now)
        self._paused[worker] = None
        self._reservations.let_go(worker)
        self.pool.refresh(worker)
        return pause

    def _end_pause(self, worker: Worker) -> None:
        worker.paused_until = None
        self._paused.pop(worker, None)

    def _retry(self, execution: Execution, error: NlError, *, counts: bool, now: float) -> None:
        """Another attempt, unless they have run out or the client has to mend something first (missing inputs)."""
        execution.attempts += counts
        final = self._last_word(execution, error)
        if final is not None:
            self._end(execution, Event.ABANDON, Outcome(error=final))
            return
        execution.advance(Event.PUT_BACK)
        execution.lease = None
        execution.waiting_since = now
        self.outbox.changed[execution] = None
        self._enqueue(execution, now=now)

    def _last_word(self, execution: Execution, error: NlError) -> NlError | None:
        """What the execution ends with after this failure; None if it is tried again."""
        if _is_for_the_client(error):
            return error
        # a client that sees UNAVAILABLE tries again, and an action that kills its workers would go on and on
        code = Code.INTERNAL if error.code is Code.UNAVAILABLE else error.code
        lost, most_lost = execution.lost_with, self.options.max_lost_workers
        if most_lost and len(lost) >= most_lost:
            text = f"{len(lost)} workers in a row were lost while they executed this action ({', '.join(lost)})"
            return NlError(f"{text}: it seems to be what ends them; the last: {error.message}", code=code)
        limit = self.options.max_job_retries
        if execution.attempts > limit:
            text = f"Job cancelled because it attempted to execute too many times {execution.attempts} > {limit} times"
            return NlError(f"{text}; last failure: {error.message}", code=code, details=error.details)
        return None

    def _abandon(self, execution: Execution, error: NlError, *, now: float) -> None:
        if execution.stage is Stage.QUEUED:
            self._dequeue(execution)
            self._order.leave(execution)
            for kept in self._reservations.release(execution):
                self._due[kept] = None
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

    # --- inside: what nobody could run --------------------------------------------------------------------------

    def _look_after(self, shape: Shape, *, now: float) -> None:
        """Fails what no worker could ever run; lets a worker have what it has failed if there is no other any more."""
        if next(self.pool.able(shape.needs, shape.avoided), None) is not None:
            return
        if shape.avoided:
            for execution in sorted(shape.queue, key=lambda each: each.rank):
                self._dequeue(execution)
                self._order.leave(execution)
                execution.failed_on = frozenset()
                self._enqueue(execution, now=now)
            return
        grace = self.options.unmatched_grace_s
        left = self.pool.last_departure(shape.needs)
        if not grace or (left is not None and now - left < grace):
            return
        late = [each for each in shape.queue if now - each.waiting_since >= grace]
        if not late:
            return
        error: NlError
        if self.pool.workers:
            missing = self.pool.missing(shape.needs)
            error = PreconditionError(f"no worker offers {missing} (waited {grace:g} s)")
        else:
            error = UnavailableError(f"no worker is connected (waited {grace:g} s)")
        for execution in late:
            self._abandon(execution, error, now=now)

    def _some_workers(self) -> list[Worker]:
        return list(islice(self.pool.workers.values(), 8))


def _action_id(execution: Execution) -> ActionId:
    digest = execution.request.action_digest
    return (digest.hash, digest.size)


def _is_for_the_client(error: NlError) -> bool:
    """Whether the client has to mend something first: missing inputs."""
    return any(isinstance(each, Violation) and each.type == "MISSING" for each in error.details)
