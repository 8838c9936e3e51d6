"""How operations look on the wire: what must not cost anything each time that one is shown, and what is left out."""

from __future__ import annotations

import pytest

from nl.errors import Code, NotFoundError, Violation
from nl.model.digest import Digest
from nl.model.execution import OperationState, Outcome, Stage
from nl.pb import longrunning, reapi, rpc_status, wkt
from nl.pb.codec import decode, encode
from nl.services.limits import MESSAGE_BYTES, REPLY_BYTES
from nl.services.operation_message import client_response, error_from_status, operation_parts

_FILE = b"x" * 100


def _response(*, files: int, digest: bool = True) -> reapi.ExecuteResponse:
    named = reapi.Digest(hash="a" * 64, size_bytes=len(_FILE)) if digest else None
    file = reapi.OutputFile(path="o", digest=named, contents=_FILE)
    return reapi.ExecuteResponse(result=reapi.ActionResult(output_files=[file] * files))


def _done(response: bytes) -> OperationState:
    return OperationState("operations/1", Digest("b" * 64, 1), 1, Stage.COMPLETED, 1, Outcome(response=response))


def test_a_large_response_is_not_looked_into_each_time_that_it_is_shown():
    undecodable = b"\xff" * (MESSAGE_BYTES + 1)
    shown = decode(longrunning.Operation, b"".join(operation_parts(_done(undecodable))))
    assert shown.response is not None
    assert shown.response.value == undecodable


def test_a_response_that_is_too_long_for_clients_is_without_what_it_names_by_digest():
    response = _response(files=40_000)
    assert len(encode(response)) > REPLY_BYTES
    cut = client_response(response)
    assert len(cut) < len(_FILE) * 40_000
    assert all(not each.contents for each in decode(reapi.ExecuteResponse, cut).result.output_files)


def test_a_response_that_fits_stays_as_it_is():
    response = _response(files=3)
    assert client_response(response) == encode(_response(files=3))
    assert client_response(reapi.ExecuteResponse()) == b""


def test_contents_without_a_digest_are_kept_whatever_their_size():
    kept = decode(reapi.ExecuteResponse, client_response(_response(files=60_000, digest=False)))
    assert all(each.contents == _FILE for each in kept.result.output_files)


@pytest.mark.parametrize(
    ("sent", "code"),
    [(5, Code.NOT_FOUND), (14, Code.UNAVAILABLE), (0, Code.UNKNOWN), (2, Code.UNKNOWN), (17, Code.UNKNOWN),
     (-1, Code.UNKNOWN)],
)  # fmt: skip
def test_what_a_peer_reports_is_an_error_whatever_its_code(sent, code):
    error = error_from_status(rpc_status.Status(code=sent, message="what it says"))
    assert (error.code, error.message, error.details) == (code, "what it says", ())


def test_of_the_details_that_a_peer_reports_those_that_are_known_are_kept():
    violation = rpc_status.PreconditionFailureViolation(type="MISSING", subject="blobs/a/1", description="d")
    known = wkt.pack(rpc_status.PreconditionFailure(violations=[violation, violation]))
    other = wkt.pack(reapi.Digest(hash="a"))
    broken = wkt.pack(rpc_status.PreconditionFailure())
    broken.value = b"\xff"
    error = error_from_status(rpc_status.Status(code=9, message="m", details=[other, broken, known]))
    assert error.details == (Violation("MISSING", "blobs/a/1", "d"),) * 2


def test_an_operation_says_where_it_is_and_an_error_is_in_its_response():
    failed = Outcome(error=NotFoundError("gone"))
    state = OperationState("main/x", Digest("b" * 64, 7), 9, Stage.COMPLETED, 3, failed, worker_id="w", queued_at=1.5)
    shown = decode(longrunning.Operation, b"".join(operation_parts(state)))
    about = wkt.unpack(shown.metadata, reapi.ExecuteOperationMetadata)
    assert (shown.name, shown.done, shown.error) == ("main/x", True, None)
    assert (about.stage, about.digest_function) == (reapi.ExecutionStageValue.COMPLETED, 9)
    assert (about.action_digest.hash, about.action_digest.size_bytes) == ("b" * 64, 7)
    partial = about.partial_execution_metadata
    assert (partial.worker, partial.queued_timestamp.seconds, partial.queued_timestamp.nanos) == ("w", 1, 500_000_000)
    response = wkt.unpack(shown.response, reapi.ExecuteResponse)
    assert (response.status.code, response.status.message, response.message) == (Code.NOT_FOUND, "gone", "gone")


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_response_is_cut_when_it_is_longer_than_a_reply_may_be(beyond):
    response = reapi.ExecuteResponse(result=reapi.ActionResult(
        stdout_digest=reapi.Digest(hash="a" * 64, size_bytes=1), stdout_raw=b"x" * (REPLY_BYTES - 200)
    ))  # fmt: skip
    response.result.stdout_raw += b"x" * (REPLY_BYTES - len(encode(response)) + beyond)
    assert len(encode(response)) == REPLY_BYTES + beyond
    cut = decode(reapi.ExecuteResponse, client_response(response))
    assert bool(cut.result.stdout_raw) is not bool(beyond)
