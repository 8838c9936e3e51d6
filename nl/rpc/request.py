"""The head of a request, checked as HTTP (RFC 9113, section 8). What gRPC makes of it: server_connection.py. Pure."""

from __future__ import annotations

from nl.rpc import hpack
from nl.rpc.hpack import Field

Head = list[bytes | None]
"""Values of the fields that every request is asked for, by their kinds in hpack.py."""

_LAST = hpack.AUTHORIZATION
_NOTHING_YET: Head = [None] * (_LAST + 1)
_LAST_PSEUDO, _STATUS, _LENGTH, _BAD = hpack.LAST_PSEUDO, hpack.STATUS, hpack.CONTENT_LENGTH, hpack.BAD


def read_head(fields: list[Field]) -> Head | None:
    """What a request says of itself; None if it is malformed (RFC 9113, sections 8.2 and 8.3)."""
    head = _NOTHING_YET.copy()
    regular = False
    for _, value, kind, _ in fields:
        if kind > _LAST_PSEUDO:
            regular = True
            if kind <= _LAST:
                if kind == _LENGTH and head[kind] not in (None, value):
                    return None
                earlier = head[kind]
                if kind == _LAST and earlier is not None:  # neither counts: whoever stands before us may take another
                    value = b"%b, %b" % (earlier, value)
                head[kind] = value
            elif kind == _BAD:
                return None
        elif not kind:
            regular = True
        elif regular or head[kind] is not None or kind == _STATUS:
            return None
        else:
            head[kind] = value
    if not head[hpack.PATH] or not head[hpack.METHOD] or head[hpack.SCHEME] is None:
        return None
    return head if head[hpack.TE] in (None, b"trailers") else None


def declared_length(head: Head, *, ended: bool) -> int | None:
    """The request's content-length, None if it has none. ValueError for one that is malformed or already wrong."""
    declared = head[_LENGTH]
    if declared is None:
        return None
    if not declared.isdigit() or len(declared) > 18 or (ended and int(declared)):
        raise ValueError("content-length")
    return int(declared)
