"""What calls inherit from whatever makes them: headers to pass on, a deadline, a trace, an identity.

    with calling(headers=forwarded(stream.metadata, ["x-request-id"]), deadline=stream.deadline):
        ...  # every call of any channel in here, and in tasks that are started in here, has them

Whoever asks our server does so with `authorization`, which is not among the metadata that handlers see: it is for this
server, and goes nowhere else.

A context variable, so that a store need not know who asks it. What a call says for itself comes first: a header that it
sets is not sent twice, and its deadline may only be earlier.

Not here: where these values come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import trio
from grpclib.metadata import Deadline

from nl.rpc.metadata import encode_fields

_NOT_FORWARDED = frozenset({"te", "content-type", "user-agent", "host", "connection"})


@dataclass(frozen=True, slots=True)
class CallContext:
    """What every call inherits."""

    fields: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    """Headers, as they are sent; a token may be among them, so they are in no message."""
    expires: float | None = None
    """The deadline, on trio's clock."""

    def headers_for(self, own: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """A call's headers: its own, and those that it does not set itself."""
        if not own:
            return list(self.fields)
        names = {name for name, _ in own}
        return own + [each for each in self.fields if each[0] not in names]


_current: ContextVar[CallContext | None] = ContextVar("nl.rpc.call_context", default=None)


def current() -> CallContext | None:
    """What holds here, None if nothing."""
    return _current.get()


@contextmanager
def calling(
    *,
    headers: Any = None,
    deadline: Deadline | None = None,
    timeout: float | None = None,
    trace: str | None = None,
    token: str | None = None,
) -> Iterator[CallContext]:
    """Calls in the block have `headers` (metadata as for a request), besides what holds around the block.

    `deadline` and `timeout` (seconds from now) end them, the earliest counts. `trace` is a `traceparent` of W3C's Trace
    Context; `token` goes into `authorization: Bearer`. A name replaces the same name around the block. ValueError or
    TypeError for what may not be sent.
    """
    outer = _current.get() or CallContext()
    own = [("traceparent", trace)] if trace else []
    own += [("authorization", f"Bearer {token}")] if token else []
    fields = CallContext(tuple(encode_fields(headers or ()))).headers_for(encode_fields(own))
    now = trio.current_time()
    ends = [end for end in (outer.expires, None if timeout is None else now + timeout) if end is not None]
    if deadline is not None:
        ends.append(now + deadline.time_remaining())
    inner = CallContext(tuple(outer.headers_for(fields)), min(ends, default=None))
    reset = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(reset)


def forwarded(metadata: Mapping[str, str | bytes] | None, names: Iterable[str]) -> list[tuple[str, str | bytes]]:
    """Those of a request's headers that are to be passed on, every value of them.

    What belongs to one connection or one call (`te`, `grpc-*`, ...) is never passed on, and neither is a value that
    gRPC does not allow: it takes printable ASCII, and bytes for `-bin`.
    """
    if metadata is None:
        return []
    wanted = {name.lower() for name in names} - _NOT_FORWARDED
    out: list[tuple[str, str | bytes]] = []
    for key, value in metadata.items():
        if key in wanted and not key.startswith("grpc-"):
            try:
                encode_fields([(key, value)])
            except (ValueError, TypeError):
                continue
            out.append((key, value))
    return out
