"""Errors to statuses, metadata to header fields."""

import logging

import pytest
import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.errors import BlobNotFoundError, Code, InvalidRequestError, PreconditionError, Violation
from nl.pb.codec import DecodeError
from nl.rpc import metadata
from nl.rpc.hpack import HeaderDecoder
from nl.rpc.status import Outcome, error_from_trailers, outcome_of, trailers


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BlobNotFoundError("k", "here"), Code.NOT_FOUND, "k not found in here"),
        (GRPCError(Status.ABORTED, "x"), Code.ABORTED, "x"),
        (DecodeError("M: truncated"), Code.INVALID_ARGUMENT, "request message: M: truncated"),
        (trio.TooSlowError(), Code.DEADLINE_EXCEEDED, "a time limit ran out"),
        (ExceptionGroup("g", [ExceptionGroup("h", [InvalidRequestError("deep")])]), Code.INVALID_ARGUMENT, "deep"),
    ],
)
def test_errors_have_one_status_each(error, code, message):
    outcome = outcome_of(error, method="/m")
    assert (outcome.code, outcome.message) == (code, message)


def test_a_bug_is_internal_and_its_text_goes_to_the_log_alone(caplog):
    with caplog.at_level(logging.ERROR):
        outcome = outcome_of(ValueError("secret"), method="/m")
    assert outcome.code == Code.INTERNAL and "secret" not in outcome.message
    assert "secret" in caplog.text


def test_details_go_there_and_back():
    outcome = outcome_of(PreconditionError("m", details=(Violation("MISSING", "blobs/a/1"),)), method="/m")
    error = error_from_trailers(HeaderDecoder().decode(trailers(outcome)))
    assert (error.status, error.message, len(error.details)) == (Status.FAILED_PRECONDITION, "m", 1)


def test_details_that_are_too_large_are_left_out_with_a_note():
    many = tuple(Violation("MISSING", f"blobs/{index:064x}/1") for index in range(2000))
    outcome = outcome_of(PreconditionError("m", details=many), method="/m")
    error = error_from_trailers(HeaderDecoder(max_list_size=1 << 20).decode(trailers(outcome)))
    assert error.details is None and "details left out" in error.message


@pytest.mark.parametrize("value", [b"", b"abc", b"99"])
def test_a_status_that_is_none_is_unknown(value):
    fields = [(b"grpc-status", value, 12, 0)] if value else []
    assert error_from_trailers(fields).status is Status.UNKNOWN


def test_ok_is_no_error():
    assert error_from_trailers(HeaderDecoder().decode(trailers(Outcome(0)))) is None


@pytest.mark.parametrize(("text", "seconds"), [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"0n", 0)])
def test_timeouts_have_units(text, seconds):
    assert metadata.decode_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"-1S", b"1.5S", b"123456789S", b"1s"])
def test_what_is_no_timeout_is_refused(text):
    with pytest.raises(InvalidRequestError):
        metadata.decode_timeout(text)


def test_binary_values_may_be_padded_or_not_and_joined_by_commas():
    assert metadata.decode_binary(b"AP8=") == metadata.decode_binary(b"AP8") == b"\x00\xff"
    assert metadata.decode_binary(b"AP8,AP8=") == b"\x00\xff\x00\xff"
    with pytest.raises(InvalidRequestError):
        metadata.decode_binary(b"!")


REFUSED = [{"Upper": "x"}, {"grpc-x": "x"}, {"te": "x"}, {"a": "\n"}, {"a": b"x"}, {"a-bin": "x"}]


@pytest.mark.parametrize("pairs", REFUSED)
def test_metadata_that_may_not_be_sent_is_refused(pairs):
    with pytest.raises((ValueError, TypeError)):
        metadata.encode_fields(pairs)
