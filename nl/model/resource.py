"""ByteStream resource names, the way blobs are named in `google.bytestream` calls. Pure, and called for every request.

Grammar (REAPI, ContentAddressableStorage), `[]` optional; the instance name may be empty or have several segments::

    read : [{instance}/]blobs/[{digest_function}/]{hash}/{size}
           [{instance}/]compressed-blobs/{compressor}/[{digest_function}/]{hash}/{uncompressed_size}
    write: [{instance}/]uploads/{uuid}/<a read name without instance>[/{metadata}...]

One leading slash is tolerated (moon writes one when its instance name is empty). Not here: whether the instance
exists and whether a compressor is offered; that is for the service. Anything else raises InvalidRequestError.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple, NoReturn

from nl.errors import InvalidRequestError
from nl.model.digest import MAX_SIZE, Digest, DigestFunction

RESERVED = frozenset(
    {"blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"}
)
"""Segments that no instance name may have (REAPI)."""
COMPRESSORS = frozenset({"zstd", "deflate", "brotli"})
FUNCTIONS = {"blake3": DigestFunction.BLAKE3, "sha256": DigestFunction.SHA256}
_OTHER_FUNCTIONS = frozenset({"sha1", "md5", "vso", "sha384", "sha512", "murmur3", "sha256tree", "gitsha1"})
_SHA256, _BLAKE3 = DigestFunction.SHA256, DigestFunction.BLAKE3
_new = tuple.__new__
"""Named tuples built through their own constructor cost twice as much."""
_UNWANTED = frozenset({"", ".", ".."})
_KINDS = ("blobs", "compressed-blobs", "uploads")
_SHOWN = 200
_REMEMBERED_CHARS = 200
"""Longer instance names go the long way, so that remembering 256 of them costs nothing."""
MAX_UUID = 256
"""Longest upload id taken, in characters: it is kept for as long as its upload."""

# The names that clients really send, in one match; whatever does not fit goes the long way below, with one meaning.
_BLOB = r"blobs/(?:(blake3)/)?([0-9a-f]{64})/(0|[1-9][0-9]{0,17})"
_fast_read = re.compile(_BLOB).fullmatch
_fast_write = re.compile(r"uploads/([A-Za-z0-9\-]{1,256})/" + _BLOB).fullmatch


class ReadName(NamedTuple):
    """What a Read names."""

    instance: str
    digest: Digest
    compressor: str = ""
    """Empty for the blob as it is."""

    def __str__(self) -> str:
        return _instance_prefix(self.instance) + _blob_text(self.digest, self.compressor)


class WriteName(NamedTuple):
    """What a Write or a QueryWriteStatus names."""

    instance: str
    uuid: str
    digest: Digest
    compressor: str = ""
    metadata: str = ""
    """Whatever follows the size, without the slash between; nobody looks at it."""

    def __str__(self) -> str:
        blob = _blob_text(self.digest, self.compressor)
        tail = f"/{self.metadata}" if self.metadata else ""
        return f"{_instance_prefix(self.instance)}uploads/{self.uuid}/{blob}{tail}"


def parse_read(name: str) -> ReadName:
    """The blob that a Read's `resource_name` names; InvalidRequestError says what is wrong with it."""
    instance, rest = "", name
    if not name.startswith("blobs/"):
        cut = name.find("/blobs/")
        instance, rest = name[: max(cut, 0)], name[cut + 1 :]
    found = _fast_read(rest)
    if found and len(instance) <= _REMEMBERED_CHARS and _is_plain_instance(instance):
        function, hash, size = found.groups()
        digest = _new(Digest, (hash, int(size), _BLAKE3 if function else _SHA256))
        return _new(ReadName, (instance, digest, ""))
    return _parse_read(name)


def parse_write(name: str) -> WriteName:
    """The upload that a Write's `resource_name` names; InvalidRequestError says what is wrong with it."""
    instance, rest = "", name
    if not name.startswith("uploads/"):
        cut = name.find("/uploads/")
        instance, rest = name[: max(cut, 0)], name[cut + 1 :]
    found = _fast_write(rest)
    if found and len(instance) <= _REMEMBERED_CHARS and _is_plain_instance(instance):
        uuid, function, hash, size = found.groups()
        digest = _new(Digest, (hash, int(size), _BLAKE3 if function else _SHA256))
        return _new(WriteName, (instance, uuid, digest, "", ""))
    return _parse_write(name)


@functools.lru_cache(maxsize=256)
def _is_plain_instance(instance: str) -> bool:
    segments = instance.split("/")
    return not instance or (RESERVED.isdisjoint(segments) and _UNWANTED.isdisjoint(segments))


def _parse_read(name: str) -> ReadName:
    instance, rest = _split_instance(name)
    if rest[0] == "uploads":
        _refuse(name, "it names an upload, which cannot be read")
    digest, compressor, rest = _parse_blob(name, rest)
    if rest:
        _refuse(name, f"unexpected {'/'.join(rest)[:80]!r} after the size")
    return ReadName(instance, digest, compressor)


def _parse_write(name: str) -> WriteName:
    instance, rest = _split_instance(name)
    if rest[0] != "uploads":
        _refuse(name, "a write needs 'uploads/{uuid}/' before the blob")
    if len(rest) < 2 or not rest[1]:
        _refuse(name, "the upload has no uuid")
    if len(rest[1]) > MAX_UUID:
        _refuse(name, f"the upload's uuid is longer than {MAX_UUID} characters")
    if len(rest) < 3 or rest[2] not in ("blobs", "compressed-blobs"):
        _refuse(name, "'blobs/' or 'compressed-blobs/' is expected after the upload's uuid")
    digest, compressor, tail = _parse_blob(name, rest[2:])
    return WriteName(instance, rest[1], digest, compressor, "/".join(tail))


def _split_instance(name: str) -> tuple[str, list[str]]:
    """The instance name, and the segments from the first keyword on."""
    segments = name.removeprefix("/").split("/")
    for at, segment in enumerate(segments):
        if segment in _KINDS:
            return "/".join(segments[:at]), segments[at:]
        if segment in RESERVED:
            _refuse(name, f"an instance name cannot have the segment {segment!r}")
        if segment in _UNWANTED:
            _refuse(name, f"an instance name cannot have the segment {segment!r}")
    _refuse(name, "there is none of 'blobs/', 'compressed-blobs/' and 'uploads/' in it")


def _parse_blob(name: str, segments: list[str]) -> tuple[Digest, str, list[str]]:
    """Parses `blobs/...` or `compressed-blobs/...`; what follows the size comes last."""
    compressor, at = "", 1
    if segments[0] == "compressed-blobs":
        compressor, at = segments[1] if len(segments) > 1 else "", 2
        if compressor not in COMPRESSORS:
            _refuse(name, f"unknown compressor {compressor[:80]!r}")
    function = FUNCTIONS.get(segments[at]) if len(segments) > at else None
    if function is not None:
        at += 1
    elif len(segments) > at and segments[at] in _OTHER_FUNCTIONS:
        _refuse(name, f"digest function {segments[at]!r} is not supported; supported: blake3, sha256")
    if len(segments) < at + 2:
        _refuse(name, "'{hash}/{size}' is missing")
    return (
        _parse_digest(name, segments[at], segments[at + 1], function or DigestFunction.SHA256),
        compressor,
        segments[at + 2 :],
    )


def _parse_digest(name: str, hash: str, size: str, function: DigestFunction) -> Digest:
    if not (size.isascii() and size.isdecimal()) or (len(size) > 1 and size[0] == "0") or len(size) > 19:
        _refuse(name, f"invalid size {size[:80]!r}: expected a number from 0 to {MAX_SIZE} without leading zeros")
    try:
        return Digest.parse(hash, int(size), function)
    except InvalidRequestError as exc:
        _refuse(name, exc.message)


def _refuse(name: str, why: str) -> NoReturn:
    shown = name if len(name) <= _SHOWN else name[:_SHOWN] + "..."
    raise InvalidRequestError(f"invalid resource name {shown!r}: {why}")


def _instance_prefix(instance: str) -> str:
    return f"{instance}/" if instance else ""


def _blob_text(digest: Digest, compressor: str) -> str:
    kind = f"compressed-blobs/{compressor}/" if compressor else "blobs/"
    named = "blake3/" if digest.function is DigestFunction.BLAKE3 else ""
    return f"{kind}{named}{digest.hash}/{digest.size}"
