"""From an error to a status on the wire, and back: the one place where that is decided.

`NlError` and grpclib's `GRPCError` say what they are; anything else is INTERNAL, and its traceback is for the log
alone. Details travel as google.rpc.Status in `grpc-status-details-bin`; messages that carry an error inside (an
action's failure, an item of a batch) carry the same google.rpc.Status, made by `status_of`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from nl.errors import Code, Detail, FieldViolation, NlError, RetryAfter, Violation
from nl.pb import rpc_status, wkt
from nl.pb.codec import DecodeError, decode, encode
from nl.rpc import hpack
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ErrorCode
from nl.rpc.metadata import decode_binary, decode_message, encode_binary, encode_fields, encode_message

log = logging.getLogger(__name__)
_MAX_MESSAGE = 4096
_MAX_DETAILS = 64 * 1024
_MAX_TRAILERS = 128 * 1024
_FIELD_OVERHEAD = 32
_RESPONSE_SIZE = 128
"""Of the response headers that stand in the same block when there is no message: `:status` and `content-type`."""
_LEAST_MESSAGE = 512
"""Room that is kept for the message before details and metadata get any."""

RESET_CODES = {
    ErrorCode.NO_ERROR: Code.INTERNAL,
    ErrorCode.PROTOCOL_ERROR: Code.INTERNAL,
    ErrorCode.INTERNAL_ERROR: Code.INTERNAL,
    ErrorCode.FLOW_CONTROL_ERROR: Code.INTERNAL,
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}
"""What RST_STREAM means for a call (PROTOCOL-HTTP2.md, "Errors"); anything else is UNKNOWN."""

HTTP_CODES = {
    400: Code.INTERNAL, 401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED, 404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE, 502: Code.UNAVAILABLE, 503: Code.UNAVAILABLE, 504: Code.UNAVAILABLE,
}  # fmt: skip
"""What an HTTP status without grpc-status means (http-grpc-status-mapping.md); anything else is UNKNOWN."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended: what goes into the trailers."""

    code: int
    message: str = ""
    details: Sequence[Any] = ()
    """Messages of google.rpc, or such Any messages."""


OK = Outcome(0)


def outcome_of(error: BaseException, *, method: str) -> Outcome:
    """The status of a handler that raised. Groups with one error in them count as that error."""
    error = _single(error)
    if isinstance(error, NlError):
        return Outcome(int(error.code), error.message, tuple(_messages(error.details)))
    if isinstance(error, GRPCError):
        details = error.details if isinstance(error.details, list | tuple) else ()
        return Outcome(error.status.value, error.message or "", tuple(details))
    if isinstance(error, DecodeError):
        return Outcome(Code.INVALID_ARGUMENT, f"request message: {error}")
    if isinstance(error, TransportLost):
        return Outcome(Code.UNAVAILABLE, "connection lost")
    if isinstance(error, trio.TooSlowError):
        return Outcome(Code.DEADLINE_EXCEEDED, "a time limit ran out")
    log.error("handler of %s failed", method, exc_info=error)
    return Outcome(Code.INTERNAL, f"internal error in {method}: {type(error).__name__}")


def status_of(error: NlError) -> rpc_status.Status:
    """An error inside of a message: the same status, with the same details, as a call would end with."""
    return rpc_status.Status(
        code=int(error.code), message=error.message, details=[wkt.pack(each) for each in _messages(error.details)]
    )


def _single(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _messages(details: Sequence[Detail]) -> list[Any]:
    out: list[Any] = []
    missing = [
        rpc_status.PreconditionFailureViolation(type=each.type, subject=each.subject, description=each.description)
        for each in details
        if isinstance(each, Violation)
    ]
    if missing:
        out.append(rpc_status.PreconditionFailure(violations=missing))
    fields = [
        rpc_status.BadRequestFieldViolation(field=each.field, description=each.description)
        for each in details
        if isinstance(each, FieldViolation)
    ]
    if fields:
        out.append(rpc_status.BadRequest(field_violations=fields))
    out.extend(
        rpc_status.RetryInfo(retry_delay=wkt.duration_from_ns(round(each.seconds * 1e9)))
        for each in details
        if isinstance(each, RetryAfter)
    )
    return out


def trailers(outcome: Outcome, metadata: Any = None, *, max_size: int | None = None) -> bytes:
    """The header block that ends a call, within what the peer takes as a header list (None: within bounds of our own).

    What does not fit is given up: the end of the message, then the details, with a note, then the handler's metadata.
    The status itself always goes.
    """
    if not outcome.code and not metadata:
        return hpack.TRAILERS_OK
    left = _MAX_TRAILERS if max_size is None else min(max_size, _MAX_TRAILERS) - _RESPONSE_SIZE
    fields = [(b"grpc-status", b"%d" % outcome.code)]
    left -= _size(fields)
    own = encode_fields(metadata) if metadata else []
    details = _encoded_details(outcome)
    message = outcome.message
    if details and _size(details) > min(left - _LEAST_MESSAGE, _MAX_DETAILS):
        message, details = f"{message} (details left out: {len(details[0][1])} bytes)", []
    left -= _size(details)
    if _size(own) > left - _LEAST_MESSAGE:
        own = []
    left -= _size(own)
    text = encode_message(message, max_bytes=min(_MAX_MESSAGE, left - _FIELD_OVERHEAD - len(b"grpc-message")))
    if text:
        fields.append((b"grpc-message", text))
    return hpack.encode([*fields, *details, *own])


def _encoded_details(outcome: Outcome) -> list[tuple[bytes, bytes]]:
    if not outcome.details:
        return []
    packed = [each if isinstance(each, wkt.Any) else wkt.pack(each) for each in outcome.details]
    data = encode(rpc_status.Status(code=outcome.code, message=outcome.message[:_MAX_MESSAGE], details=packed))
    return [(b"grpc-status-details-bin", encode_binary(data))]


def _size(fields: Sequence[tuple[bytes, bytes]]) -> int:
    """In the sense of SETTINGS_MAX_HEADER_LIST_SIZE."""
    return sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in fields)


def error_from_trailers(fields: Sequence[hpack.Field]) -> GRPCError | None:
    """The client's side: what the trailers say, None for OK."""
    code, message, details = b"", "", None
    for name, value, kind, _ in fields:
        if kind == hpack.GRPC_STATUS:
            code = value
        elif kind == hpack.GRPC_MESSAGE:
            message = decode_message(value)
        elif name == b"grpc-status-details-bin":
            try:
                details = list(decode(rpc_status.Status, decode_binary(value)).details)
            except (DecodeError, NlError):
                log.warning("the server sent unreadable grpc-status-details-bin")
    if code == b"0":
        return None
    try:
        status = Status(int(code) if code.isdigit() and len(code) < 4 else -1)
    except ValueError:
        status = Status.UNKNOWN
        said = f"grpc-status {code[:100]!r}" if code else "no grpc-status"
        message = message or f"the server sent {said}"
    return GRPCError(status, message or None, details)
