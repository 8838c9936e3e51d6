"""What a failed call means to whoever asked the store. Pure.

Messages name the store, the server and what was asked. They never show a token: what was sent as a secret is taken out
of what a server says, should it repeat it.
"""

from __future__ import annotations

from collections.abc import Collection

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.plugin import (
    CorruptBlobError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NlError,
    PermissionDeniedError,
    UnavailableError,
)
from nl.stores.grpc.methods import Method

Headers = tuple[tuple[str, str | bytes], ...]
_MAX_TOLD = 500
_LEAST_SECRET = 4
"""Shorter ones are not taken out: they would be found in every word."""


class Failure(Exception):
    """One attempt has failed. `peer` is the server that it went to, if it went that far; `headers` are those that it
    had from the request that caused it.
    """

    def __init__(self, error: GRPCError, peer: str = "", headers: Headers = ()) -> None:
        super().__init__(error, peer)
        self.headers = headers
        self.error = error
        self.peer = peer

    @property
    def status(self) -> Status:
        """How the call has ended."""
        status: Status = self.error.status
        return status


def error_of(
    error: GRPCError, *, where: str, method: Method, instance: str, what: str, secrets: Collection[str]
) -> NlError:
    """The error to raise."""
    status: Status = error.status
    said = without(error.message or "no reason given", secrets)[:_MAX_TOLD]
    asked = f"{method.name} of {what}" if what else method.name
    head = f"{where}: {asked}"
    if status in (Status.PERMISSION_DENIED, Status.UNAUTHENTICATED):
        return PermissionDeniedError(
            f"{head} was refused ({status.name}: {said}); expected credentials (token, token_file or tls_config of the "
            f"endpoint) with the right {method.right} for the instance {instance!r}"
        )
    if status is Status.NOT_FOUND:  # of a blob that is not there the store's own code knows
        return InternalError(f"{head} for the instance {instance!r}: {said}")
    if status is Status.RESOURCE_EXHAUSTED:
        return ExhaustedError(f"{head}: {said}")
    if status in (Status.INVALID_ARGUMENT, Status.OUT_OF_RANGE):
        return InvalidRequestError(f"{head}: {said}")
    if status is Status.DATA_LOSS:
        return CorruptBlobError(f"{head}: {said}")
    if status in (Status.UNIMPLEMENTED, Status.FAILED_PRECONDITION):
        return InternalError(f"{head}: {status.name}: {said}")
    return UnavailableError(f"{head}: {said}" if status is Status.UNAVAILABLE else f"{head}: {status.name}: {said}")


def without(text: str, secrets: Collection[str]) -> str:
    """The text with nothing of the secrets in it."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, "***")
    return text
