"""FindMissingBlobs by hand: ten thousand digests in a request are ordinary, and an object for each would be the cost.

One regular expression reads all digests at the speed of C; what is missing is answered with the bytes that it came in,
because the field has the same number in the reply. Anything that does not have the shape that every real client sends
goes to the general codec, so that what is accepted, and what it means, is exactly the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from nl.pb import codec, reapi
from nl.pb.codec import Buffer, varint
from nl.pb.codec.wire import read_varint
from nl.pb.hot import Pair

_Found = tuple[str, str, str]

# A digest in field 2, its bytes as latin-1 text: (its length, the hash, the size with its tag). The length is that of
# a hash with its tag and length (66) and of a size that is left out when it is 0 and takes 2 to 10 bytes otherwise.
_PATTERN = re.compile("\x12([BD-L])\n@(.{64})(\x10[\x80-\xff]{0,8}+[\x00-\x7f]|)", re.DOTALL)
_FIND = _PATTERN.findall
_AT_ONCE: Final = 1024 * 1024
_FIXED: Final = 68
_HEX: Final = b"0123456789abcdef"
_MAX_SIZES: Final = 65_536


class _Sizes(dict[tuple[str, str], int]):
    """From length and size field, as text, to the size, computed once each; KeyError if they do not belong together."""

    def __missing__(self, key: tuple[str, str]) -> int:
        length, text = key
        tail = text.encode("latin-1")
        size = 0
        if tail:
            size, _ = read_varint(tail, 2, tail[1]) if tail[1] > 127 else (tail[1], 2)
        if ord(length) != _FIXED - 2 + len(tail) or size >= 1 << 63:
            raise KeyError(key)
        if len(self) >= _MAX_SIZES:
            self.clear()
        self[key] = size
        return size


_SIZES = _Sizes()


@dataclass(slots=True)
class FindMissingRequest:
    """FindMissingBlobsRequest with every digest as a pair."""

    instance_name: str
    digest_function: int
    hashes: Sequence[str]
    sizes: Sequence[int]
    is_plain: bool
    """Every hash is 64 lower-case hex digits and every size is at least 0. If not, the pairs are as the client wrote
    them and have to be checked one by one."""
    _found: list[_Found] = field(default_factory=list)
    _encoded: list[bytes] = field(default_factory=list)

    @classmethod
    def decode(cls, data: Buffer) -> FindMissingRequest:
        """Raises DecodeError if the bytes are not a FindMissingBlobsRequest."""
        whole = bytes(data)
        return _plain(whole) or _any(whole)

    @classmethod
    def plain(cls, data: Buffer) -> FindMissingRequest | None:
        """The same at the speed of C, for what has the shape that every real client sends; else None."""
        return _plain(bytes(data))

    def pairs(self) -> Iterator[Pair]:
        """The digests, in order. No list of them is made unless the caller needs one."""
        return zip(self.hashes, self.sizes, strict=True)

    @property
    def slices(self) -> list[bytes]:
        """For each digest its bytes, tag and length included: `FindMissingResponse` takes them as they are."""
        if self._found:
            return [f"\x12{length}\n@{name}{size}".encode("latin-1") for length, name, size in self._found]
        return [b"\x12" + varint(len(digest)) + digest for digest in self._encoded]

    def missing(self, sizes: Sequence[int | None]) -> FindMissingResponse:
        """The reply that names each digest whose place in `sizes` is None, in the order of the request."""
        if None not in sizes:
            return FindMissingResponse(())
        return FindMissingResponse([raw for raw, size in zip(self.slices, sizes, strict=True) if size is None])


@dataclass(slots=True)
class FindMissingResponse:
    """FindMissingBlobsResponse made of slices of the request: the number of the field is the same in both."""

    slices: Sequence[bytes]

    def encode_parts(self) -> list[Buffer]:
        """The encoded response."""
        return [b"".join(self.slices)]


def _plain(data: bytes) -> FindMissingRequest | None:
    """Instance name, digests, digest function, each as expected; None for anything else."""
    start, end = 0, len(data)
    instance = b""
    if end > 1 and data[0] == 0x0A and data[1] < 128:
        start = 2 + data[1]
        instance = data[2:start]
    text = str(data, "latin-1")
    found: list[_Found] = _FIND(text, start) if end <= _AT_ONCE else _find_in_steps(text, start)
    lengths, names, tails = zip(*found, strict=True) if found else ((), (), ())
    try:
        sizes = list(map(_SIZES.__getitem__, zip(lengths, tails, strict=True)))
    except KeyError:
        return None
    # Matches do not overlap: that their lengths add up to all bytes means that nothing lies between them.
    left = end - start - _FIXED * len(found) - sum(map(len, tails))
    function = 0
    if left == 2 and data[-2] == 0x18 and data[-1] < 128:
        function, left = data[-1], 0
    if left or not _are_hex(names):
        return None
    try:
        name = str(instance, "utf-8")
    except UnicodeDecodeError:
        return None
    return FindMissingRequest(name, function, names, sizes, is_plain=True, _found=found)


def _find_in_steps(text: str, start: int) -> list[_Found]:
    """What `_FIND` finds, in steps: another thread can run between them, but not while an expression is at work."""
    found: list[_Found] = []
    while start < len(text):
        following = _PATTERN.search(text, start + _AT_ONCE)
        stop = following.start() if following else len(text)
        found += _FIND(text, start, stop)
        start = stop
    return found


def _are_hex(names: Sequence[str]) -> bool:
    """Whether only lower-case hex digits occur, looked at all at once."""
    return not "".join(names).encode("latin-1").translate(None, _HEX)


def _any(data: bytes) -> FindMissingRequest:
    message = codec.decode(reapi.FindMissingBlobsRequest, data)
    digests = [(digest.hash, digest.size_bytes) for digest in message.blob_digests]
    return FindMissingRequest(
        instance_name=message.instance_name,
        digest_function=int(message.digest_function),
        hashes=[name for name, _ in digests],
        sizes=[size for _, size in digests],
        is_plain=all(len(name) == 64 and name.isascii() and size >= 0 for name, size in digests)
        and _are_hex([name for name, _ in digests]),
        _encoded=[codec.encode(digest) for digest in message.blob_digests],
    )
