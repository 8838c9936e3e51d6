"""From a foreign client through services, scheduler and a real worker to real processes, and back."""

from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import trio

from nl.config.workers import (
    IsolationOptions,
    LocalWorkerOptions,
    PropertySource,
    UploadActionResult,
    WorkerApiEndpoint,
)
from nl.model.digest import Digest
from nl.worker.local import local_worker
from tests.support.foreign import REAPI, RPC, digest
from tests.support.stores import filesystem_store
from tests.wire.execution_support import EXECUTE, LONGRUNNING, WAIT, executing, metadata, response


class House:
    """Services, scheduler and one worker, and commands for them."""

    def __init__(self, at):
        self.at = at

    async def request(self, script, *, timeout_s=None, properties=(), **action):
        command = REAPI.Command(arguments=["sh", "-c", script], output_paths=["out"])
        root = await self.at.put(REAPI.Directory())
        made = REAPI.Action(command_digest=await self.at.put(command), input_root_digest=root, **action)
        for name, value in properties:
            made.platform.properties.add(name=name, value=value)
        if timeout_s is not None:
            made.timeout.FromNanoseconds(int(timeout_s * 1e9))
        return REAPI.ExecuteRequest(instance_name="main", action_digest=await self.at.put(made))

    async def run(self, script, **more):
        """The ExecuteResponse of a command."""
        return response((await self.at.execute(await self.request(script, **more)))[-1])

    async def content(self, of):
        return bytes(await self.at.cas.get(Digest(of.hash, of.size_bytes)))


@asynccontextmanager
async def house(tmp_path, *, max_inflight=4, **options):
    cas = filesystem_store(tmp_path / "cas")
    options.setdefault("supported_platform_properties", {"cpu": "minimum"})
    async with executing(cas=cas, cached=True, **options) as at, trio.open_nursery() as nursery:
        configured = LocalWorkerOptions(
            name="e2e",
            worker_api_endpoint=WorkerApiEndpoint(uri=f"grpc://127.0.0.1:{at.port}"),
            cas_fast_slow_store="CAS",
            upload_action_result=UploadActionResult(ac_store="AC"),
            work_directory=str(tmp_path / "work"),
            isolation=IsolationOptions(kind="plain"),  # actions write to files of the tests
            platform_properties={"cpu": PropertySource(values=("2",))},
            max_inflight_tasks=max_inflight,
        )
        worker = local_worker(configured, index=0, store_named={"CAS": cas, "AC": at.cache}.__getitem__)
        await nursery.start(worker.run)
        while not at.scheduler.statistics()["workers"]:
            await trio.sleep(0.01)
        yield House(at)
        nursery.cancel_scope.cancel()


async def test_a_command_runs_once_and_is_then_served_from_the_cache(tmp_path):
    async with house(tmp_path) as here:
        ran = tmp_path / "ran"
        script = f"echo x >> {ran}; echo made > out; echo said; exit 0"
        first = await here.run(script)
        assert first.status.code == 0
        assert first.result.exit_code == 0
        [output] = first.result.output_files
        assert (output.path, await here.content(output.digest)) == ("out", b"made\n")
        assert first.result.stdout_raw == b"said\n" or await here.content(first.result.stdout_digest) == b"said\n"
        assert first.result.execution_metadata.worker
        assert not first.cached_result
        second = await here.run(script)
        assert second.cached_result
        assert second.result.output_files[0].digest == output.digest
        assert ran.read_text() == "x\n"


async def test_a_failing_command_is_a_result_and_no_error_and_is_not_cached(tmp_path):
    async with house(tmp_path) as here:
        ran = tmp_path / "ran"
        for _ in range(2):
            failed = await here.run(f"echo x >> {ran}; exit 7")
            assert failed.status.code == 0
            assert failed.result.exit_code == 7
            assert not failed.cached_result
        assert ran.read_text() == "x\nx\n"


async def test_do_not_cache_runs_every_time(tmp_path):
    async with house(tmp_path) as here:
        ran = tmp_path / "ran"
        for _ in range(3):
            await here.run(f"echo x >> {ran}", do_not_cache=True)
        assert ran.read_text() == "x\n" * 3


async def test_a_timeout_ends_in_the_response_with_what_was_printed(tmp_path):
    async with house(tmp_path) as here:
        late = await here.run("echo so far; sleep 600", timeout_s=0.3)
        assert late.status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        printed = late.result.stdout_raw or await here.content(late.result.stdout_digest)
        assert printed == b"so far\n"


async def test_cancelling_kills_the_processes_and_frees_the_worker(tmp_path):
    async with house(tmp_path, max_inflight=1) as here:
        pid_file = tmp_path / "pid"
        request = await here.request(f"sleep 600 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait")
        async with here.at.follow(EXECUTE, request) as following:
            name = (await following.next()).name
            while not pid_file.exists():
                await trio.sleep(0.01)
            await here.at.operation("CancelOperation", LONGRUNNING.CancelOperationRequest(name=name))
            last = await following.last()
        assert response(last).status.code == grpc.StatusCode.CANCELLED.value[0]
        assert (await here.run("echo free > out")).result.exit_code == 0
        assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


async def test_a_client_that_comes_back_gets_the_result(tmp_path):
    async with house(tmp_path) as here:
        gate = tmp_path / "gate"
        request = await here.request(f"while [ ! -e {gate} ]; do sleep 0.02; done; echo done > out")
        async with here.at.follow(EXECUTE, request) as following:
            name = (await following.next()).name
        gate.touch()
        async with here.at.follow(WAIT, REAPI.WaitExecutionRequest(name=name)) as again:
            last = await again.last()
        assert response(last).result.exit_code == 0
        assert metadata(last).stage == 4


async def test_resources_bound_what_runs_at_once(tmp_path):
    async with house(tmp_path, max_inflight=0) as here:
        one, two = tmp_path / "slot1", tmp_path / "slot2"
        take = f"mkdir {one} 2>/dev/null && mine={one} || {{ mkdir {two} && mine={two}; }} || exit 9"
        script = f"{take}; sleep 0.05; rmdir $mine; exit 0; # "
        codes = []

        async def run(number):
            done = await here.run(script + str(number), properties=[("cpu", "1")])
            codes.append(done.result.exit_code)

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(run, number)
        assert codes == [0] * 12


async def test_missing_inputs_found_by_the_worker_name_each_blob(tmp_path):
    async with house(tmp_path) as here:
        gone = digest(b"a file that nobody uploaded")
        root = REAPI.Directory()
        root.files.add(name="input", digest=gone)
        command = await here.at.put(REAPI.Command(arguments=["true"]))
        action = REAPI.Action(command_digest=command, input_root_digest=await here.at.put(root))
        request = REAPI.ExecuteRequest(instance_name="main", action_digest=await here.at.put(action))
        ended = response((await here.at.execute(request))[-1])
        assert ended.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        failure = RPC.PreconditionFailure()
        assert ended.status.details[0].Unpack(failure)
        assert [(each.type, each.subject) for each in failure.violations] == [
            ("MISSING", f"blobs/{gone.hash}/{gone.size_bytes}")
        ]


async def test_what_no_worker_has_is_told_after_the_grace_period(tmp_path):
    async with house(tmp_path, unmatched_grace_s=1.0) as here:
        ended = await here.run("true", properties=[("cpu", "3")])
        assert ended.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert "cpu>=3" in ended.status.message
