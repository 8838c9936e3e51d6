"""Entries are counted before they are decoded, and only hostile requests are refused."""

import pytest

from nl.errors import InvalidRequestError
from nl.pb import reapi
from nl.pb.codec import DecodeError, encode
from nl.services.bounded import MAX_ENTRIES, BoundedBatchRead, BoundedBatchUpdate, BoundedFindMissing

H = "0" * 64
ALL = (BoundedFindMissing, BoundedBatchUpdate, BoundedBatchRead)


@pytest.mark.parametrize("cls", ALL)
def test_two_million_empty_entries_are_refused(cls):
    with pytest.raises(InvalidRequestError, match="more than"):
        cls.decode(memoryview(b"\x12\x00" * (2 << 20)))


@pytest.mark.parametrize("cls", ALL)
def test_what_is_no_message_is_left_to_the_decoder(cls):
    with pytest.raises(DecodeError):
        cls.decode((b"\x12\x7e" + b"\x12" * 126) * 8192 + b"\xff")


def test_as_many_digests_as_fit_into_a_message_are_taken():
    digests = [reapi.Digest(hash=H, size_bytes=18)] * 55_000
    data = encode(reapi.FindMissingBlobsRequest(blob_digests=digests))
    assert len(data) < 4 << 20
    assert len(BoundedFindMissing.decode(data).hashes) == 55_000


def test_a_blob_of_tags_is_no_crowd():
    blob = b"\x12" * (3 << 20)
    request = reapi.BatchUpdateBlobsRequest(
        requests=[reapi.BatchUpdateBlobsRequestRequest(digest=reapi.Digest(hash=H, size_bytes=len(blob)), data=blob)]
    )
    data = encode(request)
    for received in (data, memoryview(data), memoryview(b"x" + data)[1:], memoryview(bytearray(data))):
        assert bytes(BoundedBatchUpdate.decode(received).requests[0].data) == blob


def test_the_largest_batch_is_taken():
    request = reapi.BatchReadBlobsRequest(digests=[reapi.Digest(hash=H)] * MAX_ENTRIES)
    assert len(BoundedBatchRead.decode(encode(request)).digests) == MAX_ENTRIES
