"""What a store may know of the request that causes its work: the headers that stores have asked for, and no others.

A context variable, so that what lies between a request's handler and a store need not know of it. Tasks that the
handler starts have it, too. Not here: which headers are asked for (`nl.storage.capabilities.ForwardsHeaders`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Headers = tuple[tuple[str, str | bytes], ...]
"""Lower-case names and values, bytes for those that end in `-bin`. There may be a token among them: for no message."""

_headers: ContextVar[Headers] = ContextVar("nl.model.caller", default=())


def caller_headers() -> Headers:
    """Of the request that is being handled, those that some store forwards; nothing outside of requests."""
    return _headers.get()


@contextmanager
def caused_by(headers: Headers) -> Iterator[None]:
    """What happens in the block is for a request with these headers."""
    reset = _headers.set(headers)
    try:
        yield
    finally:
        _headers.reset(reset)
