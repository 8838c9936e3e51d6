"""The client's side of the CAS's messages: what is written by hand is what the general codec writes and reads."""

import pytest

from nl.pb import bytestream, cas_calls, codec, find_missing, hot, reapi, rpc_status

SIZES = [0, 1, 127, 128, 16_383, 16_384, 1 << 21, 1 << 35, (1 << 63) - 1]
PAIRS = [(f"{at:064x}", size) for at, size in enumerate(SIZES)]


def messages(pairs):
    return [reapi.Digest(hash=name, size_bytes=size) for name, size in pairs]


@pytest.mark.parametrize("instance", ["", "main", "\u00fc" * 100])
@pytest.mark.parametrize("function", [1, 9])
def test_requests_are_what_the_general_codec_writes(instance, function):
    asked = reapi.FindMissingBlobsRequest(
        instance_name=instance, blob_digests=messages(PAIRS), digest_function=reapi.DigestFunctionValue(function)
    )
    assert cas_calls.encode_find_missing(instance, PAIRS, function=function) == codec.encode(asked)
    read = reapi.BatchReadBlobsRequest(
        instance_name=instance, digests=messages(PAIRS), digest_function=reapi.DigestFunctionValue(function)
    )
    assert cas_calls.encode_batch_read(instance, PAIRS, function=function) == codec.encode(read)


@pytest.mark.parametrize("lengths", [[], [0], [1, 2047, 2048, 2049, 5], [100_000, 100_000], [3]])
def test_an_upload_is_what_the_general_codec_reads_and_leaves_large_blobs_where_they_are(lengths):
    blobs = [((f"{at:064x}", length), bytes(length)) for at, length in enumerate(lengths)]
    parts = cas_calls.encode_batch_update("main", blobs, function=9)
    found = codec.decode(reapi.BatchUpdateBlobsRequest, b"".join(parts))
    assert (found.instance_name, found.digest_function) == ("main", 9)
    assert [(each.digest.hash, each.digest.size_bytes) for each in found.requests] == [pair for pair, _ in blobs]
    assert [bytes(each.data) for each in found.requests] == [data for _, data in blobs]
    large = [data for _, data in blobs if len(data) >= 2048]
    assert sum(any(part is data for data in large) for part in parts) == len(large)


def test_what_is_missing_is_read_in_either_shape():
    reply = codec.encode(reapi.FindMissingBlobsResponse(missing_blob_digests=messages(PAIRS)))
    assert cas_calls.MissingBlobs.decode(reply) == set(PAIRS)
    assert cas_calls.MissingBlobs.decode(b"") == set()
    odd = codec.encode(reapi.FindMissingBlobsResponse(missing_blob_digests=[reapi.Digest(hash="short", size_bytes=1)]))
    assert cas_calls.MissingBlobs.decode(odd) == {("short", 1)}


def test_each_blob_of_a_reply_has_its_data_or_its_problem():
    status = rpc_status.Status(code=5, message="gone")
    each = reapi.BatchReadBlobsResponseResponse
    reply = reapi.BatchReadBlobsResponse(responses=[
        each(digest=messages(PAIRS)[1], data=b"x"),
        each(digest=messages(PAIRS)[2], status=status),
        each(digest=messages(PAIRS)[3], data=b"packed", compressor=reapi.CompressorValue.ZSTD),
        each(digest=messages(PAIRS)[4], status=status, compressor=reapi.CompressorValue.ZSTD),
        each(data=b"of nobody", status=rpc_status.Status()),
    ])  # fmt: skip
    found = cas_calls.ReadBlobs.decode(codec.encode(reply))
    said = {pair: (bytes(blob.data), blob.code, blob.message) for pair, blob in found.items()}
    assert said == {
        PAIRS[1]: (b"x", 0, ""), PAIRS[2]: (b"", 5, "gone"),
        PAIRS[3]: (b"packed", 13, "it came with compressor 1, which was not asked for"),
        PAIRS[4]: (b"", 5, "gone"), ("", 0): (b"of nobody", 0, ""),
    }  # fmt: skip


def test_each_blob_of_an_upload_has_its_status():
    each = reapi.BatchUpdateBlobsResponseResponse
    reply = reapi.BatchUpdateBlobsResponse(responses=[
        each(digest=messages(PAIRS)[1]),
        each(digest=messages(PAIRS)[2], status=rpc_status.Status(code=8, message="full")),
        each(status=rpc_status.Status()),
    ])  # fmt: skip
    found = cas_calls.UpdatedBlobs.decode(codec.encode(reply))
    assert found == {PAIRS[1]: (0, ""), PAIRS[2]: (8, "full"), ("", 0): (0, "")}


@pytest.mark.parametrize("name", ["", "uploads/u/blobs/a/1"])
@pytest.mark.parametrize("offset", [0, 1, 1 << 40])
@pytest.mark.parametrize("size", [0, 1, 127, 128, 70_000])
@pytest.mark.parametrize("finish", [True, False])
def test_a_write_is_what_the_general_codec_reads(name, offset, size, finish):
    head = cas_calls.write_head(name, offset=offset, size=size, finish=finish)
    found = codec.decode(bytestream.WriteRequest, head + bytes(size))
    assert found == bytestream.WriteRequest(
        resource_name=name, write_offset=offset, finish_write=finish, data=bytes(size)
    )
    assert hot.parse_write_head(head + bytes(size), len(head) + size).data_start == len(head)


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 1 << 21])
def test_where_the_data_of_a_reply_begins_is_known_as_soon_as_its_length_is_here(size):
    whole = codec.encode(bytestream.ReadResponse(data=bytes(size)))
    start = len(whole) - size
    for cut in range(min(len(whole), 20)):
        found = cas_calls.read_head(memoryview(whole)[:cut], len(whole))
        assert found == (start if cut >= start else None), cut


@pytest.mark.parametrize(
    "whole",
    [b"", b"\x52\x00\x98\x06\x01", b"\x98\x06\x01\x52\x01x", b"\x52\x05abc", b"\x52", b"\x52" + b"\xff" * 11,
     b"\x52\x03abc\x98\x06\x01", b"\x52\x80"],
)  # fmt: skip
def test_a_reply_of_another_shape_is_left_to_the_general_codec(whole):
    assert cas_calls.read_head(whole, len(whole)) == -1


def test_data_beside_unknown_fields_is_found():
    assert bytes(cas_calls.read_data(b"\x98\x06\x01\x52\x01x")) == b"x"
    with pytest.raises(codec.DecodeError):
        cas_calls.read_data(b"\x52\x05abc")


@pytest.mark.parametrize("module", [cas_calls, find_missing])
def test_sizes_that_were_met_are_remembered_up_to_a_number(monkeypatch, module):
    monkeypatch.setattr(module, "_MAX_SIZES", 3)
    monkeypatch.setattr(module, "_SIZES", module._Sizes())
    for size in range(1, 9):
        pairs = [("a" * 64, size)]
        encoded = cas_calls.encode_find_missing("", pairs, function=1)
        assert list(find_missing.FindMissingRequest.decode(encoded).pairs()) == pairs
        assert 0 < len(module._SIZES) <= 3


def test_so_many_sizes_are_remembered():
    assert cas_calls._MAX_SIZES == find_missing._MAX_SIZES == 65_536
