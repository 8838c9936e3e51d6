"""Whether a call that has failed may be sent again, and when. Pure.

A call may be sent again if the server has certainly not begun with it (NotProcessed), whatever it does; or if the
policy names both its method, as one that may run twice, and the status that it has failed with. Only calls with one
request are sent again, and only as long as nothing of an answer has arrived: then the caller has noticed nothing.
Nothing is ever sent twice at once (hedging).

Not here: sending (client_stream.py), and connecting again (connecting.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.blob.reader import Buffer
from nl.pb import rpc_status, wkt
from nl.pb.codec import DecodeError
from nl.rpc.errors import NotProcessed
from nl.rpc.hpack import Field

_MAX_PAUSE_S = 3600.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, when, and what. As NativeLink's `retry` if `delay` is twice and `jitter` half of what stands there."""

    max_retries: int = 3
    """Besides the first attempt."""
    delay: float = 0.1
    """Seconds before the first retry, about; doubled for each further one ..."""
    max_delay: float = 60.0
    """... up to this."""
    jitter: float = 0.2
    """By which part the pauses vary at random: 0.2 is 80 to 120 %."""
    codes: frozenset[Status] = frozenset({Status.UNAVAILABLE, Status.ABORTED})
    """After which a call of one of `methods` is sent again."""
    methods: frozenset[str] = frozenset()
    """Full names (`/package.Service/Method`) of those that do no harm if the server runs them twice."""
    max_kept: int = 4 << 20
    """Requests larger than this are not kept, and so not sent again once they are on their way."""

    def kept(self, parts: Sequence[Buffer]) -> list[bytes] | None:
        """A request to be sent again: its caller may reuse what is not `bytes`. None if it is too large."""
        if sum(map(len, parts)) > self.max_kept:
            return None
        return [part if type(part) is bytes else bytes(part) for part in parts]

    def pause(
        self,
        error: GRPCError,
        *,
        method: str,
        retries: int,
        trailers: Iterable[Field] = (),
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> float | None:
        """Seconds until the call should be sent again, after so many retries; None if it should not.

        A server that asks for another pause (`grpc-retry-pushback-ms`, google.rpc.RetryInfo) gets it, and one that asks
        for no retry gets none.
        """
        if retries >= self.max_retries:
            return None
        if not isinstance(error, NotProcessed) and not (error.status in self.codes and method in self.methods):
            return None
        asked = _pushback(trailers)
        if asked is None:
            own = min(self.max_delay, self.delay * 2.0 ** min(retries, 64))
            return max(own * uniform(1 - self.jitter, 1 + self.jitter), _retry_info(error))
        return asked if asked >= 0 else None


def _pushback(trailers: Iterable[Field]) -> float | None:
    """What the server says, -1 for "never" (gRFC A6); None if it says nothing."""
    for name, value, _, _ in trailers:
        if name == b"grpc-retry-pushback-ms":
            return int(value) / 1000 if value.isdigit() and len(value) < 8 else -1.0
    return None


def _retry_info(error: GRPCError) -> float:
    """The pause in the status's details, 0 if there is none."""
    for each in error.details if isinstance(error.details, list | tuple) else ():
        try:
            info = wkt.unpack(each, rpc_status.RetryInfo) if isinstance(each, wkt.Any) else None
        except DecodeError:  # said to nobody in particular: the status counts
            continue
        if info is not None and info.retry_delay is not None:
            return min(max(wkt.duration_to_ns(info.retry_delay) / 1e9, 0.0), _MAX_PAUSE_S)
    return 0.0
