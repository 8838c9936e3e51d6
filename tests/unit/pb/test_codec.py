"""The codec by example: what it accepts, what it refuses, what it keeps. The fuzz tests compare it with google's."""

from __future__ import annotations

import gc
import warnings

import pytest

from nl.pb import bytestream, codec, longrunning, reapi, rpc_status, wkt
from nl.pb.codec import registry, wire

DIGEST = reapi.Digest(hash="ab" * 32, size_bytes=5)
DIGEST_BYTES = b"\x0a\x40" + b"ab" * 32 + b"\x10\x05"


def test_a_message_is_written_as_its_fields_by_ascending_number():
    command = reapi.Command(working_directory="w", arguments=["a", "b"], output_paths=["o"], platform=reapi.Platform())
    assert codec.encode(command) == b"\x0a\x01a\x0a\x01b\x2a\x00\x32\x01w\x3a\x01o"
    assert codec.encode(DIGEST) == DIGEST_BYTES


def test_defaults_are_not_written_and_come_back():
    assert codec.encode(reapi.Digest()) == b""
    assert codec.decode(reapi.Digest, b"") == reapi.Digest()
    empty = codec.decode(reapi.ActionResult, b"")
    assert (empty.output_files, empty.stdout_digest, empty.exit_code, empty.stdout_raw) == ([], None, 0, b"")


def test_two_decoded_messages_share_no_list():
    first, second = (codec.decode(reapi.ActionResult, b"") for _ in range(2))
    first.output_files.append(reapi.OutputFile())
    assert second.output_files == []


def test_an_empty_message_that_is_present_stays_present():
    action = reapi.Action(timeout=wkt.Duration())
    assert codec.encode(action) == b"\x32\x00"
    assert codec.decode(reapi.Action, b"\x32\x00").timeout == wkt.Duration()
    assert codec.decode(reapi.Action, b"").timeout is None


@pytest.mark.parametrize("number", [0, 1, -1, 127, 128, 4095, 4096, 2**31, 2**63 - 1, -(2**63)])
def test_numbers_of_64_bits_survive(number):
    assert codec.decode(reapi.Digest, codec.encode(reapi.Digest(size_bytes=number))).size_bytes == number


@pytest.mark.parametrize("message", [
    reapi.Digest(size_bytes=2**63),
    reapi.Digest(size_bytes=-(2**63) - 1),
    reapi.ExecutionPolicy(priority=2**31),
    reapi.FastCdc2020Params(seed=-1),
    reapi.FastCdc2020Params(seed=2**32),
    reapi.RepMaxCdcParams(min_chunk_size_bytes=2**64),
    reapi.RepMaxCdcParams(min_chunk_size_bytes=-1),
])  # fmt: skip
def test_numbers_that_do_not_fit_their_field_are_refused(message):
    with pytest.raises(ValueError, match="integer"):
        codec.encode(message)


def test_nanoseconds_are_exact_and_durations_may_be_negative():
    metadata = reapi.ExecutedActionMetadata(
        queued_timestamp=wkt.Timestamp(seconds=-62135596800, nanos=999_999_999),
        virtual_execution_duration=wkt.Duration(seconds=-1, nanos=-1),
    )
    assert codec.decode(reapi.ExecutedActionMetadata, codec.encode(metadata)) == metadata


def test_enums_without_a_name_are_kept_by_number():
    data = b"\x18\xac\x02"
    request = codec.decode(reapi.FindMissingBlobsRequest, data)
    assert request.digest_function == 300
    assert codec.encode(request) == data


def test_lists_of_numbers_may_come_packed_or_not():
    one_by_one = codec.decode(reapi.BatchReadBlobsRequest, b"\x18\x01\x18\x02")
    packed = codec.decode(reapi.BatchReadBlobsRequest, b"\x1a\x02\x01\x02")
    assert one_by_one == packed
    assert packed.acceptable_compressors == [reapi.CompressorValue.ZSTD, reapi.CompressorValue.DEFLATE]
    assert codec.encode(one_by_one) == b"\x1a\x02\x01\x02"


@pytest.mark.parametrize("behind", [b"", b"\x01", b"\x01\x18\x01"], ids=["the end", "a byte", "a byte and a field"])
@pytest.mark.parametrize("form", [bytes, memoryview])
def test_a_packed_list_ends_where_its_length_says(behind, form):
    """Its last number goes on beyond that: neither may it take bytes of what follows, nor be cut."""
    with pytest.raises(codec.DecodeError, match="truncated"):
        codec.decode(reapi.BatchReadBlobsRequest, form(b"\x1a\x02\x01\x80" + behind))


def test_a_singular_message_that_comes_twice_is_merged():
    action = codec.decode(reapi.Action, b"\x0a\x03\x0a\x01h\x0a\x02\x10\x07")
    assert action.command_digest == reapi.Digest(hash="h", size_bytes=7)
    assert codec.decode(reapi.NodeProperties, b"\x1a\x02\x08\x05\x1a\x00").unix_mode == 5


def test_the_last_member_of_a_oneof_wins():
    operation = codec.decode(longrunning.Operation, b"\x22\x02\x08\x05\x2a\x03\x0a\x01u")
    assert operation.error is None
    assert operation.response == wkt.Any(type_url="u")
    assert codec.decode(longrunning.Operation, b"\x2a\x03\x0a\x01u\x22\x02\x08\x05").response is None


def test_an_optional_zero_is_written():
    violation = rpc_status.QuotaFailureViolation(future_quota_value=0)
    assert codec.encode(violation) == b"\x40\x00"
    assert codec.decode(rpc_status.QuotaFailureViolation, b"\x40\x00").future_quota_value == 0
    assert codec.decode(rpc_status.QuotaFailureViolation, b"").future_quota_value is None


def test_maps_take_the_last_value_and_default_what_an_entry_lacks():
    data = b"\x22\x05\x0a\x01k\x12\x00\x22\x07\x0a\x01k\x12\x02\x10\x01\x22\x00"
    response = codec.decode(reapi.ExecuteResponse, data)
    assert response.server_logs == {"k": reapi.LogFile(human_readable=True), "": reapi.LogFile()}
    assert codec.decode(reapi.ExecuteResponse, codec.encode(response)) == response


def test_unknown_fields_are_written_back_byte_for_byte():
    unknown = b"\xfa\x7f\x03abc" + b"\xf8\x7f\x05" + b"\xfb\x7f\x08\x01\xfc\x7f" + b"\xf9\x7f12345678" + b"\xfd\x7f1234"
    assert codec.encode(codec.decode(reapi.Digest, unknown + DIGEST_BYTES)) == DIGEST_BYTES + unknown


def test_a_field_of_the_wrong_wire_type_is_an_unknown_field():
    digest = codec.decode(reapi.Digest, b"\x08\x05\x12\x01x")
    assert digest == reapi.Digest()
    assert codec.encode(digest) == b"\x08\x05\x12\x01x"


@pytest.mark.parametrize(("data", "problem"), [
    (b"\x0a", "truncated"),
    (b"\x0a\x05abc", "truncated"),
    (b"\x10", "truncated"),
    (b"\x10\x80", "truncated"),
    (b"\x10" + b"\x80" * 10 + b"\x01", "varint of more than ten bytes"),
    (b"\xff", "truncated"),
    (b"\x00\x00", "field number 0"),
    (b"\x0e", "unknown wire type 6"),
    (b"\x0f", "unknown wire type 7"),
    (b"\x0c", "group that was not open"),
    (b"\x0b", "truncated"),
    (b"\x0b\x14", "group that was not open"),
    (b"\x0a\x02\xc3\x28", "in a string"),
    (b"\x0a\x03\xed\xa0\x80", "in a string"),
    (b"\x0a\x81\x80\x80\x80\x80\x00x", "length of 2 GiB or more"),
    (b"\x0a\xff\xff\xff\xff\x0f", "length of 2 GiB or more"),
    (b"\x8a\x80\x80\x80\x80\x00\x00", "tag of more than 32 bits"),
    (b"\x8a\x80\x80\x80\x10\x00", "tag of more than 32 bits"),
    (b"\x39\x01\x02", "truncated"),
    (b"\x3d\x01\x02", "truncated"),
])  # fmt: skip
def test_bytes_that_are_no_message_are_refused_in_one_way(data, problem):
    with pytest.raises(codec.DecodeError, match=f"Digest: .*{problem}"):
        codec.decode(reapi.Digest, data)


def test_every_cut_of_a_message_is_refused_or_is_a_shorter_message():
    whole = codec.encode(reapi.Action(command_digest=DIGEST, timeout=wkt.Duration(seconds=300), salt=b"salt"))
    ends = {0, 70, 75, 81}
    for cut in range(len(whole)):
        if cut in ends:
            codec.decode(reapi.Action, whole[:cut])
        else:
            with pytest.raises(codec.DecodeError):
                codec.decode(reapi.Action, whole[:cut])


def test_a_nested_message_may_not_read_past_its_own_end():
    with pytest.raises(codec.DecodeError, match="truncated"):
        codec.decode(reapi.Action, b"\x0a\x01\x10\x05")
    with pytest.raises(codec.DecodeError, match="truncated"):
        codec.decode(reapi.Action, b"\x0a\x03\x0a\x05h" + b"\x10" * 20)


def test_nesting_ends_at_a_hundred_levels():
    def groups(levels):
        return b"\x0b" * levels + b"\x0c" * levels

    assert codec.encode(codec.decode(reapi.Digest, groups(100))) == groups(100)
    with pytest.raises(codec.DecodeError, match="nested too deeply"):
        codec.decode(reapi.Digest, groups(101))
    inside = b"\x0a" + codec.varint(200) + groups(100)
    with pytest.raises(codec.DecodeError, match="nested too deeply"):
        codec.decode(reapi.Action, inside)


def test_many_small_unknown_fields_take_linear_time():
    """Quadratic copying would need hours for this."""
    data = b"\x98\x06\x01" * 400_000
    assert codec.encode(codec.decode(reapi.Digest, data)) == data
    merged = codec.decode(reapi.Action, b"\x0a\x03\x98\x06\x01" * 90_000)
    assert len(codec.encode(merged.command_digest)) == 270_000


@pytest.mark.parametrize(
    ("cls", "entry"),
    [
        (reapi.ActionResult, b"\x12\x00"),
        (reapi.Tree, b"\x12\x80\x02" + 128 * b"\x0a\x00"),  # a little in each of many
        (reapi.Directory, b"\x0a\x06" + 3 * b"\x12\x00"),  # one, merged again and again
        (rpc_status.Status, b"\x1a\x00"),
    ],
)
@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_a_message_full_of_empty_ones_is_refused_before_it_is_memory(cls, entry, form):
    with pytest.raises(codec.DecodeError, match=f"^{cls.__name__}: too many messages in it for its size$"):
        codec.decode(cls, form(entry * ((1 << 20) // len(entry))))


def test_the_largest_directories_of_the_smallest_files_are_not_refused():
    files = [reapi.FileNode(name=f"{at:x}", digest=DIGEST) for at in range(60_000)]
    links = [reapi.SymlinkNode(name=f"{at:x}", target="t") for at in range(60_000)]
    directory = reapi.Directory(files=files, symlinks=links)
    assert len(codec.decode(reapi.Directory, codec.encode(directory)).files) == 60_000


def test_nesting_is_limited_in_large_messages_too():
    padding = b"\x98\x06\x01" * 100_000
    codec.decode(reapi.Digest, b"\xa3\x06" * 100 + b"\xa4\x06" * 100 + padding)
    with pytest.raises(codec.DecodeError, match="nested too deeply"):
        codec.decode(reapi.Digest, b"\xa3\x06" * 101 + b"\xa4\x06" * 101 + padding)


def test_deprecated_fields_make_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        command = reapi.Command(output_files=["f"], output_directories=["d"], platform=reapi.Platform())
        result = reapi.ActionResult(output_file_symlinks=[reapi.OutputSymlink(path="p", target="t")])
        assert codec.decode(reapi.Command, codec.encode(command)) == command
        assert codec.decode(reapi.ActionResult, codec.encode(result)) == result


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [3, 100_000])
def test_payloads_come_out_of_any_buffer_as_views(kind, size):
    data = kind(codec.encode(bytestream.WriteRequest(resource_name="r", data=b"x" * size)))
    request = codec.decode(bytestream.WriteRequest, data)
    assert isinstance(request.data, memoryview)
    assert request.data == b"x" * size
    assert request.resource_name == "r"


def test_a_payload_in_a_memoryview_is_not_copied():
    buffer = bytearray(codec.encode(bytestream.WriteRequest(data=b"x" * 100_000)))
    request = codec.decode(bytestream.WriteRequest, memoryview(buffer))
    buffer[-1] = ord("y")
    assert bytes(request.data[-2:]) == b"xy"


def test_nested_payloads_in_a_memoryview_are_not_copied():
    blob = reapi.BatchUpdateBlobsRequestRequest(digest=DIGEST, data=b"x" * 100_000)
    buffer = bytearray(codec.encode(reapi.BatchUpdateBlobsRequest(instance_name="i", requests=[blob])))
    request = codec.decode(reapi.BatchUpdateBlobsRequest, memoryview(buffer))
    buffer[-1] = ord("y")
    assert bytes(request.requests[0].data[-2:]) == b"xy"
    assert request.requests[0].digest == DIGEST


def test_other_bytes_fields_are_views_when_asked_for():
    data = memoryview(codec.encode(reapi.ActionResult(stdout_raw=b"o" * 5000, stderr_raw=b"e" * 5000)))
    result = codec.decode(reapi.ActionResult, data, views=("stdout_raw",))
    assert isinstance(result.stdout_raw, memoryview)
    assert type(result.stderr_raw) is bytes
    assert type(codec.decode(reapi.ActionResult, data).stdout_raw) is bytes
    with pytest.raises(ValueError, match="no bytes field exit_code"):
        codec.decode(reapi.ActionResult, data, views=("exit_code",))


def test_big_payloads_are_parts_of_their_own():
    payload = b"x" * 10_000
    blobs = [reapi.BatchReadBlobsResponseResponse(digest=DIGEST, data=data) for data in (payload, b"small", payload)]
    message = reapi.BatchReadBlobsResponse(responses=blobs)
    parts = codec.encode_parts(message)
    assert [part is payload for part in parts] == [False, True, False, True]
    assert b"".join(parts) == codec.encode(message)
    assert codec.encode_parts(DIGEST) == [DIGEST_BYTES]
    assert b"".join(codec.encode_parts(reapi.Digest())) == b""


def test_a_class_of_its_own_decodes_and_encodes_itself():
    class Upper:
        def __init__(self, text):
            self.text = text

        @classmethod
        def decode(cls, data):
            return cls(bytes(data).upper())

        def encode_parts(self):
            return [self.text, b"!"]

    assert codec.decode(Upper, b"abc").text == b"ABC"
    assert codec.decode(Upper, memoryview(b"abc")).text == b"ABC"
    assert codec.encode(Upper(b"x")) == b"x!"
    assert codec.encode_parts(Upper(b"x")) == [b"x", b"!"]


def test_anything_else_than_a_message_is_an_error_of_the_caller():
    with pytest.raises(AttributeError):
        codec.decode(int, b"")
    with pytest.raises(AttributeError):
        codec.encode("text")


def test_a_class_is_compiled_once():
    assert registry.decoder_of(reapi.Digest, False) is registry.decoder_of(reapi.Digest, False)
    assert registry.encoder_of(reapi.Digest) is registry.encoder_of(reapi.Digest)


def test_decoding_leaves_no_cycles_behind():
    data = codec.encode(reapi.Directory(files=[reapi.FileNode(name="a", digest=DIGEST)]))
    codec.decode(reapi.Directory, data)
    gc.collect()
    codec.decode(reapi.Directory, data)
    assert gc.collect() == 0


def test_short_ways_to_varints_give_what_computing_gives():
    borders = [1 << shift for shift in (7, 12, 14, 21, 28, 63)]
    numbers = [*range(20_000), *(border + step for border in borders for step in range(-3, 4)), 2**64 - 1]
    assert [wire.varint(number) for number in numbers] == [wire.build_varint(number) for number in numbers]
