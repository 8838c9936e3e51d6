"""Actions that run on a worker already, since before it connected: whoever asks for one is to be served by that worker.

A worker keeps what runs when its stream breaks, and says so when it is back. It waits `CLAIM_S` for the actions to be
ordered again, and kills them then. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from nl.scheduler.worker import Worker

ActionId = tuple[str, int]
"""Hash and size of an action's digest."""
CLAIM_S = 15.0
MAX_CLAIMS = 10_000
"""Of all workers together; the oldest are forgotten."""


class Claims:
    """By action: the worker that runs it."""

    def __init__(self) -> None:
        self._by_action: OrderedDict[ActionId, tuple[Worker, float]] = OrderedDict()

    def add(self, worker: Worker, running: Iterable[ActionId], *, now: float) -> None:
        """What the worker said when it connected."""
        for action in running:
            self._by_action[action] = (worker, now + CLAIM_S)
            self._by_action.move_to_end(action)
            if len(self._by_action) > MAX_CLAIMS:
                self._by_action.popitem(last=False)

    def take(self, action: ActionId, *, now: float) -> Worker | None:
        """The worker that still runs it, once."""
        if not self._by_action:
            return None
        worker, until = self._by_action.pop(action, (None, 0.0))
        return worker if now < until else None

    def drop(self, worker: Worker) -> None:
        """The worker is gone."""
        for action in [action for action, (owner, _) in self._by_action.items() if owner is worker]:
            del self._by_action[action]

    def drop_old(self, *, now: float) -> None:
        """To be called now and then."""
        while self._by_action and next(iter(self._by_action.values()))[1] <= now:
            self._by_action.popitem(last=False)

    def __len__(self) -> int:
        return len(self._by_action)
