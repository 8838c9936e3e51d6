"""How operations, outcomes and errors look on the wire: google.longrunning.Operation with REAPI's messages packed in.

Shared by the services that show operations (execution, operations) and the one that takes results in (worker_api).
Not here: errors as the status of a call (rpc).
"""

from __future__ import annotations

from contextlib import suppress

from nl.blob.reader import Buffer
from nl.cas.action_results import drop_inlined
from nl.errors import Code, Detail, NlError, Violation
from nl.model.execution import OperationState, Outcome
from nl.pb import longrunning, reapi, rpc_status, wkt
from nl.pb.codec import DecodeError, encode, encode_parts
from nl.rpc.status import status_of
from nl.services.limits import REPLY_BYTES


def operation_parts(state: OperationState) -> list[Buffer]:
    """The encoded Operation, whose metadata is an ExecuteOperationMetadata and whose response an ExecuteResponse."""
    return encode_parts(operation_message(state))


def operation_message(state: OperationState) -> longrunning.Operation:
    """As a message. What is in it was made by `client_response`, so this is cheap however often it is asked for."""
    digest = state.action_digest
    metadata = reapi.ExecuteOperationMetadata(
        stage=reapi.ExecutionStageValue(state.stage),
        action_digest=reapi.Digest(hash=digest.hash, size_bytes=digest.size),
        digest_function=reapi.DigestFunctionValue(state.digest_function),
        partial_execution_metadata=reapi.ExecutedActionMetadata(
            worker=state.worker_id, queued_timestamp=wkt.timestamp_from_s(state.queued_at)
        ),
    )
    message = longrunning.Operation(name=state.name, metadata=wkt.pack(metadata))
    if state.outcome is not None:
        message.done = True
        message.response = wkt.pack_encoded(reapi.ExecuteResponse, encoded_response(state.outcome))
    return message


def encoded_response(outcome: Outcome) -> bytes:
    """The encoded ExecuteResponse of an outcome. Errors go into its status, never into Operation.error (REAPI)."""
    if outcome.error is not None:
        return encode(reapi.ExecuteResponse(status=status_of(outcome.error), message=outcome.error.message))
    return outcome.response or b""


def client_response(response: reapi.ExecuteResponse) -> bytes:
    """An encoded response for clients: one that is too long for a message is without the contents that it also names
    by digest. Takes seconds for the largest, so it is made once and in a thread.
    """
    encoded = encode(response)
    if len(encoded) <= REPLY_BYTES or response.result is None:
        return encoded
    drop_inlined(response.result)
    return encode(response)


def error_from_status(status: rpc_status.Status) -> NlError:
    """What a peer reported, as an error of ours; details that are unknown or malformed are dropped."""
    try:
        code = Code(status.code)
    except ValueError:
        code = Code.UNKNOWN
    details: list[Detail] = []
    for packed in status.details:
        with suppress(DecodeError):
            failure = wkt.unpack(packed, rpc_status.PreconditionFailure)
            if failure is not None:
                details += [Violation(each.type, each.subject, each.description) for each in failure.violations]
    return NlError(status.message, details=tuple(details), code=Code.UNKNOWN if code is Code.OK else code)
