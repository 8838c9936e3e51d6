"""An error as a google.rpc.Status inside of a message: how an action's failure travels."""

from __future__ import annotations

from nl.errors import Detail, FieldViolation, NlError, RetryAfter, Violation
from nl.pb import rpc_status, wkt


def to_status(error: NlError) -> rpc_status.Status:
    """The status with its details: all violations of a kind in one message, as clients look for them."""
    return rpc_status.Status(code=int(error.code), message=error.message, details=_pack(error.details))


def _pack(details: tuple[Detail, ...]) -> list[wkt.Any]:
    packed: list[wkt.Any] = []
    violations = [
        rpc_status.PreconditionFailureViolation(type=item.type, subject=item.subject, description=item.description)
        for item in details
        if isinstance(item, Violation)
    ]
    if violations:
        packed.append(wkt.pack(rpc_status.PreconditionFailure(violations=violations)))
    fields = [
        rpc_status.BadRequestFieldViolation(field=item.field, description=item.description)
        for item in details
        if isinstance(item, FieldViolation)
    ]
    if fields:
        packed.append(wkt.pack(rpc_status.BadRequest(field_violations=fields)))
    for item in details:
        if isinstance(item, RetryAfter):
            delay = wkt.duration_from_ns(round(item.seconds * 1_000_000_000))
            packed.append(wkt.pack(rpc_status.RetryInfo(retry_delay=delay)))
    return packed
