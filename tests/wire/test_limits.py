"""Limits that clients meet: what is announced works, whatever the blobs are like, and what is kept can be read."""

import os

import grpc
import pytest

from nl.cas.action_results import MAX_ACTION_RESULT_BYTES, seal
from nl.model.digest import ActionKey
from nl.stores.completeness_checking import CompletenessCheckingOptions, CompletenessCheckingStore
from nl.testing import BareContext
from tests.support.foreign import AC, CAPABILITIES, REAPI, connect, digest
from tests.support.serving import memory_store, serving
from tests.support.stores import filesystem_store

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
MIB = 1024 * 1024


@pytest.fixture
async def served():
    async with serving() as running:
        yield running


@pytest.fixture(params=["memory", "filesystem"])
async def served_from(request, tmp_path):
    """How large values are handed out is a matter of the store."""
    store = memory_store() if request.param == "memory" else filesystem_store(tmp_path / "cas")
    results = memory_store() if request.param == "memory" else filesystem_store(tmp_path / "ac")
    async with serving(store=store, results=results) as running:
        yield running


async def announced(client):
    capabilities = await client.unary(CAPABILITIES, REAPI.GetCapabilitiesRequest(), REAPI.ServerCapabilities)
    return capabilities.cache_capabilities.max_batch_total_size_bytes


async def fails(code, call):
    with pytest.raises(grpc.RpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return caught.value.details()


def cut(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [90, 1000, 100_000, 1 << 30])
async def test_blobs_that_together_have_what_is_announced_are_taken_and_given_in_one_batch_each(served, size):
    client = served.client
    total = await announced(client)
    assert total >= 2 * MIB
    blobs = cut(os.urandom(total), size)
    named = [(digest(blob), blob) for blob in blobs]
    assert [each.status.code for each in await client.update(*named)] == [0] * len(blobs)
    assert await client.missing([of for of, _ in named]) == []
    read = await client.batch_read([of for of, _ in named])
    assert [each.data for each in read] == blobs
    assert {each.status.code for each in read} == {0}


async def test_a_batch_read_of_more_gets_what_fits_into_a_message_and_a_status_for_each_of_the_rest(served):
    client = served.client
    blobs = [os.urandom(MIB) for _ in range(6)] + [b"small"]
    for blob in blobs:
        await client.put(blob)
    read = await client.batch_read([digest(blob) for blob in blobs])
    codes = [each.status.code for each in read]
    assert codes == [0, 0, 0, EXHAUSTED.value[0], EXHAUSTED.value[0], EXHAUSTED.value[0], 0]
    assert [each.data for each in read if not each.status.code] == [*blobs[:3], b"small"]
    assert [each.digest for each in read] == [digest(blob) for blob in blobs]
    assert digest(blobs[3]).hash in read[3].status.message


async def test_a_blob_larger_than_any_batch_is_refused_alone(served):
    of = REAPI.Digest(hash="0" * 64, size_bytes=1 << 40)
    small = await served.client.put(b"small")
    read = await served.client.batch_read([of, small])
    assert [each.status.code for each in read] == [EXHAUSTED.value[0], 0]


async def test_digests_of_any_length_make_no_reply_that_clients_refuse(served):
    long = [REAPI.Digest(hash="z" * 100_000, size_bytes=1) for _ in range(39)]
    blob = await served.client.put(os.urandom(2 * MIB))
    details = await fails(grpc.StatusCode.INVALID_ARGUMENT, served.client.batch_read([*long, blob]))
    assert "do not fit" in details


async def test_sixteen_mebibytes_of_digests_can_be_asked_about(served):
    digests = [REAPI.Digest(hash=f"{at:064x}", size_bytes=at) for at in range(232_000)]
    request = REAPI.FindMissingBlobsRequest(blob_digests=digests)
    assert 15.9 * MIB < request.ByteSize() < 16 * MIB
    stored = await served.client.put(b"here")
    async with connect(served.port, **{"grpc.max_receive_message_length": -1}) as client:
        assert await client.missing([stored, *digests]) == digests
    request.blob_digests.extend(digests[:5000])
    details = await fails(EXHAUSTED, served.client.missing(request.blob_digests))
    assert "max_decoding_message_size" in details


def result_of(size):
    """An ActionResult of exactly `size` bytes: many output files, and as much as is then left on stdout."""
    result = REAPI.ActionResult()
    for at in range(size // 1300):
        result.output_files.add(path=f"{'p' * 1000}{at:06}", digest=REAPI.Digest(hash=f"{at:064x}", size_bytes=1 << 20))
    left = size - result.ByteSize()
    assert left > 1 << 21
    result.stdout_raw = b"x" * (left - 1 - 4)  # its tag and its length
    assert result.ByteSize() == size
    return result


def large_client(served):
    return connect(served.port, **{"grpc.max_receive_message_length": -1})


def update(client, action, result):
    request = REAPI.UpdateActionResultRequest(action_digest=digest(action), action_result=result)
    return client.unary(AC + "UpdateActionResult", request, REAPI.ActionResult)


def get(client, action, **fields):
    request = REAPI.GetActionResultRequest(action_digest=digest(action), **fields)
    return client.unary(AC + "GetActionResult", request, REAPI.ActionResult)


async def test_the_largest_action_result_is_kept_and_read_and_one_byte_more_is_not_stored(served_from):
    largest = result_of(MAX_ACTION_RESULT_BYTES)
    async with large_client(served_from) as client:
        for reply in (
            await update(client, b"a", largest),
            await get(client, b"a"),
            await get(client, b"a", inline_output_files=["no such file"]),
        ):
            assert (reply == largest) is True  # pytest would explain a difference for minutes
        largest.stdout_raw += b"y"
        details = await fails(EXHAUSTED, update(client, b"b", largest))
        assert (digest(b"b").hash in details, str(MAX_ACTION_RESULT_BYTES) in details) == (True, True)
        await fails(NOT_FOUND, get(client, b"b"))


async def test_a_large_result_is_a_hit_only_while_its_outputs_are_there():
    cas, context = memory_store(), BareContext()
    options = CompletenessCheckingOptions(backend=context.spec(memory_store()), cas_store=context.spec(cas))
    results = CompletenessCheckingStore(options, context)
    result = REAPI.ActionResult(stdout_raw=b"x" * (6 * MIB), stderr_digest=digest(b"printed"))
    async with serving(store=cas, results=results) as served, large_client(served) as client:
        await update(client, b"a", result)
        await fails(NOT_FOUND, get(client, b"a"))
        await client.put(b"printed")
        assert await get(client, b"a") == result
        key = ActionKey(digest(b"a").hash, digest(b"a").size_bytes)
        assert None not in await results.has([key])


async def test_a_result_too_large_for_most_clients_comes_without_contents_that_it_also_names(served):
    content = b"x" * (5 * MIB)
    result = REAPI.ActionResult(exit_code=3, stdout_raw=content, stdout_digest=digest(content))
    result.output_files.add(path="a", digest=digest(b"a"), contents=b"a")
    result.output_files.add(path="b", contents=b"only here")
    lean = REAPI.ActionResult(exit_code=3, stdout_digest=digest(content))
    lean.output_files.add(path="a", digest=digest(b"a"))
    lean.output_files.add(path="b", contents=b"only here")
    assert await update(served.client, b"action", result) == lean
    assert await get(served.client, b"action") == lean


STORED = {
    "too large": seal(b"") + b"\x82\x01" * (MAX_ACTION_RESULT_BYTES // 2 + 1),
    "cut": seal(REAPI.ActionResult(exit_code=3, stdout_raw=b"x" * (5 * MIB)).SerializeToString())[:-1],
    "not a result": b"\x12\x05zz",
    "not a result, and large": b"\x12\xff\xff\xff\x7f" + b"z" * (5 * MIB),
}


@pytest.mark.parametrize("value", STORED.values(), ids=STORED.keys())
async def test_a_stored_result_that_cannot_be_read_is_a_miss_with_a_line_in_the_log(served_from, value, caplog):
    of = digest(b"action")
    await served_from.results.put(ActionKey(of.hash, of.size_bytes), value)
    async with large_client(served_from) as client:
        assert of.hash in await fails(NOT_FOUND, get(client, b"action"))
    [line] = [record for record in caplog.records if "counts as a miss" in record.message]
    assert (line.levelname, of.hash in line.getMessage()) == ("WARNING", True)
