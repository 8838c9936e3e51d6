"""How operations look on the wire: what must not cost anything each time that one is shown, and what is left out."""

from __future__ import annotations

from nl.model.digest import Digest
from nl.model.execution import OperationState, Outcome, Stage
from nl.pb import longrunning, reapi
from nl.pb.codec import decode, encode
from nl.services.limits import MESSAGE_BYTES, REPLY_BYTES
from nl.services.operation_message import client_response, operation_parts

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
