"""gzip of single messages, off the loop where it takes long: 4 MiB are a tenth of a second or more."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from nl.blob.reader import Buffer
from nl.errors import ExhaustedError
from nl.rpc import messages

INLINE_UP_TO = 16 * 1024
"""Messages up to this size are (un)packed where they are: half a millisecond, less than a thread costs."""
_THREADS = 2
"""At once, over all connections: what is beyond waits its turn, and its clients with it."""
_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("nl.rpc.packing")


async def pack(parts: Sequence[Buffer], *, length: int) -> bytes:
    """A message of `length` bytes, compressed. Not cancelled halfway, since the thread reads the caller's buffers."""
    if length <= INLINE_UP_TO:
        return messages.compress(parts)
    return await trio.to_thread.run_sync(messages.compress, parts, limiter=_threads())


async def unpack(data: Buffer, *, max_bytes: int) -> bytes:
    """A message, decompressed. InvalidRequestError if it is not gzip, ExhaustedError beyond `max_bytes`."""
    if len(data) <= INLINE_UP_TO:
        try:
            return messages.decompress(data, max_bytes=min(max_bytes, 4 * INLINE_UP_TO))
        except ExhaustedError:  # 4 KiB can be 4 MiB: ten milliseconds, and sixty of them come in one segment
            if max_bytes <= 4 * INLINE_UP_TO:
                raise
    return await trio.to_thread.run_sync(_decompress, data, max_bytes, limiter=_threads())


def _decompress(data: Buffer, max_bytes: int) -> bytes:
    return messages.decompress(data, max_bytes=max_bytes)


def _threads() -> trio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_THREADS)
        _limiter.set(limiter)
        return limiter
