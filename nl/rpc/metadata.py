"""Metadata and timeouts between Python and the wire (gRPC over HTTP/2, PROTOCOL-HTTP2.md). Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from multidict import MultiDict

from nl.errors import InvalidRequestError
from nl.rpc import hpack
from nl.rpc.hpack import Field

_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_LONGEST_S = (10**8 - 1) * 3600.0
_KEY = re.compile(r"[0-9a-z_.\-]+")
_TEXT = re.compile(r"[ -~]*")
_RESERVED = {"te", "content-type", "user-agent"}
_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte != 0x25).decode()


def decode_timeout(value: bytes) -> float:
    """`grpc-timeout` in seconds; InvalidRequestError if it is not one (at most eight digits and a unit)."""
    unit = _UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        raise InvalidRequestError(f"grpc-timeout is {value.decode('latin-1')!r}")
    return int(digits) * unit


def encode_timeout(seconds: float) -> bytes:
    """`grpc-timeout`, rounded up to the finest unit that fits in eight digits; the longest for what is longer still."""
    seconds = min(max(seconds, 0.0), _LONGEST_S)
    for unit, size in ((b"n", 1e9), (b"u", 1e6), (b"m", 1e3), (b"S", 1.0)):
        count = int(seconds * size) + 1
        if count < 10**8:
            return b"%d%s" % (count, unit)
    return b"%dH" % min(int(seconds / 3600) + 1, 10**8 - 1)


def decode_binary(value: bytes) -> bytes:
    """A `-bin` value: base64 with or without padding, several joined by commas are joined."""
    try:
        parts = value.replace(b" ", b"").split(b",")
        return b"".join(base64.b64decode(part + b"=" * (-len(part) % 4), validate=True) for part in parts)
    except ValueError as exc:
        raise InvalidRequestError("binary metadata is not base64") from exc


def encode_binary(value: bytes) -> bytes:
    """A `-bin` value, unpadded."""
    return base64.b64encode(value).rstrip(b"=")


def decode_fields(fields: Iterable[Field]) -> MultiDict[str | bytes]:
    """The custom metadata among a message's fields."""
    metadata: MultiDict[str | bytes] = MultiDict()
    for name, value, kind, _ in fields:
        if kind != hpack.REGULAR or name.startswith(b"grpc-"):
            continue
        key = name.decode("ascii")
        if key.endswith("-bin"):
            metadata.add(key, decode_binary(value))
        else:
            metadata.add(key, value.decode("latin-1"))
    return metadata


def encode_fields(metadata: Any) -> list[tuple[bytes, bytes]]:
    """Custom metadata as header fields; ValueError or TypeError for what may not be sent."""
    fields: list[tuple[bytes, bytes]] = []
    for key, value in metadata.items() if isinstance(metadata, Mapping) else metadata:
        if key in _RESERVED or key.startswith("grpc-") or not _KEY.fullmatch(key):
            raise ValueError(f"metadata key {key!r}")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise TypeError(f"metadata {key!r} takes bytes, not {type(value).__name__}")
            fields.append((key.encode(), encode_binary(value)))
        else:
            if not isinstance(value, str):
                raise TypeError(f"metadata {key!r} takes text, not {type(value).__name__}")
            if not _TEXT.fullmatch(value):
                raise ValueError(f"metadata {key!r} is not printable ASCII")
            fields.append((key.encode(), value.strip(" ").encode()))
    return fields


def encode_message(text: str, *, max_bytes: int | None = None) -> bytes:
    """`grpc-message`: percent-encoded UTF-8, its end cut off between characters where it is more than `max_bytes`."""
    if max_bytes is None:
        return _percent_encoded(text)
    if max_bytes <= 0:
        return b""
    encoded = _percent_encoded(text[:max_bytes])
    if len(encoded) <= max_bytes:
        return encoded
    kept, size = 0, 0
    for character in text[:max_bytes]:
        size += len(_percent_encoded(character)) or 1
        if size > max_bytes:
            break
        kept += 1
    return _percent_encoded(text[:kept])


def _percent_encoded(text: str) -> bytes:
    return quote_from_bytes(text.encode("utf-8", "replace"), safe=_PLAIN).encode("ascii").strip(b" ")


def decode_message(value: bytes) -> str:
    """`grpc-message` as text, whatever it holds."""
    return unquote_to_bytes(value).decode("utf-8", "replace")
