"""The rules of the Remote Execution API that implementations commonly get wrong, those of the cache services.

Each test is named after its rule; a foreign client asks our server over a real socket, once per kind of store.
"""

import os

import grpc
import pytest

from nl.stores.completeness_checking import CompletenessCheckingOptions, CompletenessCheckingStore
from nl.testing import BareContext
from tests.support.foreign import (
    AC,
    BYTES,
    BYTESTREAM,
    CAPABILITIES,
    CAS,
    REAPI,
    chunks,
    digest,
    digest3,
    read_name,
    upload_name,
)
from tests.support.serving import Serving, memory_store, serving
from tests.support.stores import filesystem_store

LIMIT = 4 * 1024 * 1024
UNSUPPORTED_COMPRESSORS = (2, 3)


@pytest.fixture(params=["memory", "filesystem"])
async def served(request, tmp_path):
    if request.param == "memory":
        store, results = memory_store(), memory_store()
    else:
        store, results = filesystem_store(tmp_path / "cas"), filesystem_store(tmp_path / "ac")
    async with serving(store=store, results=results) as running:
        yield running


def directory(**children):
    message = REAPI.Directory()
    for name, of in sorted(children.items()):
        message.directories.add(name=name, digest=of)
    return message.SerializeToString(deterministic=True)


async def put_directory(client, **children):
    return await client.put(directory(**children))


async def get_tree(client, root, **fields):
    request = REAPI.GetTreeRequest(root_digest=root, **fields)
    return await client.server_stream(CAS + "GetTree", request, REAPI.GetTreeResponse)


async def fails(code, call):
    with pytest.raises(grpc.RpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return caught.value.details()


@pytest.mark.parametrize("make", [digest, digest3])
async def test_rule_04_empty_blob_is_always_present(served: Serving, make):
    client, empty = served.client, make(b"")
    function = {"digest_function": 9} if make is digest3 else {}
    assert await client.missing([empty], **function) == []
    assert b"".join(await client.read(read_name(empty, function="blake3" if function else ""))) == b""
    [response] = await client.batch_read([empty], **function)
    assert (response.status.code, response.data) == (0, b"")
    [response] = await client.update((empty, b""), **function)
    assert response.status.code == 0
    [page] = await get_tree(client, empty, **function)
    assert [bytes(d.SerializeToString()) for d in page.directories] == [b""]
    assert await client.write(chunks(upload_name(empty, function="blake3" if function else ""), b"", size=1)) == 0


async def test_rule_05_size_is_part_of_the_digest(served: Serving):
    client = served.client
    right = await client.put(b"eight by")
    wrong = REAPI.Digest(hash=right.hash, size_bytes=9)
    assert await client.missing([right, wrong]) == [wrong]
    [response] = await client.batch_read([wrong])
    assert response.status.code == grpc.StatusCode.NOT_FOUND.value[0]
    await fails(grpc.StatusCode.NOT_FOUND, client.read(read_name(wrong)))
    [response] = await client.update((wrong, b"eight by"))
    assert response.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    details = await fails(
        grpc.StatusCode.INVALID_ARGUMENT, client.write(chunks(upload_name(wrong), b"eight by", size=99))
    )
    assert "9" in details
    assert await client.missing([wrong]) == [wrong]


@pytest.mark.parametrize(
    ("hash", "size"),
    [("A" * 64, 3), ("a" * 63, 3), ("a" * 65, 3), ("", 3), ("g" * 64, 3), ("a" * 64, -1), ("../" * 21 + "a", 3)],
)
async def test_rule_06_hash_is_lower_case_hex_of_exact_length_and_size_not_negative(served: Serving, hash, size):
    client, bad = served.client, REAPI.Digest(hash=hash, size_bytes=size)
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    details = await fails(invalid, client.missing([digest(b"x"), bad]))
    assert "blob_digests" in details
    assert (hash or "''") in details or str(size) in details
    good, refused = await client.update((digest(b"good"), b"good"), (bad, b"bad"))
    assert (good.status.code, refused.status.code) == (0, invalid.value[0])
    assert refused.digest == bad
    found, refused = await client.batch_read([digest(b"good"), bad])
    assert (found.data, refused.status.code) == (b"good", invalid.value[0])
    await fails(invalid, client.read(read_name(bad)))
    await fails(invalid, client.write(chunks(upload_name(bad), b"bad", size=99)))
    await fails(invalid, client.status(upload_name(bad)))
    await fails(invalid, get_tree(client, bad))
    for method, request in (
        ("GetActionResult", REAPI.GetActionResultRequest(action_digest=bad)),
        ("UpdateActionResult", REAPI.UpdateActionResultRequest(action_digest=bad, action_result={"exit_code": 1})),
    ):
        await fails(invalid, client.unary(AC + method, request, REAPI.ActionResult))


@pytest.mark.parametrize("size", [5, 64 * 1024, 3 * 1024 * 1024])
@pytest.mark.parametrize("piece", [1024 * 1024, 4 * 1024 * 1024 - 4096])
async def test_rule_07_digest_mismatch_is_invalid_argument(served: Serving, size, piece):
    client, data = served.client, os.urandom(size)
    wrong = digest(data[:-1] + bytes([data[-1] ^ 1]))
    [response] = await client.update((wrong, data))
    assert response.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    details = await fails(
        grpc.StatusCode.INVALID_ARGUMENT, client.write(chunks(upload_name(wrong), data, size=piece))
    )
    assert wrong.hash in details
    assert await client.missing([wrong]) == [wrong]


async def test_rule_07_a_blake3_upload_is_checked_with_blake3(served: Serving):
    client, data = served.client, os.urandom(200_000)
    of = digest3(data)
    [response] = await client.update((of, data))
    assert response.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    await fails(grpc.StatusCode.INVALID_ARGUMENT, client.write(chunks(upload_name(of), data, size=99_999)))
    assert await client.write(chunks(upload_name(of, function="blake3"), data, size=99_999)) == len(data)
    assert await client.missing([of], digest_function=9) == []
    assert b"".join(await client.read(read_name(of, function="blake3"))) == data


@pytest.mark.parametrize("compressor", UNSUPPORTED_COMPRESSORS)
async def test_rule_08_unsupported_compressor_fails_the_blob_and_stores_nothing(served: Serving, compressor):
    client, of = served.client, digest(b"data")
    request = REAPI.BatchUpdateBlobsRequest()
    request.requests.add(digest=of, data=b"data", compressor=compressor)
    request.requests.add(digest=digest(b"plain"), data=b"plain")
    refused, stored = await client.update_request(request)
    assert (refused.status.code, stored.status.code) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], 0)
    assert "compressor" in refused.status.message
    assert await client.missing([of, digest(b"plain")]) == [of]
    for name in (f"compressed-blobs/brotli/{of.hash}/4", f"uploads/u/compressed-blobs/brotli/{of.hash}/4"):
        call = client.write([BYTESTREAM.WriteRequest(resource_name=name)]) if "up" in name else client.read(name)
        assert "brotli" in await fails(grpc.StatusCode.INVALID_ARGUMENT, call)


@pytest.mark.parametrize("size", [1000, 300_000])
async def test_rule_09_read_limit_truncates(served: Serving, size):
    client, data = served.client, os.urandom(size)
    of = digest(data)
    assert await client.write(chunks(upload_name(of), data, size=1 << 20)) == size
    name = read_name(of)
    assert b"".join(await client.read(name, limit=10)) == data[:10]
    assert b"".join(await client.read(name, offset=7, limit=10)) == data[7:17]
    assert b"".join(await client.read(name, offset=size - 5, limit=10)) == data[-5:]
    assert b"".join(await client.read(name, limit=1 << 62)) == data
    assert b"".join(await client.read(name, offset=size)) == b""
    assert b"".join(await client.read(name, offset=size - 1)) == data[-1:]
    assert "beyond" in await fails(grpc.StatusCode.OUT_OF_RANGE, client.read(name, offset=size + 1))
    assert "negative" in await fails(grpc.StatusCode.INVALID_ARGUMENT, client.read(name, offset=-1))
    assert "negative" in await fails(grpc.StatusCode.INVALID_ARGUMENT, client.read(name, limit=-1))


@pytest.mark.parametrize("size", [100, 5 * 1024 * 1024])
async def test_rule_10_an_upload_of_what_is_there_ends_at_once_with_the_full_size(served: Serving, size):
    client, data = served.client, os.urandom(size)
    of = digest(data)
    assert await client.write(chunks(upload_name(of), data, size=1 << 20)) == size
    first = chunks(upload_name(of), data, size=10)[:1]
    assert await client.write(first) == size
    assert await client.status(upload_name(of)) == (size, True)


async def test_rule_11_equal_subtrees_cost_and_are_sent_once(served: Serving):
    client = served.client
    of = digest(b"")
    for _ in range(40):  # 2^40 paths
        of = await put_directory(client, left=of, right=of)
    pages = await get_tree(client, of)
    assert sum(len(page.directories) for page in pages) == 41
    assert pages[-1].next_page_token == ""


async def test_rule_11_tree_pages_are_stable_resumable_and_of_the_size_asked_for(served: Serving):
    client = served.client
    leaves = {f"d{at:02}": await put_directory(client, **{f"x{at}": digest(b"")}) for at in range(20)}
    root = await put_directory(client, **leaves, gone=digest(b"never uploaded"))
    whole = [d for page in await get_tree(client, root) for d in page.directories]
    assert len(whole) == 22  # the missing child is left out
    pages = await get_tree(client, root, page_size=5)
    assert [len(page.directories) for page in pages] == [5, 5, 5, 5, 2]
    assert [d for page in pages for d in page.directories] == whole
    for at, page in enumerate(pages[:-1]):
        rest = await get_tree(client, root, page_size=5, page_token=page.next_page_token)
        assert rest == pages[at + 1 :]
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for token in ("nonsense", "-1", f"{root.hash}-{root.size_bytes + 1}", f"{'0' * 64}-7"):
        assert "page_token" in await fails(invalid, get_tree(client, root, page_token=token))
    await fails(invalid, get_tree(client, root, page_size=-1))
    await fails(grpc.StatusCode.NOT_FOUND, get_tree(client, digest(b"no such root")))
    noise = await client.put(b"\xff\xff not a directory")
    assert noise.hash in await fails(invalid, get_tree(client, noise))


async def test_rule_14_symlink_strategy_is_announced(served: Serving):
    reply = await capabilities(served.client)
    assert reply.cache_capabilities.symlink_absolute_path_strategy == 2  # ALLOWED


async def test_rule_17_node_properties_are_file_metadata(served: Serving):
    reply = await capabilities(served.client, "builds")
    assert list(reply.execution_capabilities.supported_node_properties) == ["mtime", "unix_mode"]


async def test_rule_20_no_message_is_larger_than_clients_accept(served: Serving):
    """The client refuses messages above 4 MiB, so that it gets anything at all is the test."""
    client = served.client
    big = {}
    for at in range(4):  # four directories of 1.5 MiB: never in one page
        message = REAPI.Directory()
        for number in range(15_000):
            message.files.add(name=f"{at}-{number:06}", digest=digest(b""))
        encoded = message.SerializeToString()
        big[f"d{at}"] = digest(encoded)
        await client.write(chunks(upload_name(digest(encoded)), encoded, size=1 << 20))
    root = await put_directory(client, **big)
    pages = await get_tree(client, root)
    assert sum(len(page.directories) for page in pages) == 5
    assert len(pages) > 1
    assert all(page.ByteSize() < LIMIT for page in pages)
    blob = os.urandom(9 * 1024 * 1024)
    await client.write(chunks(upload_name(digest(blob)), blob, size=1 << 20))
    messages = await client.read(read_name(digest(blob)))
    assert b"".join(messages) == blob
    assert max(map(len, messages)) <= 1 << 20
    await fails(grpc.StatusCode.INVALID_ARGUMENT, client.batch_read([digest(b"absent")] * 50_000))


async def test_rule_20_a_batch_that_fills_a_message_is_taken_and_one_beyond_is_not(served: Serving):
    client = served.client
    announced = (await capabilities(client)).cache_capabilities.max_batch_total_size_bytes
    most = LIMIT - 64 * 1024
    data = os.urandom(most)
    await client.put(data)
    half = (most + 2) // 2
    one, other = data[:half], data[half - 2 :]
    details = await fails(
        grpc.StatusCode.INVALID_ARGUMENT, client.update((digest(one), one), (digest(other), other + b"x" * 9))
    )
    assert str(announced) in details
    assert await client.missing([digest(one)]) == [digest(one)]


async def test_rule_20_what_is_inlined_stays_within_a_message(served: Serving):
    client, output = served.client, os.urandom(900_000)
    await client.put(output)
    result = REAPI.ActionResult(stdout_digest=digest(output), stderr_digest=digest(output))
    result.output_files.add(path="a", digest=digest(b"small"))
    result.output_files.add(path="b", digest=digest(b"absent"))
    await client.put(b"small")
    await update_result(client, b"action", result)
    assert await get_result(client, b"action") == result
    inlined = await get_result(
        client, b"action", inline_stdout=True, inline_stderr=True, inline_output_files=["a", "b", "no such output"]
    )
    assert inlined.stdout_raw == output
    assert inlined.stderr_raw == b""  # does not fit any more
    assert [file.contents for file in inlined.output_files] == [b"small", b""]
    assert inlined.stdout_digest == digest(output)
    assert [file.digest for file in inlined.output_files] == [digest(b"small"), digest(b"absent")]


async def test_rule_20_outputs_that_are_gone_take_no_room_from_those_that_are_inlined(served: Serving):
    client, output, gone = served.client, os.urandom(900_000), digest(os.urandom(900_000))
    await client.put(output)
    result = REAPI.ActionResult(stdout_digest=gone, stderr_digest=gone)
    result.output_files.add(path="a", digest=digest(output))
    await update_result(client, b"action", result)
    inlined = await get_result(client, b"action", inline_stdout=True, inline_stderr=True, inline_output_files=["a"])
    assert (inlined.stdout_raw, inlined.stderr_raw) == (b"", b"")
    assert [file.contents for file in inlined.output_files] == [output]


UNKNOWN = "moon-outputs"
_DIGEST = digest(b"x")
EVERY_CALL = [
    (CAPABILITIES, REAPI.GetCapabilitiesRequest(instance_name=UNKNOWN)),
    (CAS + "FindMissingBlobs", REAPI.FindMissingBlobsRequest(instance_name=UNKNOWN)),
    (CAS + "BatchUpdateBlobs", REAPI.BatchUpdateBlobsRequest(instance_name=UNKNOWN)),
    (CAS + "BatchReadBlobs", REAPI.BatchReadBlobsRequest(instance_name=UNKNOWN)),
    (CAS + "GetTree", REAPI.GetTreeRequest(instance_name=UNKNOWN, root_digest=_DIGEST)),
    (CAS + "SplitBlob", REAPI.SplitBlobRequest(instance_name=UNKNOWN)),
    (CAS + "SpliceBlob", REAPI.SpliceBlobRequest(instance_name=UNKNOWN)),
    (BYTES + "Read", BYTESTREAM.ReadRequest(resource_name=read_name(_DIGEST, instance=UNKNOWN))),
    (BYTES + "Write", BYTESTREAM.WriteRequest(resource_name=upload_name(_DIGEST, instance=UNKNOWN), data=b"x",
                                              finish_write=True)),
    (BYTES + "QueryWriteStatus",
     BYTESTREAM.QueryWriteStatusRequest(resource_name=upload_name(_DIGEST, instance=UNKNOWN))),
    (AC + "GetActionResult", REAPI.GetActionResultRequest(instance_name=UNKNOWN, action_digest=_DIGEST)),
    (AC + "UpdateActionResult",
     REAPI.UpdateActionResultRequest(instance_name=UNKNOWN, action_digest=_DIGEST, action_result={})),
]  # fmt: skip


@pytest.mark.parametrize(("method", "request_message"), EVERY_CALL, ids=[method for method, _ in EVERY_CALL])
async def test_rule_23_unknown_instance_is_not_found_everywhere(served: Serving, method, request_message):
    """Any shape of call may be asked through a bidirectional one: on the wire they are alike."""
    details = await fails(grpc.StatusCode.NOT_FOUND, served.client.bidi(method, [request_message], REAPI.Digest))
    assert "unknown instance name 'moon-outputs'" in details
    assert "'main'" in details


async def test_rule_23_capabilities_are_those_of_the_instance(served: Serving):
    client = served.client
    plain, locked, builds = [await capabilities(client, name) for name in ("", "locked", "builds")]
    assert plain.cache_capabilities.action_cache_update_capabilities.update_enabled
    assert not locked.cache_capabilities.action_cache_update_capabilities.update_enabled
    assert not plain.HasField("execution_capabilities")
    assert builds.execution_capabilities.exec_enabled
    assert builds.execution_capabilities.digest_function == 1
    assert list(builds.execution_capabilities.digest_functions) == [1, 9]
    assert list(plain.cache_capabilities.digest_functions) == [1, 9]
    assert list(plain.cache_capabilities.supported_compressors) == []
    assert list(plain.cache_capabilities.supported_batch_update_compressors) == []
    assert not plain.cache_capabilities.split_blob_support
    assert (plain.low_api_version.major, plain.low_api_version.minor) == (2, 0)
    assert plain.high_api_version.major == 2
    assert plain.high_api_version.minor >= 3


async def test_rule_23_an_instance_name_of_several_segments_works_everywhere(served: Serving):
    client, data = served.client, b"of an instance"
    of = digest(data)
    assert await client.write(chunks(upload_name(of, instance="a/b/c"), data, size=99)) == len(data)
    assert await client.missing([of], instance_name="a/b/c") == []
    assert b"".join(await client.read(read_name(of, instance="a/b/c"))) == data
    assert b"".join(await client.read("/" + read_name(of))) == data


async def test_rule_24_a_refused_update_is_permission_denied(served: Serving):
    details = await fails(
        grpc.StatusCode.PERMISSION_DENIED,
        update_result(served.client, b"action", REAPI.ActionResult(exit_code=1), instance_name="locked"),
    )
    assert "read-only" in details
    await fails(grpc.StatusCode.NOT_FOUND, get_result(served.client, b"action"))


async def test_rule_25_priority_ranges_are_announced(served: Serving):
    reply = await capabilities(served.client, "builds")
    [cache] = reply.cache_capabilities.cache_priority_capabilities.priorities
    assert (cache.min_priority, cache.max_priority) == (0, 0)
    [execution] = reply.execution_capabilities.execution_priority_capabilities.priorities
    assert execution.min_priority < 0 < execution.max_priority


async def capabilities(client, instance=""):
    request = REAPI.GetCapabilitiesRequest(instance_name=instance)
    return await client.unary(CAPABILITIES, request, REAPI.ServerCapabilities)


async def update_result(client, action, result, **fields):
    request = REAPI.UpdateActionResultRequest(action_digest=digest(action), action_result=result, **fields)
    return await client.unary(AC + "UpdateActionResult", request, REAPI.ActionResult)


async def get_result(client, action, **fields):
    request = REAPI.GetActionResultRequest(action_digest=digest(action), **fields)
    return await client.unary(AC + "GetActionResult", request, REAPI.ActionResult)


@pytest.mark.parametrize("gone", ["output", "tree", "file of the tree", "stdout", "stderr", "nothing"])
async def test_rule_21_a_hit_without_its_outputs_is_a_miss(gone):
    blobs = {name: f"the {name}".encode() for name in ("output", "file of the tree", "stdout", "stderr")}
    tree = REAPI.Tree()
    tree.root.files.add(name="x", digest=digest(blobs["file of the tree"]))
    blobs["tree"] = tree.SerializeToString()
    result = REAPI.ActionResult(stdout_digest=digest(blobs["stdout"]), stderr_digest=digest(blobs["stderr"]))
    result.output_files.add(path="o", digest=digest(blobs["output"]))
    result.output_directories.add(path="t", tree_digest=digest(blobs["tree"]))
    cas = memory_store()
    async with serving(store=cas, results=complete_results(cas)) as served:
        await update_result(served.client, b"action", result)
        for name, data in blobs.items():
            if name != gone:
                await served.client.put(data)
        if gone == "nothing":
            assert await get_result(served.client, b"action") == result
        else:
            await fails(grpc.StatusCode.NOT_FOUND, get_result(served.client, b"action"))
            await served.client.put(blobs[gone])
            assert await get_result(served.client, b"action") == result


async def test_rule_12_and_15_a_result_whose_tree_is_damaged_or_malformed_is_a_miss():
    tree = REAPI.Tree()
    tree.root.files.add(name="../x", digest=REAPI.Digest(hash="A" * 64, size_bytes=1))
    cas = memory_store()
    async with serving(store=cas, results=complete_results(cas)) as served:
        for number, blob in enumerate((tree.SerializeToString(), b"\xff no tree")):
            result = REAPI.ActionResult()
            result.output_directories.add(path="t", tree_digest=await served.client.put(blob))
            await update_result(served.client, b"action %d" % number, result)
            await fails(grpc.StatusCode.NOT_FOUND, get_result(served.client, b"action %d" % number))


async def test_an_action_cache_maps_any_digest_to_any_result(served: Serving):
    """The action itself is never looked at, results may be empty or carry fields that nobody here knows."""
    client = served.client
    for action, result in ((b"1", REAPI.ActionResult()), (b"2", REAPI.ActionResult(exit_code=-1))):
        assert await update_result(client, action, result) == result
        assert await get_result(client, action) == result
    strange = REAPI.ActionResult.FromString(b"\xf2\x3f\x05later")
    assert await update_result(client, b"3", strange) == strange
    assert (await get_result(client, b"3")).SerializeToString() == b"\xf2\x3f\x05later"
    assert await client.missing([digest(b"1")]) == [digest(b"1")]


@pytest.mark.parametrize("instance", ["main", "a/b/c"])
async def test_instances_of_one_store_share_it(served: Serving, instance):
    of = await served.client.put(b"shared", instance_name=instance)
    assert await served.client.missing([of]) == []
    assert [r.data for r in await served.client.batch_read([of], instance_name=instance)] == [b"shared"]


async def test_missing_digests_come_in_the_order_asked_with_what_they_said(served: Serving):
    client = served.client
    there = [await client.put(b"%d" % number) for number in range(0, 300, 3)]
    asked = [digest(b"%d" % number) for number in range(300)]
    expected = [of for of in asked if of not in there]
    assert await client.missing(asked) == expected
    assert await client.missing([*asked, *asked]) == [*expected, *expected]
    assert await client.missing(asked, digest_function=1) == expected


async def test_a_batch_answers_in_the_order_asked_also_for_duplicates(served: Serving):
    client = served.client
    blobs = [b"%d" % (number % 7) * (number % 5 * 3000) for number in range(40)]
    responses = await client.update(*[(digest(data), data) for data in blobs])
    assert [response.digest for response in responses] == [digest(data) for data in blobs]
    assert {response.status.code for response in responses} == {0}
    asked = [digest(data) for data in (*blobs, b"absent", *blobs)]
    responses = await client.batch_read(asked)
    assert [response.digest for response in responses] == asked
    assert [response.data for response in responses] == [*blobs, b"", *blobs]
    assert [response.status.code for response in responses if response.status.code] == [5]
    assert await client.update() == []
    assert await client.batch_read([]) == []


def complete_results(cas):
    context = BareContext()
    options = CompletenessCheckingOptions(backend=context.spec(memory_store()), cas_store=context.spec(cas))
    return CompletenessCheckingStore(options, context)
