"""The life of one execution, as a table, and of its assignment to a worker. Pure: no clock, no loop, no wire.

An *execution* is what is queued and run. Clients hold *operations* (`simple.py`), several of which may share one
execution; workers hold *leases*: one attempt each, with an id of its own, so that a late word about an earlier attempt
can never be taken for one about the current attempt.

Rules for this file:

1. `stage` changes only through `Execution.advance`; a pair that is not in `TRANSITIONS` is our bug and raises.
2. COMPLETED is final: it has an outcome and no lease.
3. EXECUTING, and only EXECUTING, has a lease; that lease is not revoked.
4. `version` grows with every advance: whoever waits for a change compares versions.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field

from nl.errors import InternalError
from nl.model.execution import ActionRequest, Outcome, Stage
from nl.scheduler.matching import Requirements

Rank = tuple[int, float, int]
"""Sooner executions have smaller ones: level, tag, order of arrival (order.py)."""

LAST: Rank = (sys.maxsize, 0.0, 0)
"""Behind every other."""


class Event(enum.Enum):
    """What can happen to an execution."""

    CACHE_HIT = "the action cache had a result"
    CACHE_MISS = "the action cache had none"
    ASSIGN = "a worker was given the action"
    PUT_BACK = "the worker lost or failed it; another try is allowed"
    RESPOND = "the worker delivered a response"
    ABANDON = "cancelled, out of attempts or out of time"


TRANSITIONS = {
    (Stage.CACHE_CHECK, Event.CACHE_HIT): Stage.COMPLETED,
    (Stage.CACHE_CHECK, Event.CACHE_MISS): Stage.QUEUED,
    (Stage.CACHE_CHECK, Event.ABANDON): Stage.COMPLETED,
    (Stage.QUEUED, Event.ASSIGN): Stage.EXECUTING,
    (Stage.QUEUED, Event.ABANDON): Stage.COMPLETED,
    (Stage.EXECUTING, Event.PUT_BACK): Stage.QUEUED,
    (Stage.EXECUTING, Event.RESPOND): Stage.COMPLETED,
    (Stage.EXECUTING, Event.ABANDON): Stage.COMPLETED,
}


@dataclass(slots=True, eq=False)
class Lease:
    """One attempt at an execution on one worker. `id` is the operation id that the worker sees."""

    id: str
    execution: Execution
    worker_id: str
    started_at: float
    """Monotonic seconds."""
    reserved: tuple[tuple[str, int], ...] = ()
    """What it takes from the worker's `minimum` properties; empty once given back."""
    beside: bool = False
    """It has begun on a worker that is kept for something more urgent, and may go on beside that."""
    executed: bool = False
    """The process has ended, outputs are being uploaded."""
    revoked_at: float | None = None
    """When the worker was told to kill it; it holds its place on the worker until the worker reports."""


@dataclass(slots=True, eq=False)
class Execution:
    """One action on its way through cache check, queue and workers."""

    id: str
    request: ActionRequest
    needs: Requirements
    sequence: int
    """Order of arrival; a second attempt keeps its place."""
    priority: int
    """Lower is sooner. The lowest of all clients that share the execution."""
    stage: Stage
    queued_at: float
    """Unix seconds, when the request came in."""
    waiting_since: float
    """Monotonic seconds, when it last entered the queue."""
    version: int = 1
    attempts: int = 0
    """How many attempts have failed for reasons of the worker's."""
    leases_given: int = 0
    """How many attempts have begun. The first lease has the execution's own id, later ones have ids of their own."""
    lease: Lease | None = None
    outcome: Outcome | None = None
    clients: set[str] = field(default_factory=set)
    """Names of the operations that are interested."""
    failed_on: frozenset[str] = frozenset()
    """The workers that have failed it: others are asked first."""
    lost_with: tuple[str, ...] = ()
    """The workers that were lost while they ran it, one after the other."""
    rank: Rank = field(init=False)
    """Its place among those that wait; the last one that it had, while it runs."""

    def __post_init__(self) -> None:
        self.rank = (self.priority, 0.0, self.sequence)

    def advance(self, event: Event) -> None:
        """Moves to the next stage. Raises InternalError if the table has none."""
        stage = TRANSITIONS.get((self.stage, event))
        if stage is None:
            raise InternalError(f"execution {self.id} is {self.stage.name}, which does not allow {event.name}")
        self.stage = stage
        self.version += 1

    def __repr__(self) -> str:
        where = f" on {self.lease.worker_id}" if self.lease else ""
        return f"<Execution {self.id} {self.stage.name}{where} priority={self.priority} attempts={self.attempts}>"
