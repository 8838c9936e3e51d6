"""Operations: clients' handles on what is executed for them, and the book in which a scheduler has them.

A handle has a name, can be waited on and can be given up without disturbing others. It ends by itself when nobody has
listened to it for a while, and is forgotten a while after it has ended. Not here: what is behind it (simple.py,
services/remote_scheduler.py).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import trio

from nl.errors import NotFoundError, PreconditionError
from nl.model.execution import ActionRequest, OperationState, Outcome, Stage
from nl.scheduler.state import Execution

OPERATION_BYTES = 1024
"""What a retained operation weighs besides its response, roughly."""

_numbers = itertools.count(1)


class Interest:
    """Which unfinished operations nobody listens to, and since when. There is one time limit for all of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._alone_since: OrderedDict[Handle, float] = OrderedDict()

    def unwatched(self, operation: Handle) -> None:
        """Nobody listens any more, as of now."""
        self._alone_since[operation] = self._clock()
        self._alone_since.move_to_end(operation)

    def watched(self, operation: Handle) -> None:
        """Somebody listens, or the operation is over."""
        self._alone_since.pop(operation, None)

    def pop_abandoned(self, timeout_s: float) -> list[str]:
        """The names of operations that have been alone for `timeout_s`, each once."""
        limit = self._clock() - timeout_s
        names = []
        while self._alone_since:
            operation, since = next(iter(self._alone_since.items()))
            if since > limit:
                break
            del self._alone_since[operation]
            names.append(operation.name)
        return names

    def __len__(self) -> int:
        return len(self._alone_since)


class Handle:
    """What all operations have in common. `number` grows from one operation of this process to the next."""

    __slots__ = ("_changed", "_interest", "_listeners", "name", "number", "owner")

    def __init__(self, name: str, *, interest: Interest, owner: str = "") -> None:
        self.name = name
        self.owner = owner
        self.number = next(_numbers)
        self._interest = interest
        self._changed = trio.lowlevel.ParkingLot()
        self._listeners = 0

    @property
    def request(self) -> ActionRequest:
        """What was asked for, by this client or by a twin with whom it shares the execution."""
        raise NotImplementedError

    @property
    def state(self) -> OperationState:
        """A snapshot."""
        raise NotImplementedError

    @property
    def version(self) -> int:
        """That of the state."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether it has an outcome."""
        raise NotImplementedError

    async def wait_changed(self, version: int) -> OperationState:
        """Returns as soon as the version is later than `version`, at once if it is already.

        *Cancellation*: safe. *Concurrency*: any number of waiters.
        """
        while self.version <= version:
            await self._changed.park()
        return self.state

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Says that a client listens, for the length of the block."""
        self._listeners += 1
        self._interest.watched(self)
        try:
            yield
        finally:
            self._listeners -= 1
            self.refresh_interest()

    def refresh_interest(self) -> None:
        """Somebody asked after it: its time alone starts anew."""
        if not self._listeners and not self.done:
            self._interest.unwatched(self)

    def wake(self) -> None:
        """The state has changed."""
        self._changed.unpark_all()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.state.stage.name} listeners={self._listeners}>"


class Operation(Handle):
    """A handle on an execution of this process, which others may share."""

    __slots__ = ("_own_outcome", "_own_version", "execution")

    def __init__(self, name: str, execution: Execution, *, interest: Interest, owner: str = "") -> None:
        super().__init__(name, interest=interest, owner=owner)
        self.execution = execution
        self._own_outcome: Outcome | None = None
        self._own_version = 0

    @property
    def request(self) -> ActionRequest:
        return self.execution.request

    @property
    def state(self) -> OperationState:
        execution = self.execution
        request = execution.request
        own = self._own_outcome
        return OperationState(
            name=self.name,
            action_digest=request.action_digest,
            digest_function=request.digest_function,
            stage=execution.stage if own is None else Stage.COMPLETED,
            version=self.version,
            outcome=execution.outcome if own is None else own,
            worker_id=execution.lease.worker_id if execution.lease is not None else "",
            queued_at=execution.queued_at,
        )

    @property
    def version(self) -> int:
        return self.execution.version if self._own_outcome is None else self._own_version

    @property
    def done(self) -> bool:
        return self._own_outcome is not None or self.execution.outcome is not None

    def give_up(self, outcome: Outcome) -> None:
        """Ends this operation, whatever becomes of the execution."""
        self._own_version = self.execution.version + 1
        self._own_outcome = outcome
        self.wake()


Op = TypeVar("Op", bound=Handle)


class OperationBook(Generic[Op]):
    """A scheduler's operations by name: those that go on, and for a while those that have ended.

    What has ended is kept for `retain_s`, together at most `max_bytes`: beyond that the oldest go early.
    """

    def __init__(self, *, retain_s: float, max_bytes: int, clock: Callable[[], float]) -> None:
        self.interest = Interest(clock)
        self.unfinished = 0
        self.retained_bytes = 0
        self._retain_s = retain_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._by_name: dict[str, Op] = {}
        self._retained: deque[tuple[float, Op, int]] = deque()

    def add(self, operation: Op) -> None:
        """A new one, to which nobody listens yet."""
        self._by_name[operation.name] = operation
        self.unfinished += 1
        self.interest.unwatched(operation)

    def get(self, name: str) -> Op | None:
        return self._by_name.get(name)

    def find(self, name: str, *, owner: str | None = None) -> Op:
        """The one of that name; if `owner` is given, only one of its own. Asking counts as interest.

        Raises NotFoundError.
        """
        operation = self._by_name.get(name)
        if operation is None or (owner is not None and operation.owner != owner):
            raise NotFoundError(f"operation {name!r} not found: unknown, or finished too long ago")
        operation.refresh_interest()
        return operation

    def forget(self, name: str) -> None:
        """Drops a finished one before its time. Raises NotFoundError, or PreconditionError if it goes on."""
        if not self.find(name).done:
            raise PreconditionError(f"operation {name!r} is not finished; cancel it first")
        del self._by_name[name]

    def ended(self, operation: Op, outcome: Outcome) -> None:
        """It has its outcome. Called once for each."""
        self.unfinished -= 1
        self.interest.watched(operation)
        size = len(outcome.response or b"") + OPERATION_BYTES
        self._retained.append((self._clock() + self._retain_s, operation, size))
        self.retained_bytes += size
        while self.retained_bytes > self._max_bytes:
            self._drop_oldest()

    def drop_old(self) -> None:
        """To be called now and then."""
        now = self._clock()
        while self._retained and self._retained[0][0] <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, operation, size = self._retained.popleft()
        self.retained_bytes -= size
        self._by_name.pop(operation.name, None)

    def __iter__(self) -> Iterator[Op]:
        """The oldest first."""
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)
