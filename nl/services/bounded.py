"""Requests whose number of entries is bounded before they are decoded.

A message of 4 MiB can hold two million empty entries, and as objects they would take half a gigabyte and seconds. All
three requests here keep their entries in field 2, so counting the tag's byte bounds their number from above at the
speed of memory; only where that is too many, entries are counted exactly. Nothing that a real client sends is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from nl.blob.reader import Buffer
from nl.cas.large import IN_PLACE_BYTES, MANY, READ_IN_PLACE_BYTES
from nl.errors import InvalidRequestError
from nl.pb import reapi
from nl.pb.codec import decoding
from nl.pb.codec.wire import read_length, skip_field
from nl.pb.find_missing import FindMissingRequest
from nl.rpc.contract import ServerStream
from nl.services.limits import BATCH_REQUEST_BYTES, FIND_MISSING_REQUEST_BYTES, MAX_ENTRIES
from nl.services.requests import EncodedRequest, decode_off_loop, receive_request

T = TypeVar("T")
_LEAST_ENTRY_BYTES: Final = 68
"""A valid digest has a hash of 64 characters, and tags and lengths around it."""
_TAG: Final = b"\x12"


class EncodedFindMissing(EncodedRequest):
    """A FindMissingBlobsRequest; `decode_find_missing` reads it."""

    max_message_size = FIND_MISSING_REQUEST_BYTES


def decode_find_missing(data: Buffer) -> FindMissingRequest:
    """Raises DecodeError, or InvalidRequestError for more digests than could be valid ones in so many bytes."""
    _check_entries(data, most=MAX_ENTRIES + len(data) // _LEAST_ENTRY_BYTES)
    return FindMissingRequest.decode(data)


class EncodedBatchUpdate(EncodedRequest):
    """A BatchUpdateBlobsRequest; `decode_batch_update` reads it."""

    max_message_size = BATCH_REQUEST_BYTES


def decode_batch_update(data: Buffer) -> reapi.BatchUpdateBlobsRequest:
    """Raises DecodeError, or InvalidRequestError for too many entries."""
    _check_entries(data, most=MAX_ENTRIES)
    return decode_few_updates(data)


class EncodedBatchRead(EncodedRequest):
    """A BatchReadBlobsRequest; `decode_batch_read` reads it."""


def decode_batch_read(data: Buffer) -> reapi.BatchReadBlobsRequest:
    """Raises DecodeError, or InvalidRequestError for too many entries."""
    _check_entries(data, most=MAX_ENTRIES)
    return decode_few_reads(data)


decode_few_updates = decoding(reapi.BatchUpdateBlobsRequest)
decode_few_reads = decoding(reapi.BatchReadBlobsRequest)
"""For those that were counted already."""


async def receive_find_missing(stream: ServerStream[Any, Any]) -> FindMissingRequest:
    """As `receive_decoded`; what real clients send is read where it is up to a megabyte."""
    request: EncodedRequest = await receive_request(stream)
    data = request.data
    if len(data) <= IN_PLACE_BYTES:
        return decode_find_missing(data)
    plain = FindMissingRequest.plain(data) if len(data) <= READ_IN_PLACE_BYTES else None
    return await decode_off_loop(stream, decode_find_missing, data) if plain is None else plain


async def receive_batch(
    stream: ServerStream[Any, Any], decode_few: Callable[[Buffer], T], decode_crowd: Callable[[Buffer], T]
) -> T:
    """As `receive_decoded`, for requests that take long for their entries, not for their bytes: up to MANY are few."""
    request: EncodedRequest = await receive_request(stream)
    data = request.data
    return await decode_off_loop(stream, decode_crowd, data) if _is_crowd(data) else decode_few(data)


def _is_crowd(data: Buffer) -> bool:
    """Whether there are more than MANY entries, or may be many fields of any kind."""
    if len(data) > IN_PLACE_BYTES:
        return not _has_few_blobs(data)
    if len(data) < 2 * MANY or _searchable(data).count(_TAG) <= MANY:  # which spares going through them
        return False
    return _has_more_entries(data, MANY)


def _has_few_blobs(data: Buffer) -> bool:
    """Whether these are up to MANY blobs of an upload, each with digest, data, compressor in this order, and next to
    nothing else. So few fields are decoded at once, however many bytes there are.
    """
    at, end, left = 0, len(data), MANY
    try:
        while at < end:
            tag, length = data[at], data[at + 1]
            at += 2
            left -= 1
            if left < 0:
                return False
            if tag == _TAG[0]:
                if length > 127:
                    length, at = read_length(data, at, length)
                stop = at + length
                if not (data[at] == 0x0A and 66 <= data[at + 1] < 80 and data[at + 2] == 0x0A and data[at + 3] == 64):
                    return False
                at += 2 + data[at + 1]
                if at < stop and data[at] == _TAG[0]:
                    length = data[at + 1]
                    at += 2
                    if length > 127:
                        length, at = read_length(data, at, length)
                    at += length
                if at != stop and not (data[at] == 0x18 and at + 2 == stop):
                    return False
                at = stop
            elif tag == 0x0A and length < 128:  # the instance's name
                at += length
            elif tag != 0x28 or length > 127:  # the digest function
                return False
    except (ValueError, IndexError):
        return False
    return True


def _check_entries(data: Buffer, *, most: int) -> None:
    if len(data) < 2 * most:
        return
    whole = _searchable(data)
    if whole.count(_TAG) > most and _has_more_entries(whole, most):
        raise InvalidRequestError(f"the request has more than {most} entries")


def _searchable(data: Buffer) -> bytes | bytearray:
    """The same bytes as an object that can count, without a copy if it is a view of all of one."""
    if isinstance(data, memoryview):
        whole = data.obj
        return whole if isinstance(whole, bytes | bytearray) and len(whole) == len(data) else bytes(data)
    return data


def _has_more_entries(data: Buffer, most: int) -> bool:
    """Whether field 2 occurs more often than `most`. Malformed bytes are left to the decoder."""
    at, end, count = 0, len(data), 0
    try:
        while at < end:
            if data[at] != _TAG[0]:
                at = skip_field(data, at, end)
                continue
            count += 1
            if count > most:
                return True
            length = data[at + 1]
            at += 2
            if length > 127:
                length, at = read_length(data, at, length)
            at += length
    except (ValueError, IndexError):
        pass
    return False
