"""The rules of the Remote Execution API that implementations commonly get wrong, those of execution and operations.

A foreign client (grpcio, google's protobuf) asks our server over a real socket; the test itself plays the worker.
"""

import grpc
import grpclib.const
import pytest
import trio
from grpclib.exceptions import GRPCError

from nl.cas.action_results import store_action_result
from nl.model.digest import Digest
from nl.pb import reapi, rpc_status, wkt, worker_api
from nl.pb.codec import encode
from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.channel import Channel
from tests.support.foreign import REAPI, RPC, digest, digest3
from tests.wire import raw_h2
from tests.wire.execution_support import EXECUTE, LONGRUNNING, WAIT, WORKER, executing, metadata, response

CACHE_CHECK, QUEUED, EXECUTING, COMPLETED = 1, 2, 3, 4
RESULT = reapi.ActionResult(exit_code=5, stdout_raw=b"hello")


def violations(error):
    """The PreconditionFailure of an RPC error, by google's own classes."""
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = RPC.Status.FromString(details)
    assert status.code == error.code().value[0]
    [packed] = status.details
    failure = RPC.PreconditionFailure()
    assert packed.Unpack(failure)
    return [(each.type, each.subject) for each in failure.violations]


async def test_an_execution_from_request_to_result():
    async with executing() as at, at.worker(worker_id_prefix="w1-") as worker:
        async with at.follow(EXECUTE, await at.request()) as following:
            start = await worker.start()
            assert worker.id.startswith("w1-")
            assert start.worker_id == worker.id
            assert start.execute_request.instance_name == "main"
            await worker.report(start, RESULT)
            last = await following.last()
        assert metadata(last).stage == COMPLETED
        assert response(last).result.exit_code == 5
        assert response(last).result.stdout_raw == b"hello"
        assert response(last).status.code == 0
        assert not response(last).cached_result
        assert last.WhichOneof("result") == "response"


@pytest.mark.parametrize("instance", ["", "main", "a/b"])
async def test_operation_names_can_be_asked_for_in_every_instance(instance):
    async with executing() as at, at.follow(EXECUTE, await at.request(instance=instance)) as following:
        name = (await following.next()).name
        assert name.rpartition("/")[0] == instance
        got = await at.operation("GetOperation", LONGRUNNING.GetOperationRequest(name=name))
        assert got.name == name
        async with at.follow(WAIT, REAPI.WaitExecutionRequest(name=name)) as again:
            assert (await again.next()).name == name


async def test_rule_1_missing_inputs_are_violations_without_an_instance_name():
    async with executing() as at:
        gone = digest(b"gone")
        error = await at.status_of(REAPI.ExecuteRequest(instance_name="main", action_digest=gone))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert violations(error) == [("MISSING", f"blobs/{gone.hash}/{gone.size_bytes}")]
        command, root = digest(b"command"), digest(b"root")
        action = await at.put(REAPI.Action(command_digest=command, input_root_digest=root))
        error = await at.status_of(REAPI.ExecuteRequest(instance_name="main", action_digest=action))
        assert violations(error) == [
            ("MISSING", f"blobs/{command.hash}/{command.size_bytes}"),
            ("MISSING", f"blobs/{root.hash}/{root.size_bytes}"),
        ]


async def test_rule_1_missing_inputs_name_their_digest_function():
    async with executing() as at:
        gone = digest3(b"gone")
        error = await at.status_of(REAPI.ExecuteRequest(instance_name="main", action_digest=gone, digest_function=9))
        assert violations(error) == [("MISSING", f"blobs/blake3/{gone.hash}/{gone.size_bytes}")]


async def test_rule_2_errors_while_running_are_in_the_response():
    async with executing() as at, at.worker() as worker, at.follow(EXECUTE, await at.request()) as following:
        start = await worker.start()
        status = rpc_status.Status(code=4, message="too slow")
        await worker.report(start, reapi.ActionResult(stdout_raw=b"so far"), status=status)
        last = await following.last()
        assert last.WhichOneof("result") == "response"
        assert response(last).status.code == 4
        assert response(last).result.stdout_raw == b"so far"


async def test_rule_3_a_timeout_above_the_maximum_is_refused():
    async with executing() as at, at.worker(max_action_timeout=wkt.Duration(seconds=3600)):
        error = await at.status_of(await at.request(timeout={"seconds": 3601}))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "3601" in error.details()
        assert "3600" in error.details()


@pytest.mark.parametrize(
    ("hash", "size"),
    [("A" * 64, 1), ("a" * 63, 1), ("", 0), ("../" + "a" * 61, 1), ("a" * 64, -1), ("a" * 64, -(2**63)), ("é" * 64, 1)],
)
async def test_rule_6_a_malformed_action_digest_is_refused(hash, size):
    async with executing() as at:
        request = REAPI.ExecuteRequest(instance_name="main", action_digest=REAPI.Digest(hash=hash, size_bytes=size))
        assert (await at.status_of(request)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_rule_16_actions_not_to_be_cached_run_each_for_themselves_and_twins_once():
    async with executing() as at, at.worker() as worker:
        private = await at.request(salt=b"private", do_not_cache=True)
        shared = await at.request(salt=b"shared")
        async with (
            at.follow(EXECUTE, private) as one,
            at.follow(EXECUTE, private) as two,
        ):
            starts = [await worker.start(), await worker.start()]
            assert starts[0].operation_id != starts[1].operation_id
            for number, start in enumerate(starts):
                await worker.report(start, reapi.ActionResult(exit_code=number))
            codes = [response(await each.last()).result.exit_code for each in (one, two)]
            assert sorted(codes) == [0, 1]
        async with at.follow(EXECUTE, shared) as one, at.follow(EXECUTE, shared) as two:
            await one.next()
            await two.next()
            await worker.report(await worker.start(), RESULT)
            assert response(await one.last()).result == response(await two.last()).result
        assert at.scheduler.statistics()["merged_total"] == 1


async def test_rule_16_skip_cache_lookup_really_runs():
    async with executing(cached=True) as at, at.worker() as worker:
        request = await at.request()
        key = Digest(request.action_digest.hash, request.action_digest.size_bytes)
        await store_action_result(at.cache, key, encode(reapi.ActionResult(exit_code=1)))
        last = (await at.execute(request))[-1]
        assert response(last).cached_result
        assert response(last).result.exit_code == 1
        request.skip_cache_lookup = True
        async with at.follow(EXECUTE, request) as following:
            await worker.report(await worker.start(), RESULT)
            last = await following.last()
        assert not response(last).cached_result
        assert response(last).result.exit_code == 5


async def test_rule_17_an_unknown_output_node_property_is_refused():
    async with executing() as at:
        command = await at.put(REAPI.Command(arguments=["x"], output_node_properties=["shoe_size"]))
        action = await at.put(REAPI.Action(command_digest=command, input_root_digest=digest(b"")))
        error = await at.status_of(REAPI.ExecuteRequest(instance_name="main", action_digest=action))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "shoe_size" in error.details()


async def test_rule_18_an_unknown_platform_property_is_refused_at_once():
    async with executing(supported_platform_properties={"ISA": "exact"}) as at, at.worker():
        platform = REAPI.Platform()
        platform.properties.add(name="colour", value="red")
        error = await at.status_of(await at.request(platform=platform))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "'colour'" in error.details()


async def test_rule_18_linux_and_no_properties_run_on_any_worker():
    async with executing() as at, at.worker() as worker:
        platform = REAPI.Platform()
        platform.properties.add(name="OSFamily", value="linux")
        for request in (await at.request(), await at.request(platform=platform)):
            async with at.follow(EXECUTE, request) as following:
                await worker.report(await worker.start(), RESULT)
                assert (await following.last()).done


async def test_rule_19_the_first_operation_comes_at_once_and_is_repeated():
    async with executing(keepalive_s=0.05) as at, at.follow(EXECUTE, await at.request()) as following:
        first = await following.next()
        assert not first.done
        assert metadata(first).stage == QUEUED
        assert metadata(first).action_digest.hash
        for _ in range(3):
            assert await following.next() == first


async def test_rule_19_after_the_stream_was_cut_the_result_is_still_to_be_had():
    async with executing() as at, at.worker() as worker:
        async with at.follow(EXECUTE, await at.request()) as following:
            name = (await following.next()).name
            start = await worker.start()
        await worker.report(start, RESULT)
        async with at.follow(WAIT, REAPI.WaitExecutionRequest(name=name)) as again:
            assert response(await again.last()).result.exit_code == 5
        async with at.follow(WAIT, REAPI.WaitExecutionRequest(name=name)) as again:
            late = await again.next()
            assert late.done
            assert response(late).result.exit_code == 5


async def test_rule_23_an_unknown_instance_is_not_found():
    async with executing() as at:
        request = await at.request()
        request.instance_name = "elsewhere"
        error = await at.status_of(request)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "unknown instance name 'elsewhere'" in error.details()


async def test_rule_25_lower_priority_numbers_go_first():
    async with executing() as at:
        calls = []
        async with trio.open_nursery() as nursery:

            async def follow(request, listening):
                async with at.follow(EXECUTE, request) as following:
                    await following.next()
                    listening.set()
                    calls.append(response(await following.last()).result.exit_code)

            for priority in (10, 0, -10):
                request = await at.request(salt=str(priority).encode())
                request.execution_policy.priority = priority
                listening = trio.Event()
                nursery.start_soon(follow, request, listening)
                await listening.wait()
            async with at.worker(max_inflight_tasks=1) as worker:
                seen = []
                for _ in range(3):
                    start = await worker.start()
                    seen.append(start.execute_request.execution_policy.priority)
                    await worker.report(start, RESULT)
                assert seen == [-10, 0, 10]
                while len(calls) < 3:
                    await trio.sleep(0.01)


async def test_cancel_operation_reaches_the_worker_and_the_client():
    async with executing() as at, at.worker() as worker, at.follow(EXECUTE, await at.request()) as following:
        name = (await following.next()).name
        start = await worker.start()
        empty = await at.operation("CancelOperation", LONGRUNNING.CancelOperationRequest(name=name))
        assert empty.ByteSize() == 0
        assert (await worker.order()).kill_operation_request.operation_id == start.operation_id
        last = await following.last()
        assert response(last).status.code == grpc.StatusCode.CANCELLED.value[0]
        await worker.report(start, RESULT)
        got = await at.operation("GetOperation", LONGRUNNING.GetOperationRequest(name=name))
        assert response(got).status.code == grpc.StatusCode.CANCELLED.value[0]


async def test_a_worker_whose_connection_is_cut_loses_its_action_to_another():
    async with executing() as at, at.follow(EXECUTE, await at.request()) as following:
        async with at.worker() as lost:
            first = await lost.start()
        async with at.worker() as other:
            second = await other.start()
            assert second.execute_request == first.execute_request
            await other.report(second, RESULT)
            assert response(await following.last()).result.exit_code == 5


async def test_a_stream_that_does_not_introduce_itself_is_refused():
    async with executing() as at, Channel(f"127.0.0.1:{at.port}") as channel:
        kind = grpclib.const.Cardinality.STREAM_STREAM
        types = (worker_api.UpdateForScheduler, worker_api.UpdateForWorker)
        with pytest.raises(GRPCError, match="First message was not a ConnectWorkerRequest") as got:
            async with channel.request(WORKER, kind, *types) as stream:
                hello = worker_api.UpdateForScheduler(keep_alive_request=worker_api.KeepAliveRequest())
                await stream.send_message(hello)
                await stream.recv_message()
        assert got.value.status is grpclib.const.Status.INVALID_ARGUMENT


async def test_many_executions_at_once_all_get_their_own_result():
    async with executing() as at, at.worker() as worker, trio.open_nursery() as nursery:
        got = {}

        async def run(number):
            request = await at.request(salt=str(number).encode())
            last = (await at.execute(request))[-1]
            got[request.action_digest.hash] = response(last).result.stdout_raw.decode()

        async def work():
            while True:
                start = await worker.start()
                text = start.execute_request.action_digest.hash.encode()
                await worker.report(start, reapi.ActionResult(stdout_raw=text))

        nursery.start_soon(work)
        async with trio.open_nursery() as clients:
            for number in range(30):
                clients.start_soon(run, number)
        assert len(got) == 30
        assert all(hash == text for hash, text in got.items())
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", [b"x-trace-bin", b"build.bazel.remote.execution.v2.requestmetadata-bin"])
async def test_a_malformed_header_that_execute_has_no_need_of_is_no_reason_to_refuse_it(name):
    path = hpack.encode_path(EXECUTE.encode())
    block = hpack.METHOD_POST + hpack.SCHEME_HTTP + path + raw_h2.GRPC + hpack.encode([(name, b"***")])
    async with executing() as at:
        request = (await at.request()).SerializeToString()
        client = await raw_h2.RawClient.connect(at.port)
        await client.send(fr.frame(fr.HEADERS, fr.END_HEADERS, 1, block), raw_h2.message(1, request))
        kind = None
        while kind not in (fr.DATA, fr.RST_STREAM):
            kind, _, stream, payload = await client.frame()
        assert (kind, stream) == (fr.DATA, 1)
        assert b"main/" in payload
        raw_h2.RawClient.close_all()
