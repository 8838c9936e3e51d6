"""What a failed call means to whoever asked the store, and that nothing secret is in what it says."""

from __future__ import annotations

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.errors import ConfigError
from nl.plugin import (
    CorruptBlobError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NlError,
    PermissionDeniedError,
    UnavailableError,
)
from nl.stores.grpc.failures import Failure, error_of
from nl.stores.grpc.methods import BATCH_READ
from nl.stores.grpc.options import GrpcEndpoint, GrpcRetry, ReadBatching

MEANING = {
    Status.PERMISSION_DENIED: PermissionDeniedError, Status.UNAUTHENTICATED: PermissionDeniedError,
    Status.NOT_FOUND: InternalError, Status.RESOURCE_EXHAUSTED: ExhaustedError,
    Status.INVALID_ARGUMENT: InvalidRequestError, Status.OUT_OF_RANGE: InvalidRequestError,
    Status.DATA_LOSS: CorruptBlobError, Status.UNIMPLEMENTED: InternalError,
    Status.FAILED_PRECONDITION: InternalError, Status.UNAVAILABLE: UnavailableError,
    Status.DEADLINE_EXCEEDED: UnavailableError, Status.CANCELLED: UnavailableError, Status.UNKNOWN: UnavailableError,
    Status.ABORTED: UnavailableError, Status.INTERNAL: UnavailableError, Status.ALREADY_EXISTS: UnavailableError,
}  # fmt: skip


def said(
    status: Status, message: str | None = "it says", *, what: str = "ab-1", secrets: tuple[str, ...] = ()
) -> NlError:
    return error_of(
        GRPCError(status, message), where="the grpc store 'A' (b:1)", method=BATCH_READ, instance="main", what=what,
        secrets=secrets,
    )  # fmt: skip


def test_every_status_has_a_meaning() -> None:
    assert {*MEANING, Status.OK} == set(Status)


@pytest.mark.parametrize("status", MEANING)
def test_a_status_is_an_error_of_the_contract_that_says_who_what_and_why(status: Status) -> None:
    error = said(status)
    assert type(error) is MEANING[status]
    assert error.message.startswith("the grpc store 'A' (b:1): BatchReadBlobs of ab-1")
    assert "it says" in error.message
    known = {Status.NOT_FOUND, Status.RESOURCE_EXHAUSTED, Status.INVALID_ARGUMENT, Status.OUT_OF_RANGE,
             Status.DATA_LOSS, Status.UNAVAILABLE}  # fmt: skip
    assert (status.name in error.message) is (status not in known)


def test_what_was_not_said_is_said_to_be_so() -> None:
    assert said(Status.UNAVAILABLE, None).message.endswith(": no reason given")
    assert said(Status.UNAVAILABLE, "x", what="").message == "the grpc store 'A' (b:1): BatchReadBlobs: x"


def test_a_refusal_tells_which_right_is_lacking_for_which_instance() -> None:
    message = said(Status.UNAUTHENTICATED).message
    assert "UNAUTHENTICATED: it says" in message
    assert f"with the right {BATCH_READ.right} for the instance 'main'" in message


def test_a_long_message_is_cut() -> None:
    assert said(Status.UNAVAILABLE, "x" * 501, what="").message.endswith(": " + "x" * 500)


def test_secrets_are_taken_out_the_longer_ones_first_and_short_ones_left() -> None:
    secrets = ("token", "token-and-more", "abcd", "abc")
    error = said(Status.UNAVAILABLE, "token-and-more token abcd abc", what="", secrets=secrets)
    assert error.message.endswith(": *** *** *** abc")
    cut = said(Status.UNAVAILABLE, "x" * 493 + "token-and-more", what="", secrets=secrets)
    assert cut.message.endswith("x***"), "nor is a part of one left where the message is cut"


def test_a_failure_knows_its_status_and_where_it_came_from() -> None:
    failure = Failure(GRPCError(Status.ABORTED, "x"), "peer", (("a", "b"),))
    assert (failure.status, failure.peer, failure.headers) == (Status.ABORTED, "peer", (("a", "b"),))
    assert (Failure(GRPCError(Status.OK)).peer, Failure(GRPCError(Status.OK)).headers) == ("", ())


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (GrpcRetry(jitter=0), ""), (GrpcRetry(jitter=2), ""), (GrpcRetry(jitter=2.1), "jitter"),
        (GrpcRetry(jitter=-0.1), "jitter"), (GrpcRetry(delay=0), ""), (GrpcRetry(delay=-0.1), "delay"),
        (ReadBatching(dispatch_slots=1), ""), (ReadBatching(dispatch_slots=0), "dispatch_slots"),
        (GrpcEndpoint(address="grpc://a:1", token="a"), ""), (GrpcEndpoint(address="grpc://a:1", token=" \n"), "token"),
        (GrpcEndpoint(address="grpc://a:1", token_file="/x"), ""),
    ],
)  # fmt: skip
def test_the_bounds_of_the_options_are_exact(options: object, path: str) -> None:
    if not path:
        options.check()  # type: ignore[attr-defined]
        return
    with pytest.raises(ConfigError) as caught:
        options.check()  # type: ignore[attr-defined]
    assert caught.value.path == path


def test_the_policy_of_calls_is_that_of_the_options() -> None:
    policy = GrpcRetry(max_retries=3, delay=0.2, jitter=1.0).policy()
    assert (policy.max_retries, policy.delay, policy.max_delay, policy.jitter) == (3, 0.4, 30.0, 0.5)
    assert policy.codes == {Status.CANCELLED, Status.UNKNOWN, Status.DEADLINE_EXCEEDED, Status.ABORTED,
                            Status.INTERNAL, Status.UNAVAILABLE}  # fmt: skip
