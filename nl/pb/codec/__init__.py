"""The codec: messages to bytes and back, exact and strict where betterproto2's own is not.

    decode(reapi.Action, data)      bytes-like -> message; DecodeError if it is not one
    decoding(reapi.Action)          the same as a function of the data, for those who decode many of one class
    encode(message)                 -> bytes
    encode_parts(message)           -> list of buffers, big payloads among them as they are, uncopied

What is accepted and what comes out is what google's protobuf accepts and gives: truncated or malformed bytes are an
error; a field of the wrong wire type is an unknown field; unknown fields are kept and written back; a singular message
that comes twice is merged; numbers may come packed or not; enums are open; strings must be UTF-8. Two small things are
not kept: unknown fields inside map entries (google drops them too) and inside wrappers such as UInt32Value. And two
are refused that google lets pass: field number 0 in a message that has no fields, and a message that holds far more
messages than anything of its size has use for (`_FREE_ENTRIES`), which is an attack on memory.

Fields are written by ascending number, so what was canonical stays so. Payload fields (ByteStream and batch data) come
out as memoryviews of the input: to keep one, copy it with `bytes()`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import betterproto2

from nl.pb.codec.decoder import Decode
from nl.pb.codec.registry import check_views, decoder_of, encoder_of, has_views
from nl.pb.codec.wire import MAX_DEPTH, Buffer, DecodeError, Levels, varint

__all__ = ("Buffer", "DecodeError", "decode", "decoding", "encode", "encode_parts", "is_generated", "varint")

M = TypeVar("M")
_COPY_BELOW = 1024
"""Input smaller than this is copied to bytes first: decoding bytes is faster than decoding a memoryview."""
_KEEP_FROM = 2048
"""Pieces smaller than this are joined by `encode_parts`: copying them costs less than one more buffer to send."""

_FREE_ENTRIES = 65_536
_ENTRY_BYTES = 16
_COUNT_FROM = 2 * _FREE_ENTRIES
"""A message may hold so many messages, at whatever depth, and one more for each so many bytes. An empty one takes two
bytes on the wire and some 250 in memory: 4 MiB of them would be half a gigabyte. Of what real clients send, a
digest and the node around it, which take 70 bytes or more, come closest."""

_RUNNING: dict[type, Decode] = {}
"""The decoders of bytes that have been wanted so far: one dict look-up in the common case."""


class Encoded(Protocol):
    """A reply that knows its own bytes: anything that is not a generated message but may be sent as one."""

    def encode_parts(self) -> list[Buffer]: ...


def decode(cls: type[M], data: Buffer, *, views: Collection[str] = ()) -> M:
    """The message in `data`.

    `views` names further bytes fields of `cls` that may come out as memoryviews. A class that is not a generated
    message decodes itself, by its `decode(data)`. Raises DecodeError.
    """
    run = _RUNNING.get(cls) if type(data) is bytes and not views else None
    if run is None:
        if not issubclass(cls, betterproto2.Message):
            return cast(M, cast(Any, cls).decode(data))
        run, data = _prepared(cls, data, frozenset(views))
    try:
        size = len(data)
        levels = MAX_DEPTH if size < _COUNT_FROM else Levels(MAX_DEPTH, _FREE_ENTRIES + size // _ENTRY_BYTES)
        return cast(M, run(data, 0, size, None, levels))
    except IndexError:
        raise DecodeError(f"{cls.__name__}: truncated") from None
    except UnicodeDecodeError as error:
        raise DecodeError(f"{cls.__name__}: {error.reason} in a string") from None
    except DecodeError as error:
        raise DecodeError(f"{cls.__name__}: {error}") from None


def is_generated(cls: type) -> bool:
    """Whether the codec decodes messages of this class, and not their own `decode`."""
    return issubclass(cls, betterproto2.Message)


def decoding(cls: type[M]) -> Callable[[Buffer], M]:
    """`decode` for one class: what kind of class it is, is found out once."""
    if not issubclass(cls, betterproto2.Message):
        own: Callable[[Buffer], M] = cast(Any, cls).decode
        return own
    return partial(decode, cls)


def _prepared(cls: type[betterproto2.Message], data: Buffer, views: frozenset[str]) -> tuple[Decode, Buffer]:
    """The decoder for this kind of input, and the input as that decoder wants it."""
    if views:
        check_views(cls, views)
    elif type(data) is bytes:
        run = _RUNNING[cls] = decoder_of(cls, False)
        return run, data
    is_view = len(data) >= _COPY_BELOW and not isinstance(data, bytes) and (bool(views) or has_views(cls))
    return decoder_of(cls, is_view, views), memoryview(data).cast("B") if is_view else bytes(data)


def encode(message: betterproto2.Message | Encoded) -> bytes:
    """The bytes of a message. Raises ValueError for numbers that do not fit their field."""
    if not isinstance(message, betterproto2.Message):
        return b"".join(message.encode_parts())
    parts: list[Buffer] = []
    encoder_of(type(message))(message, parts)
    return b"".join(parts)


def encode_parts(message: betterproto2.Message | Encoded) -> list[Buffer]:
    """The bytes of a message as buffers to be sent one after the other; big payloads are not copied."""
    if not isinstance(message, betterproto2.Message):
        return message.encode_parts()
    pieces: list[Buffer] = []
    if encoder_of(type(message))(message, pieces) < _KEEP_FROM:
        return [b"".join(pieces)]
    parts: list[Buffer] = []
    first = 0
    for index, piece in enumerate(pieces):
        if len(piece) >= _KEEP_FROM:
            if first < index:
                parts.append(b"".join(pieces[first:index]))
            parts.append(piece)
            first = index + 1
    if first < len(pieces):
        parts.append(b"".join(pieces[first:]))
    return parts
