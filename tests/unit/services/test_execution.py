import logging
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from nl.cas.action_results import store_action_result
from nl.cas.completeness import Completeness
from nl.errors import Code, InvalidRequestError, NotFoundError, PreconditionError
from nl.model.digest import ActionKey, Digest
from nl.pb import longrunning, reapi, rpc_status, wkt
from nl.pb.codec import decode, encode
from nl.services.execution import cache_lookup
from nl.storage.contract import MAX_WHOLE
from tests.unit.services.execution_support import digest_of, house, metadata_of, response_of, result_for, wire
from tests.unit.services.memory_stream import call, calling

STAGE = reapi.ExecutionStageValue
RESPONSE = reapi.ExecuteResponse(result=reapi.ActionResult(exit_code=3, stdout_raw=b"out"))


async def test_execute_streams_the_stages_and_ends_with_the_response():
    async with house() as at:
        request = await at.action()
        async with at.executing(request) as stream:
            first = await stream.receive()
            assert first.name.startswith("main/")
            assert not first.done
            assert metadata_of(first).stage == STAGE.QUEUED
            assert metadata_of(first).action_digest == request.action_digest
            assert metadata_of(first).digest_function == reapi.DigestFunctionValue.SHA256
            assert metadata_of(first).partial_execution_metadata.queued_timestamp.seconds > 1_600_000_000
            async with at.worker(prefix="w") as worker:
                start = (await worker.receive()).start_action
                running = await stream.receive()
                assert metadata_of(running).stage == STAGE.EXECUTING
                assert metadata_of(running).partial_execution_metadata.worker == worker.id
                await worker.stream.send(result_for(start.operation_id, RESPONSE))
                last = await stream.receive()
            assert last.done
            assert last.error is None
            assert metadata_of(last).stage == STAGE.COMPLETED
            assert response_of(last) == RESPONSE
            assert await stream.receive() is None
            assert {first.name} == {running.name, last.name}


async def test_an_unchanged_state_is_sent_again_so_that_proxies_do_not_cut(autojump_clock):
    async with house() as at, at.executing(await at.action()) as stream:
        first = await stream.receive()
        began = trio.current_time()
        for beat in range(1, 4):
            assert await stream.receive() == first
            assert trio.current_time() - began == 20 * beat


async def test_a_dropped_stream_is_taken_up_again_with_wait_execution():
    async with house() as at:
        async with at.executing(await at.action()) as stream:
            name = (await stream.receive()).name
        wait = reapi.WaitExecutionRequest(name=name)
        async with calling(at.execution, "WaitExecution", wait) as again, at.worker() as worker:
            assert (await again.receive()).name == name
            start = (await worker.receive()).start_action
            await worker.stream.send(result_for(start.operation_id, RESPONSE))
            while not (operation := await again.receive()).done:
                pass
            assert response_of(operation) == RESPONSE
        [late] = await call(at.execution, "WaitExecution", wait)
        assert response_of(late) == RESPONSE


@pytest.mark.parametrize("name", ["", "main/", "main/unknown", "elsewhere/x", "x", "/", "main/a/b"])
async def test_waiting_for_an_unknown_operation_is_not_found(name):
    async with house() as at:
        with pytest.raises(NotFoundError, match="not found"):
            await call(at.execution, "WaitExecution", reapi.WaitExecutionRequest(name=name))


async def test_a_cached_result_is_found_without_a_worker():
    async with house(cached=True) as at:
        request = await at.action()
        result = reapi.ActionResult(exit_code=0, stdout_raw=b"from before")
        digest = Digest(request.action_digest.hash, request.action_digest.size_bytes)
        await store_action_result(at.cache, digest, encode(result))
        last = (await at.execute(request))[-1]
        assert response_of(last).cached_result
        assert response_of(last).result.stdout_raw == b"from before"
        request.skip_cache_lookup = True
        async with at.executing(request) as stream:
            assert metadata_of(await stream.receive()).stage == STAGE.QUEUED


async def test_actions_that_are_not_to_be_cached_are_not_looked_up():
    async with house(cached=True) as at:
        request = await at.action(action={"do_not_cache": True})
        digest = Digest(request.action_digest.hash, request.action_digest.size_bytes)
        await store_action_result(at.cache, digest, encode(reapi.ActionResult(exit_code=1)))
        async with at.executing(request) as stream:
            assert metadata_of(await stream.receive()).stage == STAGE.QUEUED


async def test_a_damaged_cached_result_is_a_miss(caplog):
    async with house(cached=True) as at:
        request = await at.action()
        digest = Digest(request.action_digest.hash, request.action_digest.size_bytes)
        await store_action_result(at.cache, digest, encode(reapi.ActionResult(stdout_raw=b"x" * 50)))
        key = ActionKey(digest.hash, digest.size)
        stored = bytearray(await at.cache.get(key))
        stored[-1] ^= 1
        await at.cache.put(key, bytes(stored))
        async with at.executing(request) as stream:
            assert metadata_of(await stream.receive()).stage == STAGE.CACHE_CHECK
            assert metadata_of(await stream.receive()).stage == STAGE.QUEUED
    assert "counts as a miss" in caplog.text


async def test_a_missing_action_is_a_violation_that_clients_can_mend():
    async with house() as at:
        gone = digest_of(b"never uploaded")
        with pytest.raises(PreconditionError) as got:
            await at.execute(reapi.ExecuteRequest(instance_name="main", action_digest=wire(gone)))
        [violation] = got.value.details
        assert (violation.type, violation.subject) == ("MISSING", f"blobs/{gone.hash}/{gone.size}")


async def test_command_and_input_root_are_reported_missing_together():
    async with house() as at:
        command, root = digest_of(b"command"), digest_of(b"root")
        action = await at.put(reapi.Action(command_digest=wire(command), input_root_digest=wire(root)))
        request = reapi.ExecuteRequest(instance_name="main", action_digest=wire(action))
        with pytest.raises(PreconditionError) as got:
            await at.execute(request)
        assert [(each.type, each.subject) for each in got.value.details] == [
            ("MISSING", f"blobs/{command.hash}/{command.size}"),
            ("MISSING", f"blobs/{root.hash}/{root.size}"),
        ]
        request.digest_function = reapi.DigestFunctionValue.BLAKE3
        with pytest.raises(PreconditionError) as got:
            await at.execute(request)
        assert got.value.details[0].subject == f"blobs/blake3/{action.hash}/{action.size}"  # as which it is not there


async def change_function(at, request):
    request.digest_function = reapi.DigestFunctionValue.MD5


async def change_hash(at, request):
    request.action_digest.hash = request.action_digest.hash.upper()


async def drop_digest(at, request):
    request.action_digest = None


async def negative_size(at, request):
    request.action_digest.size_bytes = -1


async def not_an_action(at, request):
    data = b"\xff\xff\xff this is no protobuf"
    await at.cas.put(digest_of(data), data)
    request.action_digest = wire(digest_of(data))


async def action_without_digests(at, request):
    request.action_digest = wire(await at.put(reapi.Action(salt=b"x")))


async def nothing_to_run(at, request):
    request.action_digest = (await at.action(command=reapi.Command(working_directory="x"))).action_digest


async def strange_node_property(at, request):
    command = reapi.Command(arguments=["x"], output_node_properties=["mtime", "colour"])
    request.action_digest = (await at.action(command=command)).action_digest


async def too_long(at, request):
    request.action_digest = (await at.action(action={"timeout": wkt.Duration(seconds=601)})).action_digest


async def negative_timeout(at, request):
    request.action_digest = (await at.action(action={"timeout": wkt.Duration(seconds=-1)})).action_digest


async def unknown_property(at, request):
    request.action_digest = (await at.action(properties=[("shoe-size", "44")])).action_digest


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (change_function, "digest function"),
        (change_hash, "action_digest: invalid digest hash"),
        (drop_digest, "action_digest: the digest is not set"),
        (negative_size, "invalid digest size -1"),
        (not_an_action, "is not a Action"),
        (action_without_digests, "Action.command_digest: the digest is not set"),
        (nothing_to_run, "arguments is empty"),
        (strange_node_property, "'colour'"),
        (too_long, "601 s is above what the workers allow: at most 600 s"),
        (negative_timeout, "negative"),
        (unknown_property, "'shoe-size'"),
    ],
)
async def test_what_no_upload_could_mend_is_an_invalid_argument(spoil, text):
    async with house() as at, at.worker(max_timeout_s=600):
        request = await at.action()
        await spoil(at, request)
        with pytest.raises(InvalidRequestError, match=text):
            await at.execute(request)
        assert at.scheduler.statistics()["operations"] == 0


async def test_an_unknown_instance_is_not_found_by_name():
    async with house() as at:
        request = await at.action()
        request.instance_name = "other"
        with pytest.raises(NotFoundError, match="unknown instance name 'other'"):
            await at.execute(request)


async def test_a_call_without_a_request_is_an_invalid_argument():
    async with house() as at:
        with pytest.raises(InvalidRequestError):
            await call(at.execution, "Execute")


async def test_platform_priority_and_limits_reach_the_scheduler():
    async with house(supported_platform_properties={"a": "exact", "b": "exact"}) as at:
        properties = [("b", "2"), ("a", "1")]
        request = await at.action(
            properties=properties, action={"timeout": wkt.Duration(seconds=5), "do_not_cache": True}
        )
        request.execution_policy = reapi.ExecutionPolicy(priority=-7)
        request.skip_cache_lookup = True
        async with at.executing(request) as stream:
            await stream.receive()
            [operation] = at.scheduler.operations()
            seen = operation.execution.request
    assert seen.platform == (("a", "1"), ("b", "2"))
    assert seen.priority == -7
    assert seen.timeout_s == 5
    assert seen.do_not_cache
    assert seen.skip_cache_lookup
    assert seen.instance_name == "main"


async def test_old_clients_put_the_platform_into_the_command():
    async with house() as at:
        platform = reapi.Platform(properties=[reapi.PlatformProperty(name="OSFamily", value="linux")])
        request = await at.action(command=reapi.Command(arguments=["x"], platform=platform))
        async with at.executing(request) as stream:
            await stream.receive()
            assert at.scheduler.operations()[0].execution.request.platform == (("OSFamily", "linux"),)


@pytest.mark.parametrize(
    "header",
    [
        "build.bazel.remote.execution.v2.requestmetadata-bin",
        "google.devtools.remoteexecution.v1test.requestmetadata-bin",
    ],
)
async def test_who_asks_is_known_from_the_request_metadata(header):
    sent = reapi.RequestMetadata(
        tool_details=reapi.ToolDetails(tool_name="bazel", tool_version="7"),
        target_id="//a:b",
        action_mnemonic="Cpp",
        tool_invocation_id="build 1",
    )
    async with house() as at:
        async with at.executing(await at.action(), metadata=[(header, encode(sent))]) as stream:
            await stream.receive()
            asked = at.scheduler.operations()[0].execution.request
        assert (asked.tool, asked.target, asked.mnemonic, asked.invocation) == ("bazel 7", "//a:b", "Cpp", "build 1")
        assert asked.user == "", "without credentials"
        async with at.executing(await at.action(salt=b"2"), metadata=[(header, b"\xff\xff")]) as stream:
            await stream.receive()
            asked = at.scheduler.operations()[1].execution.request
            assert (asked.tool, asked.target, asked.mnemonic, asked.invocation) == ("", "", "", "")


async def test_what_no_client_writes_into_its_metadata_is_cut():
    sent = encode(reapi.RequestMetadata(target_id="x" * 100_000))
    header = "build.bazel.remote.execution.v2.requestmetadata-bin"
    async with house() as at, at.executing(await at.action(), metadata=[(header, sent)]) as stream:
        await stream.receive()
        assert len(at.scheduler.operations()[0].execution.request.target) == 1024


async def test_errors_while_running_are_in_the_response_and_never_in_the_operation():
    async with house(max_job_retries=0) as at, at.worker() as worker:
        async with at.executing(await at.action()) as stream:
            start = (await worker.receive()).start_action
            violation = rpc_status.PreconditionFailureViolation(type="MISSING", subject="blobs/aa/1")
            failure = wkt.pack(rpc_status.PreconditionFailure(violations=[violation]))
            status = rpc_status.Status(code=Code.FAILED_PRECONDITION, message="inputs are gone", details=[failure])
            await worker.stream.send(result_for(start.operation_id, error=status))
            while not (operation := await stream.receive()).done:
                pass
        assert operation.error is None
        got = response_of(operation).status
        assert got.code == Code.FAILED_PRECONDITION
        assert "inputs are gone" in got.message
        assert wkt.unpack(got.details[0], rpc_status.PreconditionFailure).violations == [violation]


async def test_a_response_too_long_for_a_message_loses_only_what_it_also_names_by_digest():
    async with house() as at, at.worker() as worker:
        async with at.executing(await at.action()) as stream:
            start = (await worker.receive()).start_action
            big = bytes(5_000_000)
            result = reapi.ActionResult(
                exit_code=4,
                stdout_raw=big,
                stdout_digest=wire(digest_of(big)),
                output_files=[reapi.OutputFile(path="a", digest=wire(digest_of(big)), contents=big)],
            )
            await worker.stream.send(result_for(start.operation_id, reapi.ExecuteResponse(result=result)))
            while not (operation := await stream.receive()).done:
                pass
        assert len(encode(operation)) < 4 * 1024 * 1024
        got = response_of(operation).result
        assert got.exit_code == 4
        assert got.stdout_raw == b""
        assert got.stdout_digest.size_bytes == len(big)
        assert got.output_files[0].path == "a"


async def test_two_clients_of_one_action_share_the_run():
    async with house() as at, at.worker() as worker:
        request = await at.action()
        async with at.executing(request) as one, at.executing(request) as two:
            start = (await worker.receive()).start_action
            await worker.stream.send(result_for(start.operation_id, RESPONSE))
            for stream in (one, two):
                while not (operation := await stream.receive()).done:
                    pass
                assert response_of(operation) == RESPONSE
        with pytest.raises(trio.WouldBlock):
            worker.stream.receive_nowait()


async def test_nothing_is_logged_as_an_error_in_a_plain_run(caplog):
    caplog.set_level(logging.WARNING)
    async with house() as at, at.worker() as worker, at.executing(await at.action()) as stream:
        start = (await worker.receive()).start_action
        await worker.stream.send(result_for(start.operation_id, RESPONSE))
        while not (await stream.receive()).done:
            pass
    assert caplog.text == ""


@pytest.mark.parametrize("beyond", [0, 1])
async def test_an_action_too_large_to_be_one_is_the_clients_mistake(beyond):
    async with house() as at:
        data = b"\xff" * (MAX_WHOLE + beyond)
        await at.cas.put(digest_of(data), data)
        problem = "is too large" if beyond else "is not a Action"
        with pytest.raises(InvalidRequestError, match=f"{digest_of(data).hash}.* {problem}"):
            await at.execute(reapi.ExecuteRequest(instance_name="main", action_digest=wire(digest_of(data))))


@pytest.mark.parametrize(("seconds", "is_taken"), [(-1, False), (0, True), (9, True), (10, True), (11, False)])
async def test_which_timeouts_are_taken(seconds, is_taken):
    async with house() as at, at.worker(max_timeout_s=10):
        request = await at.action(action={"timeout": wkt.Duration(seconds=seconds)})
        if is_taken:
            async with at.executing(request) as stream:
                assert (await stream.receive()).name
            [operation] = at.scheduler.operations()
            assert operation.execution.request.timeout_s == seconds
        else:
            problem = "is negative: -1 s" if seconds < 0 else "of 11 s is above what the workers allow: at most 10 s"
            with pytest.raises(InvalidRequestError, match=f"Action.timeout {problem}"):
                await at.execute(request)


async def looked_up(at, completeness=None, action=b"action"):
    request = SimpleNamespace(action_digest=digest_of(action))
    return await cache_lookup(at.cache, completeness)(request)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("checks", [True, False])
async def test_a_stored_result_is_a_hit_while_its_outputs_are_there_or_nobody_asks(there, checks):
    async with house() as at:
        output = digest_of(b"output")
        if there:
            await at.cas.put(output, b"output")
        result = reapi.ActionResult(stdout_digest=wire(output))
        await store_action_result(at.cache, digest_of(b"action"), encode(result))
        found = await looked_up(at, Completeness(at.cas, name="CAS") if checks else None)
        assert (found is not None) is (there or not checks)
        if found is not None:
            response = decode(reapi.ExecuteResponse, found)
            assert response.cached_result
            assert response.result.stdout_digest == wire(output)


async def test_what_is_not_stored_is_no_hit_and_no_news(caplog):
    async with house() as at:
        assert await looked_up(at) is None
        assert caplog.records == []


@pytest.mark.parametrize("damage", ["seal", "contents"])
async def test_what_is_damaged_is_no_hit_and_is_said(caplog, damage):
    async with house() as at:
        digest = digest_of(b"action")
        if damage == "seal":
            await at.cache.put(ActionKey(*digest), b"damaged")
        else:
            await store_action_result(at.cache, digest, b"\xff")
        assert await looked_up(at) is None
        [record] = caplog.records
        assert "a damaged action result counts as a miss" in record.getMessage()


@pytest.mark.parametrize("method", ["Execute", "WaitExecution", "WaitOperation"])
async def test_an_action_goes_on_as_long_as_somebody_follows_it_and_ends_some_time_after(autojump_clock, method):
    async with house(client_action_timeout_s=60.0, unmatched_grace_s=0) as at:
        action = await at.action()
        async with at.executing(action) as stream:
            name = (await stream.receive()).name
            if method == "Execute":
                await trio.sleep(500)
        [operation] = at.scheduler.operations()
        if method != "Execute":
            kind = reapi.WaitExecutionRequest if method == "WaitExecution" else longrunning.WaitOperationRequest
            service = at.execution if method == "WaitExecution" else at.operations
            async with calling(service, method, kind(name=name)):
                await trio.sleep(500)
        assert not operation.state.done
        await trio.sleep(200)
        assert operation.state.done
