"""The cache check of a scheduler: is the result of this action in the action cache of its instance already?

Built here because the scheduler knows no store and no protobuf, and services do not know each other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from nl.cas.action_results import load_action_result
from nl.errors import BlobNotFoundError, CorruptBlobError
from nl.model.execution import ActionRequest
from nl.pb import reapi
from nl.pb.codec import decode, encode
from nl.scheduler.simple import Lookup
from nl.storage.contract import Store

log = logging.getLogger("nl.server.lookup")


def cache_lookup(action_caches: Mapping[str, Store]) -> Lookup:
    """A lookup over the action cache stores by instance name. An instance without one never hits."""

    async def look_up(request: ActionRequest) -> bytes | None:
        store = action_caches.get(request.instance_name)
        if store is None:
            return None
        try:
            encoded = await load_action_result(store, request.action_digest)
        except BlobNotFoundError:
            return None
        except CorruptBlobError as error:
            log.warning("action result of %s is damaged and counts as a miss: %s", request.action_digest, error.message)
            return None
        result = decode(reapi.ActionResult, encoded)
        if result.exit_code:
            return None  # a failure that somebody cached is not what Execute promises: run it again
        return encode(reapi.ExecuteResponse(result=result, cached_result=True))

    return look_up
