"""`retry` as NativeLink's configs have it, for backends that are far away: after which errors, how often, how long.

What may be repeated at all is for the kind to say: it hands `RetryPolicy.run` only what may.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

import trio

from nl.config.types import Count, Options
from nl.errors import ConfigError
from nl.storage.backend import BackendError

T = TypeVar("T")

ErrorName = Literal[
    "Cancelled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
]  # fmt: skip
"""gRPC's status codes, as configs write them."""
RETRYABLE: tuple[ErrorName, ...] = (
    "Cancelled", "Unknown", "DeadlineExceeded", "ResourceExhausted", "Aborted", "Internal", "Unavailable", "DataLoss",
)  # fmt: skip
"""What is tried again unless `retry_on_errors` says otherwise."""
MAX_PAUSE_S = 60.0


class RetryPolicy:
    """Up to `max_retries` more attempts. Pause k (from 1) is `delay` * 2^k seconds, spread over `jitter` of itself:
    a uniform factor in [1 - jitter/2, 1 + jitter/2), so that many clients do not come back at once.
    """

    def __init__(
        self, max_retries: int, *, delay: float, jitter: float, codes: Sequence[str] = RETRYABLE,
        chance: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self._max_retries = max_retries
        self._delay = delay
        self._jitter = jitter
        self._codes = frozenset(codes)
        self._chance = chance or random.random
        self.retries = 0
        """How many more attempts there have been so far."""

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns, at whichever attempt. Raises the BackendError of the last one, and whatever else an
        attempt raises at once.
        """
        retry = 0
        while True:
            try:
                return await attempt()
            except BackendError as error:
                retry += 1
                pause = self.pause(retry, error)
                if pause is None:
                    raise
            await self.wait(pause)

    def pause(self, retry: int, error: BackendError) -> float | None:
        """Seconds to wait before retry number `retry` (from 1) after such an error; None if there is to be none."""
        if retry > self._max_retries or error.code not in self._codes:
            return None
        factor = 1 + self._jitter * (self._chance() - 0.5)
        return float(min(MAX_PAUSE_S, self._delay * 2.0 ** min(retry, 64)) * factor)

    async def wait(self, pause: float) -> None:
        """Sleeps before another attempt, and counts it; for who repeats a part of a request only, by `pause`."""
        self.retries += 1
        await trio.sleep(pause)



class RetryOptions(Options):
    """How often, and after which pauses, a request that failed is made again."""

    max_retries: Count = 0
    """Attempts after the first one; 0 means none."""
    delay: float = 0.0
    """Seconds; the pause before retry k (from 1) is `delay` * 2^k."""
    jitter: float = 0.0
    """Spreads each pause over this fraction of itself: 0.5 means between 75 % and 125 %."""
    retry_on_errors: tuple[ErrorName, ...] | None = None
    """After which errors; by default those that may pass: no connection, or a server that is starting (`Unavailable`),
    timeouts (`DeadlineExceeded`), throttling (`ResourceExhausted`)."""

    def check(self) -> None:
        """Refuses negative times."""
        for name in ("delay", "jitter"):
            if getattr(self, name) < 0:
                raise ConfigError(name, f"{getattr(self, name)} is negative; expected 0 or more")

    def policy(self) -> RetryPolicy:
        """What follows from them."""
        codes = RETRYABLE if self.retry_on_errors is None else self.retry_on_errors
        return RetryPolicy(self.max_retries, delay=self.delay, jitter=self.jitter, codes=codes)
