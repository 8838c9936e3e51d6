"""The codecs written by hand, by example; the fuzz tests compare them with google's protobuf."""

from __future__ import annotations

import hashlib

import pytest

from nl.pb import bytestream, codec, hot, reapi, rpc_status
from nl.pb import find_missing as find_missing_codec


def digest(number, size=None):
    name = hashlib.sha256(str(number).encode()).hexdigest()
    return reapi.Digest(hash=name, size_bytes=number if size is None else size)


def pairs(digests):
    return [(each.hash, each.size_bytes) for each in digests]


SIZES = [0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**28, 2**35, 2**62, 2**63 - 1]


def find_missing(*digests, **others):
    return codec.encode(reapi.FindMissingBlobsRequest(blob_digests=list(digests), **others))


def test_find_missing_reads_every_size_without_the_general_codec(monkeypatch):
    monkeypatch.setattr(find_missing_codec, "_any", None)
    digests = [digest(number, size) for number, size in enumerate(SIZES)]
    data = find_missing(*digests, instance_name="main", digest_function=reapi.DigestFunctionValue.BLAKE3)
    request = find_missing_codec.FindMissingRequest.decode(data)
    assert (request.instance_name, request.digest_function, request.is_plain) == ("main", 9, True)
    assert list(request.pairs()) == pairs(digests)


def test_missing_digests_are_answered_with_the_bytes_they_came_in():
    digests = [digest(number) for number in range(10)]
    request = find_missing_codec.FindMissingRequest.decode(find_missing(*digests))
    reply = b"".join(find_missing_codec.FindMissingResponse(request.slices[::3]).encode_parts())
    assert reply == codec.encode(reapi.FindMissingBlobsResponse(missing_blob_digests=digests[::3]))


@pytest.mark.parametrize("odd", [
    reapi.Digest(hash="a" * 40, size_bytes=1),
    reapi.Digest(hash="A" * 64, size_bytes=1),
    reapi.Digest(hash="ü" * 32, size_bytes=1),
    reapi.Digest(hash="a" * 64, size_bytes=-1),
    reapi.Digest(hash="a" * 128, size_bytes=1),
    reapi.Digest(),
])  # fmt: skip
def test_unusual_digests_are_read_and_left_for_the_caller_to_judge(odd):
    digests = [digest(1), odd, digest(2)]
    request = find_missing_codec.FindMissingRequest.decode(find_missing(*digests))
    assert not request.is_plain
    assert list(request.pairs()) == pairs(digests)
    assert codec.decode(reapi.FindMissingBlobsResponse, b"".join(request.slices)).missing_blob_digests == digests


def test_fields_in_another_order_are_read_by_the_general_codec():
    data = b"\x18\x01" + find_missing(digest(1)) + b"\x0a\x04main" + find_missing(digest(2)) + b"\x98\x06\x01"
    request = find_missing_codec.FindMissingRequest.decode(data)
    assert (request.instance_name, request.digest_function) == ("main", 1)
    assert list(request.pairs()) == pairs([digest(1), digest(2)])
    assert request.is_plain


def test_an_empty_request_asks_for_nothing():
    request = find_missing_codec.FindMissingRequest.decode(b"")
    assert (list(request.pairs()), request.slices, request.is_plain) == ([], [], True)


def test_every_cut_through_a_digest_is_an_error():
    whole = find_missing(digest(1), digest(300))
    boundary = len(find_missing(digest(1)))
    for cut in range(1, len(whole)):
        if cut == boundary:
            continue
        with pytest.raises(codec.DecodeError):
            find_missing_codec.FindMissingRequest.decode(whole[:cut])


def test_batch_replies_do_not_copy_big_payloads():
    big, small = b"x" * 5000, b"y"
    reply = hot.BatchReadReply()
    reply.add_blob(("a" * 64, 5000), big)
    reply.add_blob(("b" * 64, 1), small, compressor=1)
    reply.add_status(("c" * 64, 7), code=5, message="not found")
    parts = reply.encode_parts()
    assert [part is big for part in parts] == [False, True, False]
    assert reply.size == sum(map(len, parts))
    found = codec.decode(reapi.BatchReadBlobsResponse, b"".join(parts)).responses
    assert [(each.digest.size_bytes, bytes(each.data), each.compressor) for each in found] == [
        (5000, big, 0), (1, small, 1), (7, b"", 0),
    ]  # fmt: skip
    assert found[0].status is None
    assert (found[2].status.code, found[2].status.message) == (5, "not found")


@pytest.mark.parametrize("name", ["a" * 64, "a" * 63, "\u00fc" * 64])
@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, (1 << 21) - 1, 1 << 21])
def test_a_whole_blob_of_any_length_is_what_the_general_codec_writes(name, length):
    reply = hot.BatchReadReply()
    blob = bytes(length)
    for _ in range(2):
        reply.add_blob((name, length), blob)
    digest = reapi.Digest(hash=name, size_bytes=length)
    responses = [reapi.BatchReadBlobsResponseResponse(digest=digest, data=blob)] * 2
    encoded = b"".join(reply.encode_parts())
    assert encoded == codec.encode(reapi.BatchReadBlobsResponse(responses=responses)) or not length
    assert codec.decode(reapi.BatchReadBlobsResponse, encoded).responses == responses
    assert reply.size == len(encoded)


def write(**fields):
    return codec.encode(bytestream.WriteRequest(**fields))


def test_a_write_head_is_known_as_soon_as_its_last_byte_is_here():
    data = write(resource_name="uploads/u/blobs/a/200", write_offset=300, finish_write=True, data=b"x" * 200)
    start = len(data) - 200
    expected = hot.WriteHead("uploads/u/blobs/a/200", 300, True, start, 200)
    for cut in range(len(data) + 1):
        assert hot.parse_write_head(data[:cut], len(data)) == (None if cut < start else expected)


def test_a_write_without_payload_is_all_head():
    data = write(resource_name="r", finish_write=True)
    assert hot.parse_write_head(data, len(data)) == hot.WriteHead("r", 0, True, len(data), 0)
    assert hot.parse_write_head(b"", 0) == hot.WriteHead("", 0, False, 0, 0)


@pytest.mark.parametrize("data", [
    write(data=b"x") + b"\x18\x01",
    b"\x98\x06\x01" + write(data=b"x"),
    b"\x0d1234" + write(data=b"x"),
    write(resource_name="r" * 20_000, data=b"x"),
])  # fmt: skip
def test_a_write_of_another_shape_is_for_the_general_codec(data):
    with pytest.raises(hot.NotStreamableError):
        hot.parse_write_head(data, len(data))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 4096, (1 << 63) - 1])
def test_a_stored_blob_is_told_as_the_general_codec_tells_it(size):
    response = reapi.BatchUpdateBlobsResponseResponse(
        digest=reapi.Digest(hash="a" * 64, size_bytes=size), status=rpc_status.Status()
    )
    assert hot.stored_blob(("a" * 64, size)) == codec.encode(reapi.BatchUpdateBlobsResponse(responses=[response]))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 4096, 1 << 40, -1])
def test_the_reply_to_a_write_is_what_the_general_codec_makes_of_it(size):
    assert hot.write_reply(size) == codec.encode(bytestream.WriteResponse(committed_size=size))


@pytest.mark.parametrize("data", [b"\x52\x05abc", b"\x52", b"\x0a\x05abc", b"\x10", b"\x0a\x01\xff"])
def test_a_broken_write_is_an_error_once_it_is_complete(data):
    with pytest.raises(codec.DecodeError):
        hot.parse_write_head(data, len(data))


def test_a_payload_longer_than_its_message_is_an_error_at_once():
    with pytest.raises(codec.DecodeError):
        hot.parse_write_head(b"\x52\xff\x7f", 100)


def test_the_digests_of_an_action_result_are_found_wherever_they_are():
    result = reapi.ActionResult(
        output_files=[
            reapi.OutputFile(path="a", digest=digest(1)),
            reapi.OutputFile(path="b", digest=digest(2), is_executable=True),
            reapi.OutputFile(path="c", digest=digest(3), contents=b"inline"),
            reapi.OutputFile(path="d" * 200, digest=digest(2**40)),
            reapi.OutputFile(path="e"),
        ],
        output_directories=[reapi.OutputDirectory(path="d", tree_digest=digest(4), root_directory_digest=digest(5))],
        output_symlinks=[reapi.OutputSymlink(path="s", target="a")],
        stdout_digest=digest(6),
        stderr_digest=digest(7),
        execution_metadata=reapi.ExecutedActionMetadata(worker="w"),
        exit_code=1,
    )
    found = hot.action_result_digests(codec.encode(result))
    assert sorted(found.blobs) == sorted(pairs([digest(1), digest(2), digest(3), digest(2**40), digest(6), digest(7)]))
    assert found.trees == pairs([digest(4)])
    assert found.directories == pairs([digest(5)])


def test_an_action_result_cut_short_is_never_taken_for_a_smaller_one_by_mistake():
    result = reapi.ActionResult(output_files=[reapi.OutputFile(path="a", digest=digest(n)) for n in (1, 300)])
    whole = codec.encode(result)
    boundary = len(whole) // 2
    for cut in range(1, len(whole)):
        if abs(cut - boundary) <= 1:
            continue
        with pytest.raises(codec.DecodeError):
            hot.action_result_digests(whole[:cut])


def test_a_path_that_is_not_text_spoils_the_action_result():
    data = codec.encode(reapi.ActionResult(output_files=[reapi.OutputFile(path="a", digest=digest(1))]))
    with pytest.raises(codec.DecodeError):
        hot.action_result_digests(data.replace(b"\x0a\x01a", b"\x0a\x01\xff"))


RESULT = reapi.ActionResult(exit_code=7, stdout_raw=b"x" * 300)


def test_a_result_is_cut_out_of_its_request_unread():
    request = reapi.UpdateActionResultRequest(
        instance_name="main", action_digest=digest(1), action_result=RESULT, digest_function=9
    )
    rest, encoded = hot.parse_update_action_result(codec.encode(request))
    assert encoded == codec.encode(RESULT)
    request.action_result = None
    assert rest == request


@pytest.mark.parametrize("result", [None, reapi.ActionResult()])
def test_a_request_without_a_result_is_told_from_one_with_an_empty_one(result):
    request = reapi.UpdateActionResultRequest(instance_name="main", action_result=result)
    _, encoded = hot.parse_update_action_result(codec.encode(request))
    assert encoded == (None if result is None else b"")


def test_a_result_that_comes_in_two_pieces_or_behind_a_long_tag_is_put_together():
    first, second = codec.encode(reapi.ActionResult(exit_code=7)), codec.encode(reapi.ActionResult(stdout_raw=b"y"))
    twice = b"".join(b"\x1a" + bytes([len(each)]) + each for each in (first, second))
    _, encoded = hot.parse_update_action_result(twice)
    assert codec.decode(reapi.ActionResult, encoded) == reapi.ActionResult(exit_code=7, stdout_raw=b"y")
    rest, encoded = hot.parse_update_action_result(b"\x9a\x00" + bytes([len(first)]) + first)
    assert (rest.action_result, encoded) == (None, first)


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_request_that_is_cut_short_is_an_error(cut):
    whole = codec.encode(reapi.UpdateActionResultRequest(action_result=RESULT, instance_name="m"))
    if cut == 3:
        return  # the name alone is a request
    with pytest.raises(codec.DecodeError):
        hot.parse_update_action_result(whole[:cut])


def test_nothing_is_no_digest_and_a_size_alone_is_one():
    result = reapi.ActionResult(
        output_files=[reapi.OutputFile(path="a", digest=reapi.Digest()),
                      reapi.OutputFile(path="b", digest=reapi.Digest(size_bytes=1))],
        stdout_digest=reapi.Digest(),
    )  # fmt: skip
    assert hot.action_result_digests(codec.encode(result)).blobs == [("", 1)]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 1 << 40, (1 << 63) - 1])
@pytest.mark.parametrize("executable", [True, False])
@pytest.mark.parametrize("path", ["a", "p" * 127, "p" * 128])
def test_a_file_of_any_size_has_its_digest(size, executable, path):
    file = reapi.OutputFile(path=path, digest=digest(1, size), is_executable=executable)
    found = hot.action_result_digests(codec.encode(reapi.ActionResult(output_files=[file, file])))
    assert found.blobs == pairs([digest(1, size)]) * 2


def test_a_name_of_many_kilobytes_is_for_the_general_codec_and_a_shorter_one_is_not():
    for length, is_streamable in ((16 * 1024 - 100, True), (16 * 1024, False)):
        data = write(resource_name="r" * length, data=b"x")
        if is_streamable:
            assert hot.parse_write_head(data, len(data)).resource_name == "r" * length
        else:
            with pytest.raises(hot.NotStreamableError, match="many KiB"):
                hot.parse_write_head(data, len(data))


@pytest.mark.parametrize("offset", [1, 127, 128, (1 << 63) - 1, -1, -(1 << 63)])
def test_an_offset_has_its_sign(offset):
    data = write(resource_name="r", write_offset=offset, data=b"x")
    assert hot.parse_write_head(data, len(data)).write_offset == offset
