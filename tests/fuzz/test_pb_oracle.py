"""Our codec against google's protobuf, for every message of every package: same bytes in, same meaning out.

NL_PB_FUZZ_EXAMPLES (default 25) is the number of examples for each message; a night may spend thousands.
"""

from __future__ import annotations

import math

import pytest

from tests.fuzz import pb_oracle as oracle  # isort: skip
from google.protobuf.message import DecodeError as GoogleDecodeError
from hypothesis import given
from hypothesis import strategies as st

from nl.pb import bytestream, codec, hot, reapi
from nl.pb import find_missing as find_missing_codec
from nl.pb.codec.registry import decoder_of
from nl.pb.codec.wire import MAX_DEPTH

V2 = "build.bazel.remote.execution.v2"


def plain(message):
    """A google message as one can compare it: deterministic bytes, without the unknown fields of maps and wrappers."""
    return message.SerializeToString(deterministic=True)


def same(name, accepted, data):
    """Whether our reading of `data`, written again, is the same message to google as `data` itself."""
    again = oracle.theirs(name).FromString(codec.encode(accepted))
    original = oracle.theirs(name).FromString(data)
    if again == original and plain(again) == plain(original):
        return True
    if name.endswith((".FloatValue", ".DoubleValue")) and math.isnan(original.value):
        return math.isnan(again.value)  # not a number equals nothing, and a signalling one becomes a quiet one
    again.DiscardUnknownFields()
    original.DiscardUnknownFields()
    return again == original and may_lose_unknown_fields(name)


def may_lose_unknown_fields(name, seen=()):
    """Maps and wrappers below this message: their unknown fields are not kept (see nl.pb.codec)."""
    if name in seen:
        return False
    for field in oracle.POOL.FindMessageTypeByName(name).fields:
        if field.message_type is not None:
            inner = field.message_type
            if inner.GetOptions().map_entry or inner.full_name.endswith("Value"):
                return True
            if may_lose_unknown_fields(inner.full_name, (*seen, name)):
                return True
    return False


def is_field_zero(name, data):
    """The one thing that we refuse and google does not: field number 0, in messages that have no field at all."""
    with pytest.raises(codec.DecodeError) as caught:
        codec.decode(oracle.ours(name), data)
    return "field number 0" in str(caught.value) and has_hollow_message(name)


def has_hollow_message(name):
    """A message without fields, here or anywhere below."""
    fields = oracle.POOL.FindMessageTypeByName(name).fields
    nested = {field.message_type.full_name for field in fields if field.message_type is not None} - {name}
    return not fields or any(has_hollow_message(each) for each in nested)


def google_takes(name, data):
    try:
        oracle.theirs(name).FromString(data)
    except GoogleDecodeError:
        return False
    return True


def taken(name, data, *, is_view=False):
    """The message, or None if it is refused. `is_view` asks for the decoder that long memoryviews get."""
    cls = oracle.ours(name)
    try:
        if is_view:
            return decoder_of(cls, True)(memoryview(data), 0, len(data), None, MAX_DEPTH)
        return codec.decode(cls, data)
    except (codec.DecodeError, IndexError, UnicodeDecodeError):
        return None


def test_every_message_of_the_descriptor_set_has_a_class():
    assert oracle.NAMES == oracle.ALL_NAMES
    assert len(oracle.NAMES) > 110


@pytest.mark.parametrize("name", oracle.NAMES)
def test_what_google_writes_is_read_and_written_back(name):
    @oracle.FUZZ
    @given(oracle.messages(name))
    def check(message):
        data = message.SerializeToString()
        decoded = codec.decode(oracle.ours(name), data)
        assert same(name, decoded, data)
        encoded = codec.encode(decoded)
        assert b"".join(codec.encode_parts(decoded)) == encoded
        wide = codec.decode(oracle.ours(name), memoryview(data + b"\xfa\x7f\xff\x7f" + b"?" * 16383))
        assert codec.encode(wide) == encoded + b"\xfa\x7f\xff\x7f" + b"?" * 16383

    check()


@pytest.mark.parametrize("name", oracle.NAMES)
def test_damaged_bytes_are_taken_exactly_where_google_takes_them(name):
    @oracle.FUZZ
    @given(oracle.messages(name, depth=2).map(lambda m: m.SerializeToString()).flatmap(oracle.mutated))
    def check(data):
        decoded, viewed = taken(name, data), taken(name, data, is_view=True)
        assert (decoded is None) == (viewed is None)
        if decoded is None and is_field_zero(name, data):
            return
        assert (decoded is not None) == google_takes(name, data)
        if decoded is not None:
            assert same(name, decoded, data)
            assert same(name, viewed, data)

    check()


digests = st.builds(
    reapi.Digest,
    hash=st.one_of(
        st.text("0123456789abcdef", min_size=64, max_size=64),
        st.sampled_from(["", "AB" * 32, "g" * 64, "a" * 40]),
    ),
    size_bytes=st.sampled_from([0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**35, 2**62, 2**63 - 1, -1]),
)
find_missing = st.builds(
    reapi.FindMissingBlobsRequest,
    instance_name=st.sampled_from(["", "main", "ü/b", "x" * 200]),
    blob_digests=st.lists(digests, max_size=4),
    digest_function=st.sampled_from([0, 1, 9, 300]).map(reapi.DigestFunctionValue),
).map(codec.encode)


def check_find_missing(data):
    name = f"{V2}.FindMissingBlobsRequest"
    try:
        request = find_missing_codec.FindMissingRequest.decode(data)
    except codec.DecodeError:
        assert not google_takes(name, data)
        return
    expected = oracle.theirs(name).FromString(data)
    assert request.instance_name == expected.instance_name
    assert request.digest_function == expected.digest_function
    assert list(request.pairs()) == [(digest.hash, digest.size_bytes) for digest in expected.blob_digests]
    reply = oracle.theirs(f"{V2}.FindMissingBlobsResponse").FromString(
        b"".join(find_missing_codec.FindMissingResponse(request.slices).encode_parts())
    )
    assert list(reply.missing_blob_digests) == list(expected.blob_digests)
    plain_hashes = all(len(h) == 64 and set(h) <= set("0123456789abcdef") and size >= 0 for h, size in request.pairs())
    assert request.is_plain == plain_hashes


@oracle.FUZZ_MORE
@given(find_missing)
def test_find_missing_by_hand_reads_what_google_reads(data):
    check_find_missing(data)
    check_find_missing(memoryview(data))


@oracle.FUZZ_MORE
@given(find_missing.flatmap(oracle.mutated))
def test_find_missing_by_hand_refuses_what_google_refuses(data):
    check_find_missing(data)


write_requests = st.builds(
    bytestream.WriteRequest,
    resource_name=st.sampled_from(["", "uploads/u/blobs/a/1", "ü" * 100]),
    write_offset=st.sampled_from([0, 1, 300, 2**40, -1]),
    finish_write=st.booleans(),
    data=st.sampled_from([b"", b"x", b"y" * 127, b"z" * 400]),
).map(codec.encode)


def check_write_head(data, cut):
    name = "google.bytestream.WriteRequest"
    try:
        head = hot.parse_write_head(memoryview(data)[:cut], len(data))
    except hot.NotStreamableError:
        return
    except codec.DecodeError:
        assert not google_takes(name, data)
        return
    if head is None:
        assert cut < len(data)
        return
    expected = oracle.theirs(name).FromString(data)
    assert head.resource_name == expected.resource_name
    assert head.write_offset == expected.write_offset
    assert head.finish_write == expected.finish_write
    assert data[head.data_start :][: head.data_length] == expected.data
    assert head.data_start + head.data_length == len(data)


@oracle.FUZZ_MORE
@given(st.one_of(write_requests, write_requests.flatmap(oracle.mutated)), st.integers(0, 600))
def test_write_heads_by_hand_are_what_google_reads(data, cut):
    check_write_head(data, cut)
    check_write_head(data, len(data))


def google_digests(message):
    def pairs(holders):
        return sorted((d.hash, d.size_bytes) for d in holders if d.hash or d.size_bytes)

    blobs = [file.digest for file in message.output_files] + [message.stdout_digest, message.stderr_digest]
    trees = [directory.tree_digest for directory in message.output_directories]
    roots = [directory.root_directory_digest for directory in message.output_directories]
    return pairs(blobs), pairs(trees), pairs(roots)


def check_action_result(data):
    name = f"{V2}.ActionResult"
    try:
        found = hot.action_result_digests(data)
    except codec.DecodeError:
        assert not google_takes(name, data)
        return
    blobs, trees, roots = google_digests(oracle.theirs(name).FromString(data))
    assert (sorted(found.blobs), sorted(found.trees), sorted(found.directories)) == (blobs, trees, roots)


output_files = st.builds(
    reapi.OutputFile,
    path=st.sampled_from(["a/b.o", "ü", "x" * 130]),
    digest=st.one_of(st.none(), digests),
    is_executable=st.booleans(),
    contents=st.sampled_from([b"", b"inline"]),
)
output_directories = st.builds(reapi.OutputDirectory, tree_digest=digests, root_directory_digest=digests)
action_results = st.builds(
    reapi.ActionResult,
    output_files=st.lists(output_files, max_size=3),
    output_directories=st.lists(output_directories, max_size=2),
    stdout_digest=st.one_of(st.none(), digests),
    stderr_digest=st.one_of(st.none(), digests),
    exit_code=st.sampled_from([0, 1, -1]),
).map(codec.encode)


@oracle.FUZZ_MORE
@given(st.one_of(action_results, action_results.flatmap(oracle.mutated)))
def test_digests_of_action_results_are_those_google_sees(data):
    check_action_result(data)


@oracle.FUZZ
@given(
    st.lists(
        st.tuples(
            digests,
            st.sampled_from([b"", b"x", b"y" * 5000]),
            st.sampled_from([0, 1]),
            st.sampled_from([None, 5, 13]),
        ),
        max_size=5,
    )
)
def test_batch_read_replies_by_hand_are_what_google_reads(blobs):
    reply = hot.BatchReadReply()
    expected = oracle.theirs(f"{V2}.BatchReadBlobsResponse")()
    for digest, data, compressor, code in blobs:
        pair = (digest.hash, abs(digest.size_bytes))
        response = expected.responses.add()
        response.digest.hash, response.digest.size_bytes = pair
        if code is None:
            reply.add_blob(pair, data, compressor=compressor)
            response.data, response.compressor = data, compressor
        else:
            reply.add_status(pair, code=code, message="not here: ü")
            response.status.code, response.status.message = code, "not here: ü"
    encoded = b"".join(reply.encode_parts())
    assert oracle.theirs(f"{V2}.BatchReadBlobsResponse").FromString(encoded) == expected
    assert reply.size == len(encoded)
