"""Another attempt, after a pause: for which errors, how often, how long. NativeLink's rules (`retry` in its config)."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from nl_cloud_object_store.client import ObjectStoreError

T = TypeVar("T")

RETRYABLE = frozenset({
    "Cancelled", "Unknown", "DeadlineExceeded", "ResourceExhausted", "Aborted", "Internal", "Unavailable", "DataLoss",
})
"""What is tried again unless `retry_on_errors` says otherwise."""
MAX_PAUSE_S = 60.0


class RetryPolicy:
    """Up to `max_retries` more attempts. Pause k (from 1) is `delay` * 2^k seconds, spread over `jitter` of itself:
    a uniform factor in [1 - jitter/2, 1 + jitter/2), so that many clients do not come back at once.
    """

    def __init__(
        self, max_retries: int, *, delay: float, jitter: float, codes: frozenset[str] = RETRYABLE,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._max_retries = max_retries
        self._delay = delay
        self._jitter = jitter
        self._codes = codes
        self._chance = chance
        self.retries = 0
        """How many more attempts there have been so far."""

    def pause(self, retry: int, error: ObjectStoreError) -> float | None:
        """Seconds to wait before retry number `retry` (from 1); None if there is to be none."""
        if retry > self._max_retries or error.code not in self._codes:
            return None
        factor = 1 + self._jitter * (self._chance() - 0.5)
        return float(min(MAX_PAUSE_S, self._delay * 2.0 ** min(retry, 64)) * factor)

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns, at whichever attempt. Raises what the last one raised."""
        retry = 0
        while True:
            try:
                return await attempt()
            except ObjectStoreError as error:
                retry += 1
                pause = self.pause(retry, error)
                if pause is None:
                    raise
            await self.wait(pause)

    async def wait(self, pause: float) -> None:
        """Sleeps, and counts the retry."""
        self.retries += 1
        await trio.sleep(pause)
