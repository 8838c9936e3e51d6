"""Requests whose number of entries is bounded before they are decoded.

A message of 4 MiB can hold two million empty entries, and as objects they would take half a gigabyte and seconds. All
three requests here keep their entries in field 2, so counting the tag's byte bounds their number from above at the
speed of memory; only where that is too many, entries are counted exactly. Nothing that a real client sends is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from nl.blob.reader import Buffer
from nl.cas.large import MANY, off_loop_if
from nl.errors import InvalidRequestError
from nl.pb import reapi
from nl.pb.codec import decoding
from nl.pb.codec.wire import read_length, skip_field
from nl.pb.find_missing import FindMissingRequest
from nl.rpc.contract import ServerStream
from nl.services.limits import BATCH_REQUEST_BYTES, FIND_MISSING_REQUEST_BYTES, MAX_ENTRIES
from nl.services.requests import EncodedRequest, receive_request

T = TypeVar("T")
_LEAST_ENTRY_BYTES: Final = 68
"""A valid digest has a hash of 64 characters, and tags and lengths around it."""
_BARE_BYTES: Final = 2 * MANY * _LEAST_ENTRY_BYTES
"""In fewer bytes than this, more than a few entries have no data."""
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


async def receive_batch(
    stream: ServerStream[Any, Any], decode_few: Callable[[Buffer], T], decode_crowd: Callable[[Buffer], T]
) -> T:
    """As `receive_decoded`, for requests that take long for their entries, not for their bytes: up to MANY are few."""
    request: EncodedRequest = await receive_request(stream)
    data = request.data
    return await off_loop_if(True, decode_crowd, data) if _is_crowd(data) else decode_few(data)


def _is_crowd(data: Buffer) -> bool:
    """Whether there are more than MANY entries. Where they carry no data, counting tags spares going through them."""
    if len(data) < _BARE_BYTES and (len(data) < 2 * MANY or _searchable(data).count(_TAG) <= MANY):
        return False
    return _has_more_entries(data, MANY)


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
