"""The caller's fault is answered as the caller's: one right status for each malformed call to the cache services."""

import grpc
import pytest

from tests.support.foreign import AC, BYTES, BYTESTREAM, CAPABILITIES, CAS, HEALTH, REAPI, RPC, digest, read_name
from tests.support.serving import Serving, serving

OF = digest(b"x")
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def served():
    async with serving() as running:
        yield running


async def fails(code, call):
    with pytest.raises(grpc.RpcError) as caught:
        await call
    assert caught.value.code() is code, (caught.value.code(), caught.value.details())
    return caught.value.details()


METHODS = [
    CAPABILITIES, CAS + "FindMissingBlobs", CAS + "BatchUpdateBlobs", CAS + "BatchReadBlobs", CAS + "GetTree",
    CAS + "SplitBlob", CAS + "SpliceBlob", BYTES + "Read", BYTES + "QueryWriteStatus", AC + "GetActionResult",
    AC + "UpdateActionResult", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_without_its_message_is_an_invalid_argument(served: Serving, method):
    assert method in await fails(INVALID, served.client.bidi(method, [], RPC.Status))


@pytest.mark.parametrize("method", [*METHODS, BYTES + "Write"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(served: Serving, method):
    await fails(INVALID, served.client.bidi(method, [b"\x0a\xff"], RPC.Status))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (CAS + "GetTree", REAPI.GetTreeRequest()),
        (AC + "GetActionResult", REAPI.GetActionResultRequest()),
        (AC + "UpdateActionResult", REAPI.UpdateActionResultRequest(action_result={"exit_code": 1})),
        (AC + "UpdateActionResult", REAPI.UpdateActionResultRequest(action_digest=OF)),
    ],
)
async def test_a_field_that_is_needed_and_not_set_is_named(served: Serving, method, message):
    assert "is not set" in await fails(INVALID, served.client.bidi(method, [message], RPC.Status))


async def test_a_batch_entry_without_digest_fails_alone(served: Serving):
    request = REAPI.BatchUpdateBlobsRequest()
    request.requests.add(data=b"x")
    request.requests.add(digest=OF, data=b"x")
    without, stored = await served.client.update_request(request)
    assert (without.status.code, stored.status.code) == (INVALID.value[0], 0)
    assert "not set" in without.status.message


@pytest.mark.parametrize("function", [2, 3, 4, 5, 6, 7, 8, 10, 99, -1])
@pytest.mark.parametrize(
    ("method", "request_type", "fields"),
    [
        (CAS + "FindMissingBlobs", "FindMissingBlobsRequest", {}),
        (CAS + "BatchUpdateBlobs", "BatchUpdateBlobsRequest", {}),
        (CAS + "BatchReadBlobs", "BatchReadBlobsRequest", {}),
        (CAS + "GetTree", "GetTreeRequest", {"root_digest": OF}),
        (AC + "GetActionResult", "GetActionResultRequest", {"action_digest": OF}),
        (AC + "UpdateActionResult", "UpdateActionResultRequest", {"action_digest": OF, "action_result": {}}),
    ],
)
async def test_a_digest_function_that_is_not_spoken_is_an_invalid_argument(
    served: Serving, method, request_type, fields, function
):
    message = getattr(REAPI, request_type)(digest_function=function, **fields)
    details = await fails(INVALID, served.client.bidi(method, [message], RPC.Status))
    assert f"digest function {function} is not supported" in details


@pytest.mark.parametrize(
    "name",
    ["", "blobs", f"blobs/{OF.hash}", f"blobs/{OF.hash}/x", f"blobs/{OF.hash}/-1", f"blobs/{OF.hash.upper()}/1",
     f"../blobs/{OF.hash}/1", f"blobs/../../{OF.hash}/1", f"blobs/sha1/{OF.hash}/1", f"uploads/u/blobs/{OF.hash}/1",
     f"blobs/{OF.hash}/{1 << 63}", f"blobs/{OF.hash}/{'9' * 10_000}", "%2e%2e/blobs", "\0"],
)  # fmt: skip
async def test_a_malformed_resource_name_is_an_invalid_argument(served: Serving, name):
    assert "resource name" in await fails(INVALID, served.client.read(name))


async def test_a_blob_that_is_not_there_is_not_found_and_named(served: Serving):
    assert OF.hash in await fails(NOT_FOUND, served.client.read(read_name(OF)))
    large = REAPI.Digest(hash=OF.hash, size_bytes=1 << 62)
    assert OF.hash in await fails(NOT_FOUND, served.client.read(read_name(large)))
    [response] = await served.client.batch_read([OF])
    assert response.status.code == NOT_FOUND.value[0]
    assert OF.hash in response.status.message
    request = REAPI.GetActionResultRequest(action_digest=OF)
    assert OF.hash in await fails(NOT_FOUND, served.client.unary(AC + "GetActionResult", request, REAPI.ActionResult))


async def test_what_is_not_offered_is_unimplemented(served: Serving):
    for method, request in (("SplitBlob", REAPI.SplitBlobRequest()), ("SpliceBlob", REAPI.SpliceBlobRequest())):
        await fails(grpc.StatusCode.UNIMPLEMENTED, served.client.unary(CAS + method, request, RPC.Status))
    await fails(grpc.StatusCode.UNIMPLEMENTED, served.client.unary(CAS + "NoSuchMethod", OF, RPC.Status))


async def test_a_message_over_the_limit_is_resource_exhausted(served: Serving):
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    huge = b"x" * (5 * 1024 * 1024)
    await fails(exhausted, served.client.update((digest(huge), huge + huge)))
    name = f"uploads/u/blobs/{digest(huge).hash}/{len(huge)}"
    message = BYTESTREAM.WriteRequest(resource_name=name, data=huge, finish_write=True)
    assert "max_decoding_message_size" in await fails(exhausted, served.client.write([message]))


async def test_health_of_an_unknown_service_is_not_found(served: Serving):
    request = HEALTH.HealthCheckRequest(service="no.such.Service")
    await fails(NOT_FOUND, served.client.unary("/grpc.health.v1.Health/Check", request, HEALTH.HealthCheckResponse))
