"""The cache check of a scheduler: which action cache is asked depends on the instance an action came through."""

from __future__ import annotations

from collections.abc import Mapping

from nl.model.execution import ActionRequest
from nl.scheduler.contract import Lookup


def lookup_by_instance(lookups: Mapping[str, Lookup]) -> Lookup:
    """Asks the action cache of the request's instance. An instance without one never hits."""

    async def look_up(request: ActionRequest) -> bytes | None:
        asked = lookups.get(request.instance_name)
        return None if asked is None else await asked(request)

    return look_up
