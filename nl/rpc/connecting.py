"""One attempt at a time with one result for all who wait, and the pause between attempts that fail.

Used for connections and for looking names up (pool.py). Not here: what an attempt does (dial.py, resolver.py).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from nl.rpc.errors import NotProcessed


class Backoff:
    """Pauses that double from `initial` to `maximum` seconds, each varied by `jitter` (0.2: 80 to 120 %).

    Varied, so that a hundred clients of a server that has restarted do not come back in step.
    """

    __slots__ = ("_failures", "_uniform", "initial", "jitter", "maximum")

    def __init__(
        self,
        initial: float,
        maximum: float,
        *,
        jitter: float = 0.2,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.initial = initial
        self.maximum = maximum
        self.jitter = jitter
        self._uniform = uniform
        self._failures = 0

    def failed(self) -> float:
        """Seconds to wait after one more failure."""
        pause = min(self.maximum, self.initial * 2.0**self._failures)
        self._failures = min(self._failures + 1, 64)
        return pause * self._uniform(1 - self.jitter, 1 + self.jitter)

    def reset(self) -> None:
        """What was tried has worked: the next failure is the first one again."""
        self._failures = 0


class Attempts:
    """Runs `work` on demand: never twice at once, and not before the pause after a failure is over.

    `work` raises NotProcessed if it fails. `ended` is called after each run, for those who wait.

    *Cancellation*: a run belongs to nobody who waits for it; `cancel` ends it, and that is no failure.
    """

    __slots__ = ("_ended", "_not_before", "_scope", "_work", "backoff", "error", "failures", "runs")

    def __init__(self, work: Callable[[], Awaitable[None]], *, backoff: Backoff, ended: Callable[[], None]) -> None:
        self.backoff = backoff
        self.error: NotProcessed | None = None
        """Why the last run failed; None after one that did not."""
        self.failures = 0
        self.runs = 0
        self._work = work
        self._ended = ended
        self._not_before = float("-inf")
        self._scope: trio.CancelScope | None = None

    @property
    def is_running(self) -> bool:
        """Whether a run is under way."""
        return self._scope is not None

    @property
    def due_at(self) -> float:
        """When the next run may begin, on trio's clock."""
        return self._not_before

    @property
    def is_due(self) -> bool:
        """Whether `start` would begin a run."""
        return self._scope is None and trio.current_time() >= self._not_before

    def start(self, nursery: trio.Nursery) -> None:
        """Begins a run if it is time for one."""
        if self.is_due:
            self._scope = trio.CancelScope()
            self.runs += 1
            nursery.start_soon(self._run, self._scope)

    async def _run(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._work()
                self.error = None
        except NotProcessed as exc:
            self.fail(exc)
        finally:
            self._scope = None
            self._ended()

    def fail(self, error: NotProcessed) -> None:
        """Counts a failure, also one that shows only after the run: a connection that ends before it was of any use."""
        self.error = error
        self.failures += 1
        self._not_before = trio.current_time() + self.backoff.failed()

    def succeeded(self) -> None:
        """What the last run made has been of use."""
        self.backoff.reset()

    def cancel(self) -> None:
        """Ends the run that is under way, if there is one."""
        if self._scope is not None:
            self._scope.cancel()
