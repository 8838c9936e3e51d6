"""The client's side of the CAS and ByteStream messages that carry most of the traffic, written and read by hand.

The other half of `hot` and `find_missing`: requests are built without an object per digest, payloads are sent from
where they lie and handed out as they arrive. Replies of another shape go to the general codec, with the same meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from nl.pb import bytestream, codec, reapi
from nl.pb.codec import Buffer, varint
from nl.pb.codec.wire import read_varint
from nl.pb.find_missing import FindMissingRequest
from nl.pb.hot import Pair

_JOIN_BELOW: Final = 2048
_MAX_SIZES: Final = 65_536


class _Sizes(dict[int, tuple[str, str]]):
    """From a blob's size to the length of its encoded digest and the size's field, as latin-1 text. Computed once each.
    """

    def __missing__(self, size: int) -> tuple[str, str]:
        if len(self) >= _MAX_SIZES:
            self.clear()
        tail = "\x10" + varint(size).decode("latin-1") if size else ""
        self[size] = pair = (chr(66 + len(tail)), tail)
        return pair


_SIZES = _Sizes()


def _string(tag: bytes, text: str) -> bytes:
    data = text.encode()
    return tag + varint(len(data)) + data if data else b""


def _digests(pairs: Iterable[Pair]) -> bytes:
    """Digests, whose hashes have 64 characters, in field 2."""
    sizes = _SIZES
    lines = []
    for name, size in pairs:
        length, tail = sizes[size]
        lines.append(f"\x12{length}\n@{name}{tail}")
    return "".join(lines).encode("latin-1")


def encode_find_missing(instance: str, pairs: Iterable[Pair], *, function: int) -> bytes:
    """A FindMissingBlobsRequest."""
    return b"".join((_string(b"\x0a", instance), _digests(pairs), b"\x18", varint(function)))


class MissingBlobs(frozenset[Pair]):
    """A FindMissingBlobsResponse: the digests that are missing. Its field has the number that the request's has."""

    __slots__ = ()

    @classmethod
    def decode(cls, data: Buffer) -> MissingBlobs:
        """Raises DecodeError."""
        return cls(FindMissingRequest.decode(data).pairs()) if len(data) else cls()


def encode_batch_read(instance: str, pairs: Iterable[Pair], *, function: int) -> bytes:
    """A BatchReadBlobsRequest that takes blobs as they are only."""
    return b"".join((_string(b"\x0a", instance), _digests(pairs), b"\x20", varint(function)))


class ReadBlob(NamedTuple):
    """What a BatchReadBlobsResponse says of one blob. `data` is a view of the message."""

    data: Buffer
    code: int
    message: str


class ReadBlobs(dict[Pair, ReadBlob]):
    """A BatchReadBlobsResponse, by digest."""

    @classmethod
    def decode(cls, data: Buffer) -> ReadBlobs:
        """Raises DecodeError."""
        found = cls()
        for each in codec.decode(reapi.BatchReadBlobsResponse, data).responses:
            digest, status = each.digest or reapi.Digest(), each.status
            code, message = (status.code, status.message) if status is not None else (0, "")
            if each.compressor and not code:
                code, message = 13, f"it came with compressor {int(each.compressor)}, which was not asked for"
            found[digest.hash, digest.size_bytes] = ReadBlob(each.data, code, message)
        return found


def encode_batch_update(instance: str, blobs: Sequence[tuple[Pair, Buffer]], *, function: int) -> list[Buffer]:
    """A BatchUpdateBlobsRequest; larger payloads stay where they are."""
    parts: list[Buffer] = []
    waiting: list[Buffer] = [_string(b"\x0a", instance)]
    for (name, size), data in blobs:
        digest = f"\n@{name}{_SIZES[size][1]}".encode("latin-1")
        head = b"\x0a" + varint(len(digest)) + digest + b"\x12" + varint(len(data))
        waiting += (b"\x12", varint(len(head) + len(data)), head)
        if len(data) < _JOIN_BELOW:
            waiting.append(data)
        else:
            parts += (b"".join(waiting), data)
            waiting.clear()
    waiting += (b"\x28", varint(function))
    parts.append(b"".join(waiting))
    return parts


class UpdatedBlobs(dict[Pair, tuple[int, str]]):
    """A BatchUpdateBlobsResponse: by digest, the code and message of its status."""

    @classmethod
    def decode(cls, data: Buffer) -> UpdatedBlobs:
        """Raises DecodeError."""
        found = cls()
        for each in codec.decode(reapi.BatchUpdateBlobsResponse, data).responses:
            digest, status = each.digest or reapi.Digest(), each.status
            found[digest.hash, digest.size_bytes] = (status.code, status.message) if status is not None else (0, "")
        return found


def write_head(resource_name: str, *, offset: int, size: int, finish: bool) -> bytes:
    """What stands before `size` bytes of data in a WriteRequest. The name may be empty in all but the first."""
    head = _string(b"\x0a", resource_name)
    if offset:
        head += b"\x10" + varint(offset)
    if finish:
        head += b"\x18\x01"
    return head + b"\x52" + varint(size) if size else head


def read_head(first: Buffer, total: int) -> int | None:
    """Where the data begins in a ReadResponse of `total` bytes that starts with `first`.

    None: more bytes are needed. -1: the message has another shape than data alone, and is to be decoded.
    """
    head = bytes(first[:12])
    if not head or head[0] != 0x52:
        return None if not head and total else -1
    try:
        length, at = read_varint(head, 2, head[1]) if head[1] > 127 else (head[1], 2)
    except IndexError:
        return None if len(head) < min(12, total) else -1
    except codec.DecodeError:  # which `read_data` raises as well
        return -1
    return at if at + length == total else -1


def read_data(data: Buffer) -> Buffer:
    """The data of a ReadResponse, whatever its shape. Raises DecodeError."""
    return codec.decode(bytestream.ReadResponse, data).data
