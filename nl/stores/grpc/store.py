"""The `grpc` store itself: a channel, and in front of it either blobs or action results."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TypeVar, cast

import trio

from nl.plugin import ForwardsHeaders, Store, StoreContext, StoreWrapper, caller_headers
from nl.stores.grpc.action_cache import MESSAGE_BYTES as RESULT_MESSAGE_BYTES
from nl.stores.grpc.action_cache import RemoteActionCache
from nl.stores.grpc.cas import RemoteCas
from nl.stores.grpc.endpoints import Endpoints
from nl.stores.grpc.failures import Failure, Headers
from nl.stores.grpc.methods import CAPABILITIES
from nl.stores.grpc.options import GrpcOptions
from nl.stores.grpc.remote import Remote
from nl.stores.grpc.server_limits import MESSAGE_BYTES, ask_once

C = TypeVar("C")
_log = logging.getLogger(__name__)
CHECK_S = 5.0
"""How long a server may take to say that it is there."""


class GrpcStore(StoreWrapper):
    """See the package."""

    Options = GrpcOptions

    def __init__(self, options: GrpcOptions, context: StoreContext) -> None:
        is_cas = options.store_type == "cas"
        size = MESSAGE_BYTES + 64 * 1024 if is_cas else RESULT_MESSAGE_BYTES
        self._forwarded = frozenset(name.lower() for name in options.forward_headers)
        self._endpoints = Endpoints(options, context.name, max_message_size=size)
        self._remote = remote = Remote(
            name=context.name,
            instance=options.instance_name,
            addresses=self._endpoints.names,
            timeout_s=options.rpc_timeout_s,
            max_calls=options.max_concurrent_requests,
            policy=options.retry.policy(),
            headers=tuple((name.lower(), str(value)) for name, value in options.headers.items()),
            secrets=self._endpoints.secrets,
        )
        if options.experimental_remote_cache_compression and not is_cas:
            _log.warning(
                "the grpc store '%s': experimental_remote_cache_compression does nothing for action results",
                context.name,
            )
        side: Store = (
            RemoteCas(options, remote, self._inherited, coder_memory=context.coder_memory)
            if is_cas
            else RemoteActionCache(remote, self._inherited)
        )
        super().__init__(side)

    def capability(self, kind: type[C]) -> C | None:
        return cast("C", self) if kind is ForwardsHeaders and self._forwarded else None

    def forwarded_headers(self) -> Collection[str]:
        """See `ForwardsHeaders`."""
        return self._forwarded

    def _inherited(self) -> Headers:
        """The headers that a call gets from the request that causes it."""
        names = self._forwarded
        return tuple(each for each in caller_headers() if each[0] in names) if names else ()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        channel = await self._endpoints.start()
        async with self._remote.opened(channel), trio.open_nursery() as nursery:
            nursery.start_soon(self._endpoints.run)
            await nursery.start(self.backend.run)
            task_status.started()
            await trio.sleep_forever()

    async def check(self) -> None:
        try:
            await ask_once(self._remote, timeout_s=CHECK_S)
        except Failure as failure:
            raise self._remote.error_of(failure, CAPABILITIES) from failure.error

    def statistics(self) -> Mapping[str, int | float | str]:
        remote = self._remote
        return {
            "servers": remote.where,
            "connections": remote.connections,
            "calls": remote.calls,
            "retries": remote.retries,
            "failures": remote.failures,
            **self.backend.statistics(),
        }

    def __repr__(self) -> str:
        return f"<GrpcStore {self._remote.name!r}: {self._remote.where}>"
