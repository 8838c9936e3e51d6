"""The error taxonomy: every failure that a caller can meet, with the gRPC code it becomes.

This module imports nothing of the project. A class says *whose* fault it is; `rpc/status.py` is the one place that
turns an error into a status on the wire, and foreign errors (OSError, protobuf decoding, boto) are translated once,
where they enter. Hops may add context with `exc.add_note("slow store 's3'")`; notes reach the log, not the client.

`ConfigError` and `PluginError` happen before anything is served; they carry a path and what was expected.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Code(enum.IntEnum):
    """The status codes of gRPC (grpc/statuscodes.md), by their wire numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Violation:
    """One google.rpc.PreconditionFailure.Violation: clients re-upload what `subject` names when `type` is MISSING."""

    type: str
    subject: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One google.rpc.BadRequest.FieldViolation."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """google.rpc.RetryInfo: the peer may try again after this many seconds."""

    seconds: float


Detail = Violation | FieldViolation | RetryAfter


class NlError(Exception):
    """A failure with a gRPC code. `message` is for the client and names the digest, store or worker at fault."""

    code: Code = Code.INTERNAL
    retryable: bool = False

    def __init__(self, message: str, *, details: tuple[Detail, ...] = (), code: Code | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        if code is not None:
            self.code = code


class InvalidRequestError(NlError):
    """The caller sent something that no state of ours could make right."""

    code = Code.INVALID_ARGUMENT


class UploadMismatchError(InvalidRequestError):
    """Uploaded bytes are not what their digest says (REAPI: INVALID_ARGUMENT)."""


class RangeError(NlError):
    """An offset lies outside of the blob."""

    code = Code.OUT_OF_RANGE


class NotFoundError(NlError):
    """What was asked for is not here."""

    code = Code.NOT_FOUND


class BlobNotFoundError(NotFoundError):
    """A key is not in the store asked. `str(key)` is in the message; `key` is kept for callers that collect them."""

    def __init__(self, key: object, where: str = "", *, message: str = "") -> None:
        super().__init__(message or f"{key} not found" + (f" in {where}" if where else ""))
        self.key = key


class PreconditionError(NlError):
    """The world is not as the request needs it; `details` say what to mend."""

    code = Code.FAILED_PRECONDITION


class UnauthenticatedError(NlError):
    """The caller's credentials are missing or wrong. Never says anything of what was sent."""

    code = Code.UNAUTHENTICATED


class PermissionDeniedError(NlError):
    """The caller may not do this here (a read-only action cache, say)."""

    code = Code.PERMISSION_DENIED


class CorruptBlobError(NlError):
    """Stored bytes no longer match their digest; they have been set aside and an upload mends them."""

    code = Code.DATA_LOSS


class ExhaustedError(NlError):
    """Out of room: the disk, a quota, a bounded queue, a size limit."""

    code = Code.RESOURCE_EXHAUSTED


class TooLargeError(ExhaustedError):
    """Larger than what can ever be kept, or handled in this way: waiting does not help."""


class UnavailableError(NlError):
    """A peer or backend cannot be reached now; trying again may help."""

    code = Code.UNAVAILABLE
    retryable = True


class DeadlineError(NlError):
    """A time limit ran out."""

    code = Code.DEADLINE_EXCEEDED


class CancelledError(NlError):
    """Somebody asked for this to stop."""

    code = Code.CANCELLED


class UnimplementedError(NlError):
    """A part of the API that this server does not offer."""

    code = Code.UNIMPLEMENTED


class InternalError(NlError):
    """Our own bug or a broken invariant."""


class ConfigError(Exception):
    """The config is wrong: one line, `path: what is wrong; what was expected`.

    `source` is the file with line and column (`all.json5:12:9`), once it is known; it then begins the line.
    """

    def __init__(self, path: str, problem: str, *, source: str = "") -> None:
        super().__init__(": ".join(part for part in (source, path, problem) if part))
        self.path = path
        self.problem = problem
        self.source = source


class PluginError(ConfigError):
    """A store kind cannot be loaded; the problem names distribution and entry point."""


class ProtocolError(Exception):
    """Misuse of a wire protocol."""


class LocalProtocolError(ProtocolError):
    """Our side used a connection or stream wrongly: a bug."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol."""
