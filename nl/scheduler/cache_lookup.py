"""`cache_lookup`: looks into one action cache before the scheduler behind it queues anything.

`simple` does so by itself, in the action cache of the instance; this is for another cache than that. Twins share one
lookup, as they share the execution.
"""

from __future__ import annotations

from nl.model.execution import ActionRequest
from nl.scheduler.contract import Lookup, Operation, Scheduler, SchedulerWrapper


class CacheLookupScheduler(SchedulerWrapper):
    """Gives the scheduler behind it what to ask."""

    def __init__(self, inner: Scheduler, lookup: Lookup, *, name: str = "") -> None:
        super().__init__(inner, name=name)
        self._lookup = lookup

    async def submit(self, request: ActionRequest, *, owner: str = "", lookup: Lookup | None = None) -> Operation:
        return await super().submit(request, owner=owner, lookup=lookup or self._lookup)
