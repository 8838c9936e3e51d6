"""The cache check of a scheduler: which action cache is asked depends on the instance an action came through."""

from __future__ import annotations

from collections.abc import Mapping

from nl.model.execution import ActionRequest
from nl.scheduler.simple import Lookup
from nl.services.execution import cache_lookup
from nl.storage.contract import Store


def lookup_by_instance(action_caches: Mapping[str, Store]) -> Lookup:
    """Asks the action cache of the request's instance. An instance without one never hits."""
    lookups = {name: cache_lookup(store) for name, store in action_caches.items()}

    async def look_up(request: ActionRequest) -> bytes | None:
        asked = lookups.get(request.instance_name)
        return None if asked is None else await asked(request)

    return look_up
