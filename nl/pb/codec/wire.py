"""The wire format below messages: varints, tags, lengths, and stepping over what nobody knows.

The readers are called for the rarer, longer forms only: generated decoders read a first byte themselves and come here
when its top bit says that more follows. All limits are those of google's protobuf: varints of ten bytes, tags and
lengths of five, lengths below 2 GiB, a hundred levels of nesting.
"""

from __future__ import annotations

from typing import Final

Buffer = bytes | bytearray | memoryview

MAX_DEPTH: Final = 100
"""Levels of messages and groups below the outermost message."""
_MASK64: Final = (1 << 64) - 1
_MAX_LENGTH: Final = (1 << 31) - 1
_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)


class DecodeError(ValueError):
    """The bytes are not a message of the wanted type."""


class Levels:
    """How many levels may still nest, as a number that also counts how often a level was entered.

    Decoders pass `d - 1` on for each message inside of a message: given this instead of an int, they count without
    knowing it, and those that decode small input, which cannot hold many, do not pay for it.
    """

    __slots__ = ("_counter", "_deeper", "_left")

    def __init__(self, left: int, entries: int, counter: list[int] | None = None) -> None:
        self._left = left
        self._counter = [entries] if counter is None else counter
        self._deeper: Levels | None = None

    def __sub__(self, one: int) -> Levels:
        counter = self._counter
        counter[0] -= 1
        if counter[0] < 0:
            raise DecodeError("too many messages in it for its size")
        if self._deeper is None:
            self._deeper = Levels(self._left - one, 0, counter)
        return self._deeper

    def __lt__(self, other: int) -> bool:
        return self._left < other


def build_varint(number: int) -> bytes:
    """The varint of 0 <= number < 2**64."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


VARINTS: Final = tuple(bytes((low,)) for low in range(128)) + tuple(
    bytes((low | 128, high)) for high in range(1, 32) for low in range(128)
)
"""The varints of 0..4095: lengths and sizes are looked up here before anything is computed."""
SHORT: Final = len(VARINTS)


def varint(number: int) -> bytes:
    """The varint of a number that no table holds: a length or an unsigned 64-bit value."""
    if 0 <= number < SHORT:
        return VARINTS[number]
    if SHORT <= number < 1 << 14:
        return bytes((number & 127 | 128, number >> 7))
    if 0 < number < 1 << 21:  # most payloads are no longer
        return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14))
    if not 0 <= number <= _MASK64:
        raise ValueError(f"{number} is not an unsigned 64-bit integer")
    return build_varint(number)


def varint_signed(number: int) -> bytes:
    """The varint of an int64: negative numbers take ten bytes."""
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{number} is not a signed 64-bit integer")
    return varint(number & _MASK64)


def varint_int32(number: int) -> bytes:
    """The varint of an int32 or an enum, sign-extended to 64 bits."""
    if not -(1 << 31) <= number < 1 << 31:
        raise ValueError(f"{number} is not a signed 32-bit integer")
    return varint(number & _MASK64)


def varint_uint32(number: int) -> bytes:
    """The varint of a uint32."""
    if not 0 <= number < 1 << 32:
        raise ValueError(f"{number} is not an unsigned 32-bit integer")
    return varint(number)


def varint_sint32(number: int) -> bytes:
    """The zigzag varint of a sint32."""
    varint_int32(number)
    return varint(number << 1 ^ number >> 31)


def varint_sint64(number: int) -> bytes:
    """The zigzag varint of a sint64."""
    varint_signed(number)
    return varint(number << 1 ^ number >> 63)


def read_varint(data: Buffer, at: int, first: int) -> tuple[int, int]:
    """Goes on after `first`, a byte above 127: the value (64 bits, the rest falls off) and the position behind it."""
    value = first & 127
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _MASK64, at
    raise DecodeError("varint of more than ten bytes")


def read_tag(data: Buffer, at: int, first: int) -> tuple[int, int]:
    """As `read_varint`, for a tag: five bytes and 32 bits at the most."""
    value = first & 127
    for shift in range(7, 35, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 32:
                break
            return value, at
    raise DecodeError("tag of more than 32 bits")


def read_length(data: Buffer, at: int, first: int) -> tuple[int, int]:
    """As `read_varint`, for a length: five bytes at the most, and less than 2 GiB."""
    value = first & 127
    for shift in range(7, 35, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value > _MAX_LENGTH:
                break
            return value, at
    raise DecodeError("length of 2 GiB or more")


def skip(data: Buffer, at: int, end: int, tag: int, depth: int | Levels) -> int:
    """Steps over a field whose tag has been read; the position behind it.

    Groups are walked without recursion: `depth` levels of them are allowed. Google refuses field number 0 in messages
    and lets it pass in groups; so does this.
    """
    if tag < 8:
        raise DecodeError("field number 0")
    open_groups: list[int] = []
    while True:
        kind = tag & 7
        if kind == _VARINT:
            limit = at + 10
            while data[at] > 127:
                at += 1
                if at == limit:
                    raise DecodeError("varint of more than ten bytes")
            at += 1
        elif kind == _FIXED64:
            at += 8
        elif kind == _LENGTH:
            length = data[at]
            at += 1
            if length > 127:
                length, at = read_length(data, at, length)
            at += length
        elif kind == _FIXED32:
            at += 4
        elif kind == _GROUP:
            open_groups.append(tag | 7)
            if len(open_groups) > depth:
                raise DecodeError("nested too deeply")
        elif kind == _GROUP_END:
            if not open_groups or open_groups.pop() != tag | 7:
                raise DecodeError("end of a group that was not open")
        else:
            raise DecodeError(f"unknown wire type {kind}")
        if at > end:
            raise DecodeError("truncated")
        if not open_groups:
            return at
        tag = data[at]
        at += 1
        if tag > 127:
            tag, at = read_tag(data, at, tag)


def skip_field(data: Buffer, at: int, end: int) -> int:
    """Steps over a whole field, tag and all, of an outermost message; the position behind it."""
    tag = data[at]
    at += 1
    if tag > 127:
        tag, at = read_tag(data, at, tag)
    return skip(data, at, end, tag, MAX_DEPTH)


def int32(value: int) -> int:
    """The low 32 bits of a varint as a signed number."""
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def sint32(value: int) -> int:
    """A zigzag varint, cut to 32 bits."""
    value &= 0xFFFFFFFF
    return (value >> 1) ^ -(value & 1)


def sint64(value: int) -> int:
    """A zigzag varint of 64 bits."""
    return (value >> 1) ^ -(value & 1)
