"""Another attempt, after a pause: for which errors, how often, how long. NativeLink's rules (`retry` in its config)."""

from __future__ import annotations

import random
from collections.abc import Callable

from nl_redis_store.errors import RedisError

RETRYABLE = frozenset({
    "Cancelled", "Unknown", "DeadlineExceeded", "ResourceExhausted", "Aborted", "Internal", "Unavailable", "DataLoss",
})
"""What is tried again unless `retry_on_errors` says otherwise."""
MAX_PAUSE_S = 30.0


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

    def pause(self, retry: int, error: RedisError) -> float | None:
        """Seconds to wait before retry number `retry` (from 1); None if there is to be none."""
        if retry > self._max_retries or error.code not in self._codes:
            return None
        factor = 1 + self._jitter * (self._chance() - 0.5)
        return float(min(MAX_PAUSE_S, self._delay * 2.0 ** min(retry, 64)) * factor)
