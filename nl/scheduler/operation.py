"""An operation: one client's handle on an execution, which it may share with other clients.

The handle has a name, can be waited on and can be given up without disturbing the others: cancelling it ends *its*
outcome, and the execution only if nobody else is interested. Not here: when that happens (simple.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from nl.model.execution import ActionRequest, OperationState, Outcome, Stage
from nl.scheduler.state import Execution


class Interest:
    """Which unfinished operations nobody listens to, and since when. One deadline for all: so a queue will do."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._alone_since: OrderedDict[Operation, float] = OrderedDict()

    def lost(self, operation: Operation) -> None:
        """Nobody listens any more, as of now."""
        self._alone_since[operation] = self._clock()
        self._alone_since.move_to_end(operation)

    def found(self, operation: Operation) -> None:
        """Somebody listens, or the operation is over."""
        self._alone_since.pop(operation, None)

    def pop_abandoned(self, timeout_s: float) -> Iterator[Operation]:
        """Operations that have been alone for `timeout_s`, each once."""
        limit = self._clock() - timeout_s
        while self._alone_since:
            operation, since = next(iter(self._alone_since.items()))
            if since > limit:
                return
            del self._alone_since[operation]
            yield operation


class Operation:
    """What `submit` and `operation(name)` return. `number` grows from one operation of this process to the next."""

    __slots__ = (
        "_changed", "_interest", "_listeners", "_own_outcome", "_own_version", "execution", "name", "number", "owner",
    )  # fmt: skip

    def __init__(self, name: str, execution: Execution, *, number: int, interest: Interest, owner: str = "") -> None:
        self.name = name
        self.owner = owner
        self.number = number
        self.execution = execution
        self._interest = interest
        self._changed = trio.lowlevel.ParkingLot()
        self._listeners = 0
        self._own_outcome: Outcome | None = None
        self._own_version = 0

    @property
    def request(self) -> ActionRequest:
        """What was asked for, by this client or by a twin with whom it shares the execution."""
        return self.execution.request

    @property
    def state(self) -> OperationState:
        """A snapshot."""
        execution = self.execution
        request = execution.request
        own = self._own_outcome
        return OperationState(
            name=self.name,
            action_digest=request.action_digest,
            digest_function=request.digest_function,
            stage=execution.stage if own is None else Stage.COMPLETED,
            version=execution.version if own is None else self._own_version,
            outcome=execution.outcome if own is None else own,
            worker_id=execution.lease.worker_id if execution.lease is not None else "",
            queued_at=execution.queued_at,
        )

    @property
    def done(self) -> bool:
        return self._own_outcome is not None or self.execution.outcome is not None

    async def wait_changed(self, version: int) -> OperationState:
        """Returns as soon as the version is later than `version`, at once if it is already.

        *Cancellation*: safe. *Concurrency*: any number of waiters.
        """
        while True:
            current = self.execution.version if self._own_outcome is None else self._own_version
            if current > version:
                return self.state
            await self._changed.park()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Says that a client listens, for the length of the block."""
        self._listeners += 1
        self._interest.found(self)
        try:
            yield
        finally:
            self._listeners -= 1
            self.refresh_interest()

    def refresh_interest(self) -> None:
        """Somebody asked after it: its time alone starts anew."""
        if not self._listeners and not self.done:
            self._interest.lost(self)

    def wake(self) -> None:
        """The execution has changed."""
        self._changed.unpark_all()

    def give_up(self, outcome: Outcome) -> None:
        """Ends this operation, whatever becomes of the execution."""
        self._own_version = self.execution.version + 1
        self._own_outcome = outcome
        self.wake()

    def __repr__(self) -> str:
        return f"<Operation {self.name} {self.state.stage.name} listeners={self._listeners}>"
