"""Errors of calls as NlErrors, and whatever a reply makes of us as GRPCErrors."""

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from nl import errors
from nl.errors import Code, ExhaustedError, InvalidRequestError, NlError
from nl.pb.codec import DecodeError
from nl.rpc.contract import TransportLost
from nl.rpc.errors import NotProcessed, OnlyGrpcErrors, translated


@pytest.mark.parametrize(
    ("raised", "kind", "code"),
    [
        (GRPCError(Status.NOT_FOUND, "no"), errors.NotFoundError, Code.NOT_FOUND),
        (GRPCError(Status.UNAVAILABLE, "no"), errors.UnavailableError, Code.UNAVAILABLE),
        (NotProcessed(Status.UNAVAILABLE, "no"), errors.UnavailableError, Code.UNAVAILABLE),
        (GRPCError(Status.RESOURCE_EXHAUSTED, "no"), errors.ExhaustedError, Code.RESOURCE_EXHAUSTED),
        (GRPCError(Status.DATA_LOSS, "no"), NlError, Code.DATA_LOSS),
        (GRPCError(Status.UNAUTHENTICATED), NlError, Code.UNAUTHENTICATED),
        (TransportLost("gone"), errors.UnavailableError, Code.UNAVAILABLE),
        (StreamTerminatedError("gone"), errors.UnavailableError, Code.UNAVAILABLE),
        (DecodeError("bad"), NlError, Code.INTERNAL),
    ],
)
def test_every_failure_of_a_call_becomes_an_nlerror_that_says_where(raised, kind, code):
    with pytest.raises(NlError, match="^cache at h:1") as caught, translated("cache at h:1"):
        raise raised
    assert isinstance(caught.value, kind)
    assert caught.value.code is code
    assert caught.value.__cause__ is raised


def test_only_what_is_worth_trying_again_is_retryable():
    for status, retryable in ((Status.UNAVAILABLE, True), (Status.NOT_FOUND, False), (Status.INTERNAL, False)):
        with pytest.raises(NlError) as caught, translated("x"):
            raise GRPCError(status)
        assert caught.value.retryable is retryable


def test_our_own_mistakes_pass_through():
    with pytest.raises(KeyError), translated("x"), OnlyGrpcErrors("/m"):
        raise KeyError("mine")


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (InvalidRequestError("bad"), Status.INTERNAL),  # the server's mistake, not the caller's
        (ExhaustedError("large"), Status.RESOURCE_EXHAUSTED),
        (DecodeError("bad"), Status.INTERNAL),
        (TransportLost("gone"), Status.UNAVAILABLE),
    ],
)
def test_what_a_reply_makes_of_us_is_a_grpc_error(raised, status):
    with pytest.raises(GRPCError) as caught, OnlyGrpcErrors("/t.S/M"):
        raise raised
    assert caught.value.status is status


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (GRPCError(Status.NOT_FOUND, "no"), "cache: no"),
        (GRPCError(Status.UNAUTHENTICATED), "cache: UNAUTHENTICATED"),
        (TransportLost("gone"), "cache: gone"),
        (TransportLost(), "cache: TransportLost"),
        (DecodeError("bad"), "cache sent what cannot be decoded: bad"),
    ],
)
def test_the_message_says_where_and_what(raised, text):
    with pytest.raises(NlError) as caught, translated("cache"):
        raise raised
    assert caught.value.message == text


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (InvalidRequestError("bad"), "reply of /t.S/M: bad"),
        (DecodeError("bad"), "reply of /t.S/M cannot be decoded: bad"),
        (TransportLost("gone"), "connection lost: gone"),
    ],
)
def test_what_a_reply_makes_of_us_is_told_with_its_method(raised, text):
    with pytest.raises(GRPCError) as caught, OnlyGrpcErrors("/t.S/M"):
        raise raised
    assert caught.value.message == text
    assert caught.value.__cause__ is raised
