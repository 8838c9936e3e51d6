"""What the server takes, as it says itself (GetCapabilities): asked for at the first need, and again now and then."""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass
from math import inf
from typing import Final

import trio
from grpclib.const import Status

from nl.pb import reapi
from nl.pb.codec import encode
from nl.plugin import NlError
from nl.stores.grpc.failures import Failure
from nl.stores.grpc.methods import CAPABILITIES
from nl.stores.grpc.remote import Remote, Retrying

_log = logging.getLogger(__name__)
MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""The largest message that a gRPC peer takes by default."""
DEFAULT_BATCH_BYTES: Final = MESSAGE_BYTES - 64 * 1024
"""For a server that does not say: a message, less what stands in it beside the blobs."""
REFRESH_S: Final = 600.0
"""A server may be replaced by one of another opinion."""

_NOT_TOLD = (
    Status.UNIMPLEMENTED, Status.NOT_FOUND, Status.INVALID_ARGUMENT, Status.PERMISSION_DENIED, Status.UNAUTHENTICATED
)  # fmt: skip
"""Other calls may do better: they may have the credentials of whoever causes them (`forward_headers`)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes."""

    batch_bytes: int = DEFAULT_BATCH_BYTES
    """The blobs of a batch together."""
    blob_bytes: int = 0
    """The largest blob; 0: any."""
    takes_zstd: bool = False
    """Whether blobs may come and go packed."""


class ServerLimits:
    """The limits of one server. `get` costs a call at the first time, and every REFRESH_S."""

    def __init__(self, remote: Remote) -> None:
        self.known = Limits()
        self._remote = remote
        self._expires = -inf
        self._asking = trio.Lock()
        self._failures = 0
        self._failure: NlError | None = None
        """The last one."""

    async def get(self) -> Limits:
        """The limits. Raises what stands in the way of asking, but for a server that does not answer this question.

        Who waits while another asks shares the end of it: in turns, the last of many would wait for each one's retries.
        """
        if trio.current_time() < self._expires:
            return self.known
        failures = self._failures
        async with self._asking:
            if trio.current_time() < self._expires:
                return self.known
            if self._failures > failures and self._failure is not None:
                raise copy(self._failure)
            try:
                self.known = await self._ask()
            except NlError as error:
                self._failures += 1
                self._failure = copy(error)
                raise
            self._expires = trio.current_time() + REFRESH_S
        return self.known

    async def _ask(self) -> Limits:
        retrying = Retrying(self._remote, CAPABILITIES)
        while True:
            try:
                return await ask_once(self._remote)
            except Failure as failure:
                if failure.status in _NOT_TOLD:
                    _log.warning("%s; %d bytes a batch are assumed", retrying.error_of(failure), DEFAULT_BATCH_BYTES)
                    return Limits()
                await retrying.failed(failure)


async def ask_once(remote: Remote, *, timeout_s: float | None = None) -> Limits:
    """What the server says now. Raises Failure."""
    request = encode(reapi.GetCapabilitiesRequest(instance_name=remote.instance))
    reply: reapi.ServerCapabilities = await remote.ask_once(CAPABILITIES, [request], timeout_s=timeout_s)
    cache = reply.cache_capabilities
    if cache is None:
        return Limits()
    batch = cache.max_batch_total_size_bytes
    return Limits(
        batch_bytes=min(batch, DEFAULT_BATCH_BYTES) if batch > 0 else DEFAULT_BATCH_BYTES,
        blob_bytes=max(cache.max_cas_blob_size_bytes, 0),
        takes_zstd=reapi.CompressorValue.ZSTD in cache.supported_compressors,
    )
