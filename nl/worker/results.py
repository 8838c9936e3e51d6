"""What is kept of an action's result: the action cache, the history of results, and the message to the client.

Rules (REAPI A.7 2 and 16): only a result with status OK may enter the action cache, and none of an action with
`do_not_cache`. Failing to keep a result is logged and never fails the action.
"""

from __future__ import annotations

import logging
import re
from typing import Protocol

from nl.blob.hashing import digest_of
from nl.cas.action_results import store_action_result
from nl.config.workers import UploadActionResult
from nl.errors import ConfigError, NlError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi, worker_api
from nl.pb.codec import encode
from nl.storage.contract import Store
from nl.worker.trees import message_of

log = logging.getLogger("nl.worker.results")

_FIELDS = (
    "digest_function",
    "action_digest_hash",
    "action_digest_size",
    "historical_results_hash",
    "historical_results_size",
)
_PLACEHOLDER = re.compile(r"\{([a-z_]*)\}")


class _Keeps(Protocol):
    def __call__(self, *, success: bool) -> bool: ...


def _strategy(name: str) -> _Keeps:
    def keeps(*, success: bool) -> bool:
        return name == "everything" or (name == "success_only" and success) or (name == "failures_only" and not success)

    return keeps


class ResultKeeper:
    """Keeps results as `upload_action_result` says; without an `ac_store` none go to the action cache."""

    def __init__(self, options: UploadActionResult, *, ac_store: Store | None, historical_store: Store) -> None:
        self._ac_store = ac_store
        self._historical_store = historical_store
        self._cached = _strategy(options.upload_ac_results_strategy if ac_store is not None else "never")
        self._historical = _strategy(options.upload_historical_results_strategy or "never")
        self._messages = {True: options.success_message_template, False: options.failure_message_template}
        for template in self._messages.values():
            for name in _PLACEHOLDER.findall(template):
                if name not in _FIELDS:
                    expected = ", ".join(_FIELDS)
                    problem = f"unknown placeholder {{{name}}} in a message template; expected one of {expected}"
                    raise ConfigError("upload_action_result", problem)

    async def keep(
        self,
        action: Digest,
        response: reapi.ExecuteResponse,
        *,
        function: DigestFunction,
        do_not_cache: bool,
    ) -> None:
        """Stores what is to be stored of `response` and sets its message. Nothing in the result may be inlined yet."""
        result = response.result
        assert result is not None
        is_ok = response.status is None or response.status.code == 0
        success = is_ok and result.exit_code == 0
        historical: Digest | None = None
        try:
            if is_ok and not do_not_cache and self._ac_store is not None and self._cached(success=success):
                await store_action_result(self._ac_store, action, encode(result))
            if self._historical(success=success):
                historical = await self._keep_historical(action, response, function)
        except NlError as exc:
            log.error("Error saving action in store: %s: %s", action, exc)
        if template := self._messages[success]:
            values = {
                "digest_function": function.name.lower(),
                "action_digest_hash": action.hash,
                "action_digest_size": str(action.size),
                "historical_results_hash": historical.hash if historical else "",
                "historical_results_size": str(historical.size) if historical else "",
            }
            response.message = _PLACEHOLDER.sub(lambda match: values[match[1]], template)

    async def _keep_historical(
        self, action: Digest, response: reapi.ExecuteResponse, function: DigestFunction
    ) -> Digest:
        record = worker_api.HistoricalExecuteResponse(action_digest=message_of(action), execute_response=response)
        data = encode(record)
        digest = digest_of(data, function)
        await self._historical_store.put(digest, data)
        return digest
