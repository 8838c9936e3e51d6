"""Errors to statuses on the wire, and back."""

import logging

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.errors import (
    BlobNotFoundError,
    Code,
    FieldViolation,
    InvalidRequestError,
    PreconditionError,
    RetryAfter,
    UnavailableError,
    Violation,
)
from nl.pb import rpc_status, wkt
from nl.pb.codec import DecodeError, decode
from nl.rpc import hpack
from nl.rpc.contract import TransportLost
from nl.rpc.hpack import HeaderDecoder
from nl.rpc.metadata import decode_binary
from nl.rpc.status import HTTP_CODES, RESET_CODES, Outcome, error_from_trailers, outcome_of, status_of, trailers


def sent(outcome, metadata=None):
    """Name to value of the block that ends a call so."""
    fields = HeaderDecoder(max_list_size=1 << 20).decode(trailers(outcome, metadata))
    return {name: value for name, value, _, _ in fields}


def received(outcome):
    return error_from_trailers(HeaderDecoder(max_list_size=1 << 20).decode(trailers(outcome)))


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BlobNotFoundError("k", "here"), Code.NOT_FOUND, "k not found in here"),
        (GRPCError(Status.ABORTED, "x"), Code.ABORTED, "x"),
        (GRPCError(Status.ABORTED), Code.ABORTED, ""),
        (DecodeError("M: truncated"), Code.INVALID_ARGUMENT, "request message: M: truncated"),
        (trio.TooSlowError(), Code.DEADLINE_EXCEEDED, "a time limit ran out"),
        (TransportLost("x"), Code.UNAVAILABLE, "connection lost"),
        (ExceptionGroup("g", [ExceptionGroup("h", [InvalidRequestError("deep")])]), Code.INVALID_ARGUMENT, "deep"),
    ],
)
def test_errors_have_one_status_each(error, code, message):
    outcome = outcome_of(error, method="/m")
    assert (outcome.code, outcome.message) == (code, message)


@pytest.mark.parametrize("error", [
    ValueError("secret"), ExceptionGroup("g", [ValueError("secret"), InvalidRequestError("x")]), KeyError("secret"),
])  # fmt: skip
def test_a_bug_is_internal_and_its_text_goes_to_the_log_alone(error, caplog):
    with caplog.at_level(logging.ERROR):
        outcome = outcome_of(error, method="/m")
    assert outcome.code == Code.INTERNAL
    assert "/m" in outcome.message and type(error).__name__ in outcome.message and "secret" not in outcome.message
    assert "secret" in caplog.text


def test_ok_is_one_constant_block_and_no_error():
    assert trailers(Outcome(0)) == hpack.TRAILERS_OK
    assert received(Outcome(0)) is None


def test_a_status_has_number_and_message_in_this_order():
    found = list(sent(Outcome(5, "not h\u00e4re")).items())
    assert found == [(b"grpc-status", b"5"), (b"grpc-message", b"not h%C3%A4re")]
    assert sent(Outcome(5)) == {b"grpc-status": b"5"}


def test_metadata_goes_with_ok_and_with_errors():
    assert sent(Outcome(0), {"x-last": "1"}) == {b"grpc-status": b"0", b"x-last": b"1"}
    assert sent(Outcome(5, "m"), {"x-bin": b"\0"}) == {b"grpc-status": b"5", b"grpc-message": b"m", b"x-bin": b"AA"}


def test_details_of_every_kind_go_there_and_back():
    details = (
        Violation("MISSING", "blobs/a/1", "why"), FieldViolation("f", "is wrong"), RetryAfter(1.5),
        Violation("MISSING", "blobs/b/2"),
    )  # fmt: skip
    error = received(outcome_of(PreconditionError("m", details=details), method="/m"))
    assert (error.status, error.message) == (Status.FAILED_PRECONDITION, "m")
    missing, fields, retry = error.details
    failure = wkt.unpack(missing, rpc_status.PreconditionFailure)
    assert [(each.type, each.subject, each.description) for each in failure.violations] == [
        ("MISSING", "blobs/a/1", "why"), ("MISSING", "blobs/b/2", ""),
    ]  # fmt: skip
    [field] = wkt.unpack(fields, rpc_status.BadRequest).field_violations
    assert (field.field, field.description) == ("f", "is wrong")
    assert wkt.unpack(retry, rpc_status.RetryInfo).retry_delay == wkt.Duration(seconds=1, nanos=500_000_000)


def test_details_of_a_grpc_error_go_as_they_are():
    packed = wkt.pack(rpc_status.BadRequest())
    assert received(outcome_of(GRPCError(Status.ABORTED, "x", [packed]), method="/m")).details == [packed]
    assert received(outcome_of(GRPCError(Status.ABORTED, "x", "no list"), method="/m")).details is None


def test_details_that_are_too_large_are_left_out_with_a_note():
    many = tuple(Violation("MISSING", f"blobs/{index:064x}/1") for index in range(2000))
    error = received(outcome_of(PreconditionError("m", details=many), method="/m"))
    assert error.details is None and error.message.startswith("m (details left out: ")


def test_an_endless_message_is_cut():
    assert 0 < len(sent(Outcome(5, "m" * 100_000))[b"grpc-message"]) <= 4096


def test_a_status_inside_of_a_message_says_what_a_call_would():
    error = UnavailableError("later", details=(RetryAfter(2),))
    inner, outer = status_of(error), received(outcome_of(error, method="/m"))
    assert (inner.code, inner.message, inner.details) == (outer.status.value, outer.message, outer.details)


@pytest.mark.parametrize(("fields", "message"), [
    ([], "the server sent no grpc-status"), ([(b"grpc-status", b"abc")], "the server sent grpc-status b'abc'"),
    ([(b"grpc-status", b"99")], "the server sent grpc-status b'99'"),
    ([(b"grpc-status", b"99"), (b"grpc-message", b"its own")], "its own"),
])  # fmt: skip
def test_a_status_that_is_none_is_unknown_and_says_so(fields, message):
    error = error_from_trailers(HeaderDecoder().decode(hpack.encode(fields)))
    assert (error.status, error.message) == (Status.UNKNOWN, message)


@pytest.mark.parametrize("value", [b"!", b"/////w"])
def test_details_that_cannot_be_read_do_not_hide_the_status(value, caplog):
    block = hpack.encode([(b"grpc-status", b"9"), (b"grpc-status-details-bin", value)])
    error = error_from_trailers(HeaderDecoder().decode(block))
    assert (error.status, error.details) == (Status.FAILED_PRECONDITION, None)
    assert "unreadable" in caplog.text


def test_http_statuses_mean_what_grpc_says():
    """https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md"""
    assert HTTP_CODES == {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}


def size_of(block):
    """Of a header list, as SETTINGS_MAX_HEADER_LIST_SIZE counts, with `:status` and `content-type` before it."""
    fields = HeaderDecoder(max_list_size=1 << 20).decode(hpack.RESPONSE + block)
    return sum(field[3] for field in fields), {field[0] for field in fields}


@pytest.mark.parametrize("max_size", [700, 1000, 2000, 8192, 16_384])
@pytest.mark.parametrize("message", [0, 100, 10_000])
@pytest.mark.parametrize("details", [0, 10, 100])
@pytest.mark.parametrize("own", [0, 100, 5000])
def test_the_end_of_a_call_always_fits_into_what_the_client_takes(max_size, message, details, own):
    each = tuple(Violation("MISSING", f"blobs/{index:064x}/1") for index in range(details))
    outcome = outcome_of(PreconditionError("m" * message, details=each), method="/m")
    size, names = size_of(trailers(outcome, {"x-own": "v" * own} if own else None, max_size=max_size))
    assert size <= max_size
    assert b"grpc-status" in names
    assert (b"grpc-message" in names) == bool(message or (details and b"grpc-status-details-bin" not in names))


STATUS_FIELD = len(b"grpc-status") + 1 + 32


@pytest.mark.parametrize("over", [0, 1])
def test_metadata_goes_along_while_five_hundred_bytes_are_left_for_the_message(over):
    room = 2000 - 128 - STATUS_FIELD - 512
    value = "v" * (room - 32 - len("x-own") + over)
    names = size_of(trailers(Outcome(5, "why"), {"x-own": value}, max_size=2000))[1]
    assert (b"x-own" in names) is not bool(over)
    assert b"grpc-message" in names


@pytest.mark.parametrize("over", [0, 1])
def test_details_go_along_while_five_hundred_bytes_are_left_and_metadata_comes_after_them(over):
    outcome = outcome_of(PreconditionError("m", details=(Violation("MISSING", "blobs/a/1"),)), method="/m")
    details = HeaderDecoder().decode(trailers(outcome))[-1]
    assert details[0] == b"grpc-status-details-bin"
    least = 128 + STATUS_FIELD + 512 + details[3] - over
    names = size_of(trailers(outcome, max_size=least))[1]
    assert (b"grpc-status-details-bin" in names) is not bool(over)
    value = "v" * 100
    least = 128 + STATUS_FIELD + 512 + details[3] + len("x-own") + 100 + 32 - over
    names = size_of(trailers(outcome, {"x-own": value}, max_size=least))[1]
    assert b"grpc-status-details-bin" in names
    assert (b"x-own" in names) is not bool(over)


def test_a_client_that_takes_very_much_is_still_not_sent_more_than_our_own_bounds():
    many = tuple(Violation("MISSING", f"blobs/{index:064x}/1") for index in range(2000))
    outcome = outcome_of(PreconditionError("m", details=many), method="/m")
    for max_size in (None, 1 << 30):
        assert b"grpc-status-details-bin" not in size_of(trailers(outcome, max_size=max_size))[1]
        own = {"x-own": "v" * (128 * 1024)}
        assert b"x-own" not in size_of(trailers(outcome, own, max_size=max_size))[1]
        assert b"x-own" in size_of(trailers(outcome, {"x-own": "v" * 100_000}, max_size=max_size))[1]


def test_details_of_one_kind_do_not_bring_those_of_another():
    def kinds(*details):
        error = received(outcome_of(PreconditionError("m", details=details), method="/m"))
        return [each.type_url.rpartition(".")[2] for each in error.details or ()]

    assert kinds() == []
    assert kinds(Violation("T", "s")) == ["PreconditionFailure"]
    assert kinds(FieldViolation("f", "is wrong")) == ["BadRequest"]
    assert kinds(RetryAfter(1)) == ["RetryInfo"]


@pytest.mark.parametrize(("code", "status"), [
    (b"16", Status.UNAUTHENTICATED), (b"014", Status.UNAVAILABLE), (b"0014", Status.UNKNOWN), (b"17", Status.UNKNOWN),
    (b"-1", Status.UNKNOWN), (b"", Status.UNKNOWN),
])  # fmt: skip
def test_a_status_is_a_number_of_at_most_three_digits(code, status):
    error = error_from_trailers(HeaderDecoder().decode(hpack.encode([(b"grpc-status", code)])))
    assert error.status == status


def test_details_repeat_status_and_message_for_those_who_read_nothing_else():
    outcome = outcome_of(PreconditionError("m" * 5000, details=(RetryAfter(1),)), method="/m")
    packed = decode(rpc_status.Status, decode_binary(sent(outcome)[b"grpc-status-details-bin"]))
    assert (packed.code, packed.message, len(packed.details)) == (Code.FAILED_PRECONDITION, "m" * 4096, 1)


@pytest.mark.parametrize(("count", "kept"), [(400, True), (900, False)])
def test_details_of_more_than_64_kib_are_left_out_also_where_there_is_room_for_them(count, kept):
    many = tuple(Violation("MISSING", f"blobs/{index:064x}/1") for index in range(count))
    outcome = outcome_of(PreconditionError("m", details=many), method="/m")
    names = size_of(trailers(outcome))[1]
    assert (b"grpc-status-details-bin" in names) is kept


@pytest.mark.parametrize("max_size", [600, 1000, 4000])
def test_a_message_is_cut_to_the_last_byte_that_fits(max_size):
    fields = HeaderDecoder().decode(trailers(Outcome(5, "m" * 10_000), max_size=max_size))
    [message] = [value for name, value, _, _ in fields if name == b"grpc-message"]
    assert len(message) == max_size - 128 - STATUS_FIELD - 32 - len("grpc-message")


def test_resets_mean_what_grpc_says():
    """https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors"""
    assert RESET_CODES == {0: 13, 1: 13, 2: 13, 3: 13, 7: 14, 8: 1, 11: 8, 12: 7}
