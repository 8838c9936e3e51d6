"""Entries are counted before they are decoded, and only hostile requests are refused."""

import threading

import pytest
import trio

from nl.cas.large import IN_PLACE_BYTES, MANY
from nl.errors import InvalidRequestError
from nl.model.access import EVERYONE
from nl.pb import reapi
from nl.pb.codec import DecodeError, encode, varint
from nl.services.bounded import (
    EncodedBatchRead,
    EncodedBatchUpdate,
    decode_batch_read,
    decode_batch_update,
    decode_few_updates,
    decode_find_missing,
    receive_batch,
    receive_find_missing,
)
from nl.services.limits import BATCH_REQUEST_BYTES, BATCH_UPDATE_BYTES, FIND_MISSING_REQUEST_BYTES, MAX_ENTRIES
from nl.services.requests import receive_decoded

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
        self.counts = []

    def keep(self, count):
        self.counts.append(count)

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


async def is_received_in_the_loop(receiving):
    """Whether it waits for no thread, which who is cancelled does not get."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await receiving
    return not scope.cancelled_caught


def blob_of(size, **more):
    digest = reapi.Digest(hash=H, size_bytes=size)
    return reapi.BatchUpdateBlobsRequestRequest(digest=digest, data=b"\x12" * size, **more)


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("sizes", [[3 << 20], [10_240] * 100, [200] * (MANY - 2), [0] + [70_000] * 3])
async def test_the_blobs_of_an_upload_are_decoded_in_the_loop_however_many_bytes_they_have(sizes, kind):
    request = reapi.BatchUpdateBlobsRequest(
        instance_name="main", digest_function=9,
        requests=[blob_of(size, compressor=at % 2) for at, size in enumerate(sizes)],
    )
    stream = _OneRequest(kind(encode(request)))
    assert await is_received_in_the_loop(receive_batch(stream, decode_few_updates, decode_batch_update))
    assert not stream.counts


def field(tag, data):
    return bytes((tag,)) + varint(len(data)) + data


MANY_FIELDS = {
    "unknown ones": b"\xa3\x06\xa4\x06",
    "groups in one group": None,
    "names": b"\x0a\x00",
    "numbers": b"\x28\x01",
    "entries without anything": b"\x12\x00",
}
TOO_LONG = IN_PLACE_BYTES + 4


def of_many_fields(what):
    if what == "groups in one group":
        return b"\xa3\x06" + b"\xab\x06\xac\x06" * (TOO_LONG // 4) + b"\xa4\x06"
    return MANY_FIELDS[what] * (TOO_LONG // len(MANY_FIELDS[what]))


@pytest.mark.parametrize("inside", ["the request", "an entry", "a digest", "behind the data"])
@pytest.mark.parametrize("what", MANY_FIELDS)
async def test_what_may_be_many_small_fields_is_decoded_beside_the_loop(what, inside):
    """A megabyte of them takes a quarter of a second. What waits for a thread is held for its client."""
    data, digest = of_many_fields(what), encode(reapi.Digest(hash=H, size_bytes=1))
    if inside == "an entry":
        data = field(0x12, field(0x0A, digest) + data)
    elif inside == "a digest":
        data = field(0x12, field(0x0A, digest + data) + field(0x12, b"x"))
    elif inside == "behind the data":
        data = field(0x12, field(0x0A, digest) + field(0x12, b"x") + data)
    for receiving in (
        lambda stream: receive_batch(stream, decode_few_updates, decode_batch_update),
        lambda stream: receive_batch(stream, len, decode_batch_read),
        receive_find_missing,
    ):
        stream = _OneRequest(data)
        assert not await is_received_in_the_loop(receiving(stream))
        assert stream.counts == [len(data), 0]


@pytest.mark.parametrize(("count", "in_loop"), [(10_000, True), (20_000, False)])
async def test_as_many_digests_as_clients_ask_for_at_once_are_read_in_the_loop(count, in_loop):
    digests = [reapi.Digest(hash=H, size_bytes=18)] * count
    stream = _OneRequest(encode(reapi.FindMissingBlobsRequest(blob_digests=digests)))
    assert await is_received_in_the_loop(receive_find_missing(stream)) is in_loop
    if not in_loop:
        assert len((await receive_find_missing(stream)).hashes) == count


@pytest.mark.parametrize("beyond", [0, 1])
async def test_other_requests_are_decoded_in_the_loop_up_to_a_size(beyond):
    stream = _OneRequest(b"\xa3\x06\xa4\x06" * ((IN_PLACE_BYTES + 4 * beyond) // 4))
    assert await is_received_in_the_loop(receive_decoded(stream, decode_batch_read)) is (not beyond)


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
