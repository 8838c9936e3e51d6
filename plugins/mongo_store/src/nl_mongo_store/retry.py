"""Another attempt, after a pause: NativeLink's rules (`nl.storage.retrying`) applied to requests to MongoDB."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from nl.plugin import RetryPauses
from nl_mongo_store.errors import MongoError

T = TypeVar("T")


class RetryPolicy(RetryPauses):
    """Makes the attempts, and counts them."""

    retries = 0
    """How many more attempts there have been so far."""

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What `attempt` returns, at whichever attempt. Raises what the last one raised."""
        retry = 0
        while True:
            try:
                return await attempt()
            except MongoError as error:
                retry += 1
                pause = self.pause(retry, error)
                if pause is None:
                    raise
            await self.wait(pause)

    async def wait(self, pause: float) -> None:
        """Sleeps, and counts the retry."""
        self.retries += 1
        await trio.sleep(pause)
