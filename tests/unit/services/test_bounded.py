"""Entries are counted before they are decoded, and only hostile requests are refused."""

import threading

import pytest

from nl.cas.large import MANY
from nl.errors import InvalidRequestError
from nl.model.access import EVERYONE
from nl.pb import reapi
from nl.pb.codec import DecodeError, encode
from nl.services.bounded import (
    EncodedBatchRead,
    EncodedBatchUpdate,
    decode_batch_read,
    decode_batch_update,
    decode_find_missing,
    receive_batch,
)
from nl.services.limits import BATCH_REQUEST_BYTES, BATCH_UPDATE_BYTES, FIND_MISSING_REQUEST_BYTES, MAX_ENTRIES

H = "0" * 64
ALL = (decode_find_missing, decode_batch_update, decode_batch_read)


@pytest.mark.parametrize("decode", ALL)
def test_two_million_empty_entries_are_refused(decode):
    with pytest.raises(InvalidRequestError, match="more than"):
        decode(memoryview(b"\x12\x00" * (2 << 20)))


@pytest.mark.parametrize("decode", ALL)
def test_what_is_no_message_is_left_to_the_decoder(decode):
    with pytest.raises(DecodeError):
        decode((b"\x12\x7e" + b"\x12" * 126) * 8192 + b"\xff")


def test_as_many_digests_as_fit_into_a_message_are_taken():
    digests = [reapi.Digest(hash=H, size_bytes=18)] * 239_000
    data = encode(reapi.FindMissingBlobsRequest(blob_digests=digests))
    assert FIND_MISSING_REQUEST_BYTES - 100_000 < len(data) < FIND_MISSING_REQUEST_BYTES
    assert len(decode_find_missing(data).hashes) == 239_000


def test_a_blob_of_tags_is_no_crowd():
    blob = b"\x12" * (3 << 20)
    request = reapi.BatchUpdateBlobsRequest(
        requests=[reapi.BatchUpdateBlobsRequestRequest(digest=reapi.Digest(hash=H, size_bytes=len(blob)), data=blob)]
    )
    data = encode(request)
    for received in (data, memoryview(data), memoryview(b"x" + data)[1:], memoryview(bytearray(data))):
        assert bytes(decode_batch_update(received).requests[0].data) == blob


def test_the_largest_batch_is_taken():
    request = reapi.BatchReadBlobsRequest(digests=[reapi.Digest(hash=H)] * MAX_ENTRIES)
    assert len(decode_batch_read(encode(request)).digests) == MAX_ENTRIES


def test_an_upload_of_as_many_blobs_and_bytes_as_there_may_be_fits_into_a_request():
    blobs = [b"x" * (BATCH_UPDATE_BYTES // MAX_ENTRIES)] * MAX_ENTRIES
    requests = [
        reapi.BatchUpdateBlobsRequestRequest(digest=reapi.Digest(hash=H, size_bytes=1 << 40), data=blob)
        for blob in blobs
    ]
    data = encode(reapi.BatchUpdateBlobsRequest(instance_name="main", requests=requests))
    assert len(data) < BATCH_REQUEST_BYTES == EncodedBatchUpdate.max_message_size
    assert len(decode_batch_update(data).requests) == MAX_ENTRIES


class _OneRequest:
    identity = EVERYONE

    def __init__(self, data):
        self.data = data

    async def recv_message(self):
        return EncodedBatchRead.decode(self.data)


def _where(_):
    return threading.get_ident()


async def test_bytes_that_look_like_entries_are_not_taken_for_many():
    blob = b"\x12" * (4 * MANY)
    request = reapi.BatchUpdateBlobsRequestRequest(digest=reapi.Digest(hash=H, size_bytes=len(blob)), data=blob)
    data = encode(reapi.BatchUpdateBlobsRequest(requests=[request]))
    assert await receive_batch(_OneRequest(data), _where, _where) == threading.get_ident()


@pytest.mark.parametrize(("entries", "in_loop"), [(1, True), (MANY, True), (MANY + 1, False)])
async def test_a_batch_of_many_entries_is_decoded_beside_the_loop(entries, in_loop):
    def decode(data):
        assert len(data) == 2 * entries
        return threading.get_ident()

    found = await receive_batch(_OneRequest(b"\x12\x00" * entries), decode, decode)
    assert (found == threading.get_ident()) is in_loop


@pytest.mark.parametrize(("decode", "kind"), [
    (decode_find_missing, reapi.FindMissingBlobsRequest), (decode_batch_read, reapi.BatchReadBlobsRequest),
    (decode_batch_update, reapi.BatchUpdateBlobsRequest),
])
def test_only_what_is_in_the_message_is_counted_and_not_what_lies_behind_it(decode, kind):
    """A message may be a view of a buffer that holds the next one."""
    data = encode(kind(instance_name="n" * (3 * MAX_ENTRIES)))
    received = memoryview(data + b"\x12\x00" * (2 * MAX_ENTRIES))
    assert decode(received[: len(data)]).instance_name == "n" * (3 * MAX_ENTRIES)
    with pytest.raises(InvalidRequestError, match="more than"):
        decode(received)


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize(("decode", "kind"), [
    (decode_batch_read, reapi.BatchReadBlobsRequest), (decode_batch_update, reapi.BatchUpdateBlobsRequest)])
def test_how_many_entries_a_batch_may_have(decode, kind, beyond):
    data = b"\x12\x00" * (MAX_ENTRIES + beyond)
    if beyond:
        with pytest.raises(InvalidRequestError, match=f"the request has more than {MAX_ENTRIES} entries"):
            decode(data)
    else:
        decode(data)


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize(("decode", "kind"), [
    (decode_batch_read, reapi.BatchReadBlobsRequest), (decode_batch_update, reapi.BatchUpdateBlobsRequest)])
def test_entries_are_counted_exactly_where_other_bytes_look_like_some(decode, kind, beyond):
    data = encode(kind(instance_name="\x12" * 1000)) + b"\x12\x00" * (MAX_ENTRIES + beyond)
    if beyond:
        with pytest.raises(InvalidRequestError, match=f"the request has more than {MAX_ENTRIES} entries"):
            decode(data)
    else:
        assert decode(data).instance_name == "\x12" * 1000
