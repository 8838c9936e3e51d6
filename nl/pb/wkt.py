"""The well-known types of protobuf, and what one does with them: packing an Any, reading the clock.

Timestamp and Duration are plain messages, exact to the nanosecond. An Any is opened by whoever knows what it expects:
there is no search by type URL.
"""

from __future__ import annotations

from typing import TypeVar

import betterproto2

from nl.pb import codec
from nl.pb.gen.google.protobuf import Any, BytesValue, Duration, Empty, Timestamp, UInt32Value
from nl.pb.gen.message_pool import default_message_pool

__all__ = (
    "Any",
    "BytesValue",
    "Duration",
    "Empty",
    "Timestamp",
    "UInt32Value",
    "duration_from_ns",
    "duration_to_ns",
    "pack",
    "pack_encoded",
    "timestamp_from_ns",
    "timestamp_from_s",
    "timestamp_to_ns",
    "type_url",
    "unpack",
)

M = TypeVar("M", bound=betterproto2.Message)
_NANOS = 1_000_000_000


def type_url(cls: type[betterproto2.Message]) -> str:
    """The URL by which an Any names messages of this class: `type.googleapis.com/` and the full name."""
    url: str = default_message_pool.type_to_url[cls]
    return url


def pack(message: betterproto2.Message) -> Any:
    """The message, encoded, inside of an Any."""
    return Any(type_url=type_url(type(message)), value=codec.encode(message))


def pack_encoded(cls: type[betterproto2.Message], data: bytes) -> Any:
    """An Any around bytes that already are an encoded `cls`."""
    return Any(type_url=type_url(cls), value=data)


def unpack(container: Any | None, cls: type[M]) -> M | None:
    """The message inside, or None when there is no Any or it holds another type.

    Only the name after the last slash counts, as the specification of Any has it. Raises DecodeError.
    """
    if container is None or container.type_url.rpartition("/")[2] != type_url(cls).rpartition("/")[2]:
        return None
    return codec.decode(cls, container.value)


def timestamp_from_ns(ns: int) -> Timestamp:
    """Nanoseconds since the epoch (`time.time_ns()`) as a Timestamp."""
    seconds, nanos = divmod(ns, _NANOS)
    return Timestamp(seconds=seconds, nanos=nanos)


def timestamp_from_s(seconds: float) -> Timestamp:
    """Seconds since the epoch (`time.time()`) as a Timestamp."""
    return timestamp_from_ns(int(seconds * _NANOS))


def timestamp_to_ns(stamp: Timestamp) -> int:
    """Nanoseconds since the epoch."""
    return stamp.seconds * _NANOS + stamp.nanos


def duration_from_ns(ns: int) -> Duration:
    """Nanoseconds as a Duration: both parts carry the sign."""
    seconds, nanos = divmod(abs(ns), _NANOS)
    return Duration(seconds=seconds, nanos=nanos) if ns >= 0 else Duration(seconds=-seconds, nanos=-nanos)


def duration_to_ns(span: Duration) -> int:
    """Nanoseconds."""
    return span.seconds * _NANOS + span.nanos
