"""What files an encoded Tree or Directory names, read as its bytes come: no message is built, nothing is kept whole.

Decoding a Tree of 100,000 files takes a second and hundreds of megabytes, for two fields of each FileNode. Here a part
of 64 KiB costs a millisecond, so whoever feeds parts gives way between them, and all that grows is the result.
"""

from __future__ import annotations

import sys
from binascii import Error as HexError
from binascii import hexlify, unhexlify
from typing import Final

from nl.blob.reader import Buffer
from nl.cas.digests import parse_digest
from nl.cas.packed import PackedDigests, pack
from nl.errors import InvalidRequestError
from nl.model.digest import Digest
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode
from nl.pb.codec.wire import read_length, read_tag, read_varint, skip

PART_BYTES: Final = 64 * 1024
"""How much to feed at a time."""
_MAX_RECORD: Final = 1024 * 1024
"""The largest single FileNode or DirectoryNode, and unknown field: names of a megabyte are nobody's."""
_ROOT, _CHILD = 0x0A, 0x12  # Tree
_FILE, _DIRECTORY = 0x0A, 0x12  # Directory
_HASH: Final = b"\x0a\x40"
_SIZE: Final = 0x10
_EXECUTABLE: Final = 0x20
_NONE: Final = -1
_ALL: Final = sys.maxsize


class FileDigests:
    """Feed it all parts, then `finish`. Raises InvalidRequestError for what is no Tree, or no Directory."""

    def __init__(self, digest: Digest, *, is_tree: bool) -> None:
        self._digest = digest
        self._kind = "Tree" if is_tree else "Directory"
        self._rest = b""
        self._at = 0  # of `_rest` in the whole
        self._directory_end = _NONE if is_tree else _ALL  # where the directory ends that is being read
        self._records = bytearray()
        self.directories: list[Digest] = []
        """What a Directory names as its subdirectories; those of a Tree are inside of it."""

    def feed(self, part: Buffer) -> None:
        """The next bytes."""
        data = self._rest + bytes(part) if self._rest else bytes(part)
        try:
            used = self._read(data)
        except DecodeError as exc:
            raise InvalidRequestError(f"{self._digest} is not a {self._kind}: {exc}") from exc
        self._rest = data[used:]
        self._at += used
        if len(self._rest) > _MAX_RECORD:
            raise InvalidRequestError(f"{self._digest} has a field of more than {_MAX_RECORD} bytes")

    def finish(self) -> PackedDigests:
        """All files' digests, once all bytes have been fed."""
        if self._rest or self._directory_end not in (_NONE, _ALL):
            raise InvalidRequestError(f"{self._digest} is not a {self._kind}: truncated")
        return PackedDigests(self._records, self._digest.function)

    def _read(self, data: bytes) -> int:
        """How many bytes of `data` are whole fields; those have been looked into."""
        at, end = 0, len(data)
        while True:
            if self._directory_end == self._at + at:
                self._directory_end = _NONE
            if at == end:
                return at
            if self._directory_end == _NONE:
                begun = _enter(data, at)
                if begun is not None:
                    at, length = begun
                    self._directory_end = self._at + at + length
                    continue
                limit = end
            else:
                limit = min(end, self._directory_end - self._at)
                at = self._files(data, at, limit)
                if at == limit:
                    continue
            try:
                after = self._other(data, at, limit)
            except IndexError:
                after = limit + 1
            if after > limit:
                if limit < end:
                    raise DecodeError("a directory is longer than its length says")
                return at
            at = after

    def _files(self, data: bytes, at: int, limit: int) -> int:
        """Steps over FileNodes as everybody writes them; stops at anything else, and at one that is not whole."""
        records = self._records
        while at + 2 < limit and data[at] == _FILE:
            length = data[at + 1]
            body = at + 2
            if length > 127:
                if data[body] > 127:
                    return at
                length += (data[body] << 7) - 128
                body += 1
            stop = body + length
            if stop > limit or length < 72 or data[body] != 0x0A or data[body + 1] > 127:
                return at
            tag = body + 2 + data[body + 1]
            hash_at = tag + 4
            size_at = hash_at + 64
            if size_at + 2 > stop or data[tag] != 0x12 or data[tag + 2 : hash_at] != _HASH or data[size_at] != _SIZE:
                return at
            end = tag + 2 + data[tag + 1]
            size = data[size_at + 1]
            last = size_at + 2
            if size > 127:
                try:
                    size, last = read_varint(data, last, size)
                except (DecodeError, IndexError):
                    return at
            if last != end or size >> 63:
                return at
            if end != stop and not (end + 2 == stop and data[end] == _EXECUTABLE and data[end + 1] < 128):
                return at
            text = data[hash_at:size_at]
            try:
                raw = unhexlify(text)
            except HexError:
                return at
            if hexlify(raw) != text:
                return at
            records += pack(raw, size)
            at = stop
        return at

    def _other(self, data: bytes, at: int, limit: int) -> int:
        """Any one field, however it is written: the position behind it, beyond `limit` if it is not whole.

        Or raises IndexError then.
        """
        tag = data[at]
        body = at + 1
        if tag > 127:
            tag, body = read_tag(data, body, tag)
        if self._directory_end == _NONE or tag not in (_FILE, _DIRECTORY):
            return skip(data, body, len(data) + _MAX_RECORD, tag, 100)
        length = data[body]
        body += 1
        if length > 127:
            length, body = read_length(data, body, length)
        after = body + length
        if after <= limit:
            self._node(data[body:after], is_file=tag == _FILE)
        return after

    def _node(self, record: bytes, *, is_file: bool) -> None:
        function = self._digest.function
        if is_file:
            file = decode(reapi.FileNode, record)
            digest = parse_digest(file.digest, function, f"{self._kind.lower()} {self._digest}: {file.name!r}")
            self._records += pack(bytes.fromhex(digest.hash), digest.size)
        elif self._kind == "Directory":
            node = decode(reapi.DirectoryNode, record)
            self.directories.append(parse_digest(node.digest, function, f"directory {self._digest}: {node.name!r}"))


def _enter(data: bytes, at: int) -> tuple[int, int] | None:
    """Where a directory of a Tree begins, and its length; None if it is another field, or its head is not whole."""
    if data[at] not in (_ROOT, _CHILD):
        return None
    try:
        length = data[at + 1]
        body = at + 2
        return (body, length) if length < 128 else read_length(data, body, length)[::-1]
    except IndexError:
        return None
