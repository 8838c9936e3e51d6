"""The `simple` scheduler: the trio shell around the pure core. It owns timers, cache lookups and clients' operations.

Services hand it requests and wait on operations; worker streams open sessions. Everything here runs in one thread
between two awaits, so each event is applied whole. Not here: rules (core.py), the wire (services/).
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import trio

from nl.errors import (
    CancelledError,
    Code,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NlError,
    NotFoundError,
    UnavailableError,
)
from nl.model.execution import ActionRequest, Outcome
from nl.scheduler.claims import ActionId
from nl.scheduler.contract import Lookup
from nl.scheduler.core import SchedulerCore
from nl.scheduler.matching import Requirement
from nl.scheduler.operation import Operation, OperationBook
from nl.scheduler.options import SimpleSchedulerOptions
from nl.scheduler.session import WorkerSession, WorkerState
from nl.scheduler.state import Execution

log = logging.getLogger("nl.scheduler")

TICK_S = 1.0
"""How finely time-outs are looked at."""

MAX_PREFIX_CHARS = 256
MAX_DRAINED = 1000
"""How many properties are remembered whose workers are out of service."""


def _new_id() -> str:
    return str(uuid.uuid4())


class SimpleScheduler:
    """Queues, matches and retries actions on connected workers. `run` must be running for anything else to work.

    *Concurrency*: all methods may be called from any task of the loop.
    """

    def __init__(
        self,
        options: SimpleSchedulerOptions,
        *,
        lookup: Lookup | None = None,
        name: str = "",
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.options = options
        self.name = name
        self._lookup = lookup
        self._clock = clock
        self._core = SchedulerCore(options, new_id=_new_id)
        self._operations: OperationBook[Operation] = OperationBook(
            retain_s=options.retain_completed_for_s, max_bytes=options.max_retained_bytes, clock=clock
        )
        self._sessions: dict[str, WorkerSession] = {}
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._idle = trio.Event()
        """Set when nothing runs any more after `stop_admission`."""
        self._totals: Counter[str] = Counter()
        self._drained: dict[Requirement, None] = {}
        """Properties whose workers are out of service."""

    @property
    def worker_pool(self) -> SimpleScheduler:
        """Its own: workers connect here."""
        return self

    # --- lifetime -----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Timers and cache lookups, until cancelled. Started once operations may be submitted."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_time)
            if self.options.worker_match_logging_interval_s > 0:
                nursery.start_soon(self._log_waiting)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def stop_admission(self) -> None:
        """The first step of a shutdown: new operations and new workers are refused as UNAVAILABLE, what waits is not
        started any more, what runs goes on.
        """
        self._stopping = True
        self._core.closing = True
        self._deliver()

    async def finish(self) -> None:
        """The second step: returns when nothing runs any more, after `shutdown_grace_s` at the latest."""
        with trio.move_on_after(self.options.shutdown_grace_s):
            await self._idle.wait()

    def shut_down(self) -> None:
        """The last step of a shutdown: what is unfinished ends as UNAVAILABLE, and workers are sent away."""
        self.stop_admission()
        for operation in self.operations():
            if not operation.done:
                self._give_up(operation, UnavailableError("the scheduler is shutting down"))
        for session in list(self._sessions.values()):
            self._send_away(session, "the scheduler is shutting down")
        self._deliver()

    # --- clients ------------------------------------------------------------------------------------------------

    async def submit(self, request: ActionRequest, *, owner: str = "", lookup: Lookup | None = None) -> Operation:
        """Starts, or joins, the execution of an action. The operation counts as not listened to until `watched`.

        `owner` is the name of whoever asks; twins of others share the execution, never the operation. `lookup` is asked
        first, instead of the one that all actions here are looked up with.

        Raises InvalidRequestError for platform properties that nobody here knows, ExhaustedError when the queue is
        full, UnavailableError during a shutdown.
        """
        nursery = self._nursery
        if self._stopping:
            raise UnavailableError("the scheduler is shutting down")
        if nursery is None:
            raise InternalError(f"{self!r} is not running")
        unfinished = self._operations.unfinished
        if unfinished >= self.options.max_operations:
            raise ExhaustedError(f"the scheduler holds {unfinished} unfinished operations, its maximum")
        id = _new_id()
        name = f"{request.instance_name}/{id}" if request.instance_name else id
        execution = self._core.join(request, client=name, now=self._clock())
        if execution is None:
            lookup = lookup or self._lookup
            if request.skip_cache_lookup or request.do_not_cache:
                lookup = None
            execution = self._core.admit(
                request, client=name, id=id, lookup=lookup is not None, now=self._clock(), unix_now=time.time()
            )
            if lookup is not None:
                nursery.start_soon(self._look_up, execution, lookup)
        else:
            self._totals["merged"] += 1
        self._totals["submitted"] += 1
        operation = Operation(name, execution, interest=self._operations.interest, owner=owner)
        self._operations.add(operation)
        self._deliver()
        return operation

    def operation(self, name: str, *, owner: str | None = None) -> Operation:
        """The operation of that name; if `owner` is given, only one of its own: others' are not there for it.

        Asking counts as interest. Raises NotFoundError.
        """
        return self._operations.find(name, owner=owner)

    def operations(self) -> list[Operation]:
        """All that are known, the oldest first."""
        return list(self._operations)

    async def cancel(self, name: str) -> None:
        """Ends the operation as CANCELLED; kills the action unless others wait for it. Over already: no effect.

        Raises NotFoundError.
        """
        operation = self.operation(name)
        if not operation.done:
            self._totals["cancelled"] += 1
            self._give_up(operation, CancelledError("the operation was cancelled"))

    def forget(self, name: str) -> None:
        """Drops a finished operation before its time. Raises NotFoundError, or PreconditionError if it goes on."""
        self._operations.forget(name)

    # --- workers ------------------------------------------------------------------------------------------------

    @contextmanager
    def attach_worker(
        self,
        properties: Iterable[tuple[str, str]],
        *,
        prefix: str = "",
        max_inflight: int = 0,
        max_timeout_s: float = math.inf,
        running: Sequence[ActionId] = (),
    ) -> Iterator[WorkerSession]:
        """A worker is connected for the length of the block; what it has not finished at the end is tried elsewhere.
        `max_timeout_s` is the longest time limit that it lets an action have; `running` are actions that go on there
        since an earlier connection, and are given to it first.

        Raises InvalidRequestError for a `minimum` property that is not a number and for a prefix that is no name,
        UnavailableError during a shutdown.
        """
        if len(prefix) > MAX_PREFIX_CHARS or not (prefix.isprintable() and "/" not in prefix):
            raise InvalidRequestError(f"worker id prefix {prefix[:80]!r} is not a name of up to {MAX_PREFIX_CHARS}")
        if self._stopping or self._nursery is None:
            raise UnavailableError("the scheduler is shutting down")
        offer = self._core.rules.offer(properties, max_timeout_s=max_timeout_s)
        worker_id = f"{prefix}-{_new_id()}" if prefix[-1:].isalnum() else prefix + _new_id()
        worker = self._core.attach(
            worker_id,
            offer=offer,
            max_inflight=max_inflight,
            running=running,
            draining=not offer.declared().isdisjoint(self._drained),
            now=self._clock(),
        )
        session = WorkerSession(worker, core=self._core, deliver=self._deliver, clock=self._clock)
        self._sessions[worker_id] = session
        self._totals["workers_connected"] += 1
        log.info("worker %s connected, max_inflight=%s", worker_id, max_inflight or "unlimited")
        self._deliver()
        try:
            yield session
        finally:
            if self._sessions.pop(worker_id, None) is not None:
                log.info("worker %s disconnected, %d actions unfinished", worker_id, len(worker.leases))
                text = f"worker {worker_id} disconnected while executing this action (out of memory, or evicted?)"
                self._core.detach(worker, error=UnavailableError(text), now=self._clock())
                self._deliver()

    def workers(self) -> list[WorkerState]:
        """The connected workers, the longest connected first."""
        return [session.state for session in self._sessions.values()]

    def drain(self, worker_id: str) -> None:
        """No new work for this worker; what it has goes on. Raises NotFoundError."""
        self._core.drain(self._session(worker_id).worker, now=self._clock())
        self._deliver()

    def undrain(self, worker_id: str) -> None:
        """It gets work again, unless it has said itself that it goes. Raises NotFoundError."""
        self._core.undrain(self._session(worker_id).worker, now=self._clock())
        self._deliver()

    def drain_offering(self, name: str, value: str, *, drained: bool) -> list[str]:
        """No new work for the workers that declare this value of a property, now or later; or again. Their ids."""
        if drained:
            self._drained[name, value] = None
            if len(self._drained) > MAX_DRAINED:
                del self._drained[next(iter(self._drained))]
        else:
            self._drained.pop((name, value), None)
        found = [id for id, session in self._sessions.items() if (name, value) in session.worker.declared]
        for worker_id in found:
            if drained:
                self.drain(worker_id)
            elif self._sessions[worker_id].worker.declared.isdisjoint(self._drained):
                self.undrain(worker_id)
        return found

    def _session(self, worker_id: str) -> WorkerSession:
        session = self._sessions.get(worker_id)
        if session is None:
            raise NotFoundError(f"worker {worker_id!r} is not connected")
        return session

    def known_properties(self) -> list[str]:
        """Names of platform properties that actions may use here."""
        return self._core.rules.known_names()

    def statistics(self) -> Mapping[str, int | float | str]:
        """A snapshot of levels and counters."""
        return {
            **self._core.counts(),
            "operations": len(self._operations),
            "unfinished_operations": self._operations.unfinished,
            "retained_bytes": self._operations.retained_bytes,
            **{f"{key}_total": count for key, count in sorted(self._totals.items())},
        }

    def __repr__(self) -> str:
        counts = " ".join(f"{key}={count}" for key, count in self._core.counts().items() if count)
        return f"<SimpleScheduler {self.name} {counts or 'idle'}>"

    # --- inside -------------------------------------------------------------------------------------------------

    async def _look_up(self, execution: Execution, lookup: Lookup) -> None:
        response: bytes | None = None
        try:
            response = await lookup(execution.request)
        except NlError as exc:
            log.warning("cache lookup of %s failed, executing it: %s", execution.request.action_digest, exc.message)
        except Exception:  # a bug of the store asked must not end the scheduler for everybody
            log.exception("cache lookup of %s failed, executing it", execution.request.action_digest)
        if response is None:
            self._core.cache_miss(execution, now=self._clock())
        else:
            self._core.cache_hit(execution, response)
        self._deliver()

    def _deliver(self) -> None:
        """Empties the core's outbox: orders to sessions, news to operations, warnings to the log."""
        outbox = self._core.outbox
        if outbox.warnings:
            warnings, outbox.warnings = outbox.warnings, []
            for text in warnings:
                log.warning("%s", text)
        if self._stopping and not self._core.is_executing:
            self._idle.set()
        if outbox.orders:
            orders, outbox.orders = outbox.orders, []
            for order, lease in orders:
                session = self._sessions.get(lease.worker_id)
                if session is not None:
                    session.push(order, lease)
        if outbox.changed:
            changed, outbox.changed = outbox.changed, {}
            for execution in changed:
                self._spread(execution)

    def _spread(self, execution: Execution) -> None:
        outcome = execution.outcome
        if outcome is not None:
            ending = "cache_hits" if outcome.cached else "executed" if outcome.error is None else "failed"
            self._totals[ending] += 1
        for name in execution.clients:
            operation = self._operations.get(name)
            if operation is not None:
                operation.wake()
                if outcome is not None:
                    self._operations.ended(operation, outcome)

    def _give_up(self, operation: Operation, error: NlError) -> None:
        outcome = Outcome(error=error)
        execution = operation.execution
        self._core.leave(execution, client=operation.name, error=error, now=self._clock())
        operation.give_up(outcome)
        self._operations.ended(operation, outcome)
        self._deliver()

    async def _keep_time(self) -> None:
        while True:
            due = self._clock() + TICK_S
            await trio.sleep(TICK_S)
            late_s = self._clock() - due
            if late_s > TICK_S:
                # this process stood still, not the workers: what they have said meanwhile is yet to be read
                log.warning("the scheduler stood still for %.1f s; workers are given that time on top", late_s)
                self._core.forgive(late_s)
            self._tick()

    def _tick(self) -> None:
        now = self._clock()
        options = self.options
        self._operations.drop_old()
        for name in self._operations.interest.pop_abandoned(options.client_action_timeout_s):
            operation = self._operations.find(name)
            limit = options.client_action_timeout_s
            text = f"Operation timed out after {limit:g} seconds of having no more clients listening"
            self._totals["abandoned"] += 1
            self._give_up(operation, NlError(text, code=Code.DEADLINE_EXCEEDED))
        for worker, reason in self._core.overdue_workers(now=now):
            self._evict(self._sessions[worker.id], reason)
        self._core.tick(now=now)
        self._deliver()

    def _evict(self, session: WorkerSession, reason: str) -> None:
        log.warning("worker %s timed out, removing it from the pool: %s", session.worker_id, reason)
        self._totals["workers_evicted"] += 1
        self._send_away(session, reason)

    def _send_away(self, session: WorkerSession, reason: str) -> None:
        del self._sessions[session.worker_id]
        session.push_disconnect(reason)
        error = UnavailableError(f"worker {session.worker_id} was lost while executing this action: {reason}")
        self._core.detach(session.worker, error=error, now=self._clock())

    async def _log_waiting(self) -> None:
        while True:
            await trio.sleep(self.options.worker_match_logging_interval_s)
            reasons = self._core.why_waiting(now=self._clock())
            if reasons is not None:
                log.info("%s%s", f"{self.name}: " if self.name else "", reasons)
