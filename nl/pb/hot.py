"""Codecs written by hand, for the few messages whose number or size decides how fast the server is.

Each of them reads the shape that every real client sends, and hands anything else to the general codec, so that it
accepts and means exactly what `nl.pb.codec` does. What they gain is not doing work: no object per digest, no copy of a
payload, no parsing and writing again of what is only passed on. Digests are plain pairs (hash, size in bytes); what
they stand for is for the layers above to say.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nl.pb import codec, reapi
from nl.pb.codec import Buffer, DecodeError, varint
from nl.pb.codec.wire import read_length, read_varint, skip_field

Pair = tuple[str, int]
"""A digest: hash, size in bytes."""

_HASH_AT, _HASH_END, _SIZE_AT = 4, 68, 69
"""In an encoded digest: tag, length, tag of the hash, 64, the hash, tag of the size, the size."""
_MAX_WRITE_HEAD: Final = 16 * 1024
_MASK64: Final = (1 << 64) - 1


def _digest_heads(*tags: int) -> dict[bytes, int]:
    """From the first four bytes of a digest with a hash of 64 characters to its whole length.

    The size is left out when it is zero and has one to nine bytes otherwise.
    """
    sizes = (0, *range(2, 11))
    return {bytes((tag, _HASH_END - 2 + size, 0x0A, 64)): _HASH_END + size for tag in tags for size in sizes}


_ENTRIES = _digest_heads(0x12)


def _size_at(data: bytes, at: int, end: int) -> int:
    """The size field in `data[at:end]`, or -1 if that is not one and nothing else."""
    if at == end:
        return 0
    if data[at] != 0x10:
        return -1
    size = data[at + 1]
    at += 2
    if size > 127:
        size, at = read_varint(data, at, size)
    return size if at == end and size < 1 << 63 else -1


class BatchReadReply:
    """BatchReadBlobsResponse, built blob by blob; payloads are sent from where they lie.

    `size` is what has been added so far, in encoded bytes: the caller keeps it below its limit.
    """

    __slots__ = ("_open", "_parts", "size")

    _JOIN_BELOW: Final = 2048

    def __init__(self) -> None:
        self._parts: list[Buffer] = []
        self._open: list[Buffer] = []  # to be joined with the head that comes next
        self.size = 0

    def add_blob(self, pair: Pair, data: Buffer, *, compressor: int = 0) -> None:
        """A blob that was found; `data` must not change until the reply has been sent."""
        length = len(data)
        if pair[1] == length and len(pair[0]) == 64 and pair[0].isascii() and length and not compressor:
            head = _head_of(pair[0], length)
        else:
            payload = b"\x12" + varint(length)
            if compressor:
                payload = b"\x20" + varint(compressor) + payload
            head = self._head(pair, payload, following=length)
        self.size += len(head) + length
        if length < self._JOIN_BELOW:
            self._open += (head, data)
        elif self._open:
            self._parts += (b"".join((*self._open, head)), data)
            self._open.clear()
        else:
            self._parts += (head, data)

    def add_status(self, pair: Pair, *, code: int, message: str) -> None:
        """A blob that was not: why, as a google.rpc.Status."""
        text = message.encode()
        status = b"\x08" + varint(code) + b"\x12" + varint(len(text)) + text
        head = self._head(pair, b"\x1a" + varint(len(status)) + status, following=0)
        self.size += len(head)
        self._open.append(head)

    def encode_parts(self) -> list[Buffer]:
        """The encoded response."""
        return [*self._parts, b"".join(self._open)] if self._open else list(self._parts)

    @staticmethod
    def _head(pair: Pair, encoded: bytes, *, following: int) -> bytes:
        """What stands before `following` bytes of payload: tag and length, the digest, and what else is encoded."""
        name = pair[0].encode()
        digest = b"\x0a" + varint(len(name)) + name + (b"\x10" + varint(pair[1]) if pair[1] else b"")
        body = b"\x0a" + varint(len(digest)) + digest + encoded
        return b"\x0a" + varint(len(body) + following) + body


def _head_of(name: str, length: int) -> bytes:
    """What `_head` gives for a whole blob, as nearly all are, with a hash of 64 characters."""
    size = varint(length)  # of the digest and of the payload
    following = 2 * len(size) + length
    return b"\x0a%b\x0a%c\x0a\x40%b\x10%b\x12%b" % (
        varint(70 + following), 67 + len(size), name.encode(), size, size
    )


class WriteHead(NamedTuple):
    """A WriteRequest up to its payload, which is `data[data_start:data_start + data_length]` of the message."""

    resource_name: str
    write_offset: int
    finish_write: bool
    data_start: int
    data_length: int


class NotStreamableError(Exception):
    """The payload is not the last thing in the message: take the message whole and use `codec.decode`."""


def parse_write_head(first: Buffer, total: int) -> WriteHead | None:
    """Reads what stands before the payload of a WriteRequest whose first bytes have arrived.

    `total` is the length of the whole message. None: more bytes are needed. Raises DecodeError if the message is wrong
    however it goes on, NotStreamableError if the payload is not last or something unknown comes before it.
    """
    head = bytes(first[:_MAX_WRITE_HEAD])
    try:
        return _parse_write_head(head, total)
    except IndexError:
        if len(head) == _MAX_WRITE_HEAD:
            raise NotStreamableError("a resource name of many KiB") from None
        if len(head) >= total:
            raise DecodeError("WriteRequest: truncated") from None
        return None


def _parse_write_head(head: bytes, total: int) -> WriteHead:
    i = 0
    name, offset, finish = "", 0, False
    while i < total:
        tag = head[i]
        value = head[i + 1]
        i += 2
        if tag in (0x10, 0x18):
            if value > 127:
                value, i = read_varint(head, i, value)
            if tag == 0x10:
                offset = value if value < 1 << 63 else value - (1 << 64)
            else:
                finish = value != 0
        elif tag in (0x0A, 0x52):
            if value > 127:
                value, i = read_length(head, i, value)
            stop = i + value
            if stop > total:
                raise DecodeError("WriteRequest: truncated")
            if tag == 0x52:
                if stop != total:
                    raise NotStreamableError("something follows the payload")
                return WriteHead(name, offset, finish, i, value)
            if stop > len(head):
                raise IndexError
            name = _utf8(head[i:stop])
            i = stop
        else:
            raise NotStreamableError(f"tag {tag} before the payload")
    if i != total:
        raise DecodeError("WriteRequest: truncated")
    return WriteHead(name, offset, finish, total, 0)


def _utf8(data: bytes) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"{error.reason} in a string") from None


def stored_blob(pair: Pair) -> bytes:
    """What an encoded BatchUpdateBlobsResponse says of a blob that was stored: its digest and an empty status."""
    name, number = pair
    size = b"\x10" + varint(number) if number else b""
    return b"\x0a%c\x0a%c\x0a\x40%b%b\x12\x00" % (70 + len(size), 66 + len(size), name.encode(), size)


def write_reply(committed_size: int) -> bytes:
    """An encoded WriteResponse."""
    return b"\x08" + varint(committed_size & _MASK64) if committed_size else b""


class UpdateActionResult(NamedTuple):
    """An UpdateActionResultRequest whose result is left as it came."""

    request: reapi.UpdateActionResultRequest
    """All the rest; its `action_result` is not set."""
    encoded_result: bytes | None
    """The encoded ActionResult; None if the request has none."""


def parse_update_action_result(data: Buffer) -> UpdateActionResult:
    """Reads the request and cuts out its result, unread. Raises DecodeError if the rest is wrong."""
    whole = bytes(data)
    results: list[bytes] = []  # of a message that comes twice, both are merged: so are their bytes, one after the other
    rest: list[bytes] = []
    i, end = 0, len(whole)
    try:
        while i < end:
            start = i
            i = skip_field(whole, i, end)
            if whole[start] != 0x1A:
                rest.append(whole[start:i])
                continue
            length, at = whole[start + 1], start + 2
            if length > 127:
                length, at = read_length(whole, at, length)
            results.append(whole[at:i])
    except IndexError:
        raise DecodeError("UpdateActionResultRequest: truncated") from None
    request = codec.decode(reapi.UpdateActionResultRequest, b"".join(rest))
    if request.action_result is not None:  # its tag was written in more bytes than it takes
        results.append(codec.encode(request.action_result))
        request.action_result = None
    return UpdateActionResult(request, b"".join(results) if results else None)


class ActionResultDigests(NamedTuple):
    """What an ActionResult refers to in the CAS. A digest without hash and size refers to nothing and is left out."""

    blobs: list[Pair]
    """Output files, stdout and stderr."""
    trees: list[Pair]
    directories: list[Pair]
    """Root directories of output directories."""


def action_result_digests(data: Buffer) -> ActionResultDigests:
    """The digests in an encoded ActionResult. Raises DecodeError where decoding the whole of it would.

    Output files, of which there may be thousands, are walked by hand; everything else is decoded.
    """
    whole = bytes(data)
    found = ActionResultDigests([], [], [])
    rest: list[bytes] = []  # all fields but the files that were walked
    i, end = 0, len(whole)
    try:
        while i < end:
            start = i
            if whole[i] != 0x12:
                i = skip_field(whole, i, end)
                rest.append(whole[start:i])
                continue
            length = whole[i + 1]
            i += 2
            if length > 127:
                length, i = read_length(whole, i, length)
            stop = i + length
            pair = _output_file_digest(whole, i, stop) if stop <= end else None
            if pair is None:
                rest.append(whole[start:stop])
            elif pair != _NOTHING:
                found.blobs.append(pair)
            i = stop
    except IndexError:
        raise DecodeError("ActionResult: truncated") from None
    if i != end:
        raise DecodeError("ActionResult: truncated")
    _collect(codec.decode(reapi.ActionResult, b"".join(rest)), found)
    return found


_NOTHING: Final = ("", 0)


def _output_file_digest(data: bytes, i: int, end: int) -> Pair | None:
    """The digest of an OutputFile of path, digest and is_executable; None if it has anything else."""
    if i + 2 > end or data[i] != 0x0A or data[i + 1] > 127:
        return None
    path_end = i + 2 + data[i + 1]
    length = _ENTRIES.get(data[path_end : path_end + 4])
    if length is None:
        return None
    digest_end = path_end + length
    if digest_end > end or (digest_end != end and data[digest_end:end] != b"\x20\x01"):
        return None
    size = _size_at(data, path_end + _HASH_END, digest_end)
    if size < 0:
        return None
    try:
        str(data[i + 2 : path_end], "utf-8")
        return str(data[path_end + _HASH_AT : path_end + _HASH_END], "utf-8"), size
    except UnicodeDecodeError:
        return None


def _collect(result: reapi.ActionResult, found: ActionResultDigests) -> None:
    """Adds what a decoded ActionResult refers to."""
    blobs = [*(file.digest for file in result.output_files), result.stdout_digest, result.stderr_digest]
    trees = [directory.tree_digest for directory in result.output_directories]
    roots = [directory.root_directory_digest for directory in result.output_directories]
    for digests, pairs in ((blobs, found.blobs), (trees, found.trees), (roots, found.directories)):
        for digest in digests:
            if digest is not None and (digest.hash or digest.size_bytes):
                pairs.append((digest.hash, digest.size_bytes))
