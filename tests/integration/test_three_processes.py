"""A CAS server, a scheduler and a worker, each a process, over `grpc` stores: NativeLink's usual topology.

The scheduler's and the worker's configs are those that users have, but for ports and folders.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.integration.faults_site import marked
from tests.integration.test_bazel import Bazel, assert_all_hits
from tests.integration.worker_process import WorkerProcess
from tests.support.foreign import REAPI, Foreign, Package, connect, digest
from tests.support.processes import ROOT, Server, free_port, serving

DATA = ROOT / "tests" / "data" / "configs"
EXECUTE = "/build.bazel.remote.execution.v2.Execution/Execute"
LRO = Package("google.longrunning")


@dataclass
class Site:
    """The three, running."""

    cas: Server
    scheduler: Server
    worker: WorkerProcess


def configured(name: str, directory: Path, ports: dict[str, int]) -> Path:
    """A config of tests/data with the ports and folders of this test."""
    text = (DATA / name).read_text()
    for given, own in ports.items():
        text = text.replace(f":{given}", f":{own}")
    text = text.replace("0.0.0.0", "127.0.0.1").replace("/root/.cache", str(directory / "worker"))
    text = text.replace("/data/cas", str(directory / "cas"))
    file = directory / name
    file.write_text(text)
    return file


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    ports = {"50051": free_port(), "50052": free_port(), "50061": free_port()}
    with ExitStack() as stack:
        def server(name: str, port: int) -> Server:
            file = configured(name, tmp_path, ports)
            return stack.enter_context(serving(["serve", str(file)], port=port, log=tmp_path / f"{name}.log"))

        cas = server("seed_cas.json5", ports["50051"])
        scheduler = server("seed_scheduler.json5", ports["50061"])
        scheduler.port = ports["50052"]
        worker = stack.enter_context(
            WorkerProcess(configured("seed_worker.json5", tmp_path, ports), log=tmp_path / "worker.log")
        )
        yield Site(cas, scheduler, worker)


async def execute(cas: Foreign, scheduler: Foreign, script: str, *, lookup: bool = True, upload: bool = True) -> object:
    """Runs a shell command remotely; its ExecuteResponse."""
    command = REAPI.Command(arguments=["/bin/sh", "-c", script], output_paths=["out"]).SerializeToString()
    inputs = {f"in{number}": b"input %d of it\n" % number for number in range(50)}
    root = REAPI.Directory()
    for name, data in sorted(inputs.items()):
        root.files.add(name=name, digest=digest(data))
    root = root.SerializeToString()
    action = REAPI.Action(command_digest=digest(command), input_root_digest=digest(root)).SerializeToString()
    for blob in (command, root, action, *(inputs.values() if upload else ())):
        await cas.put(blob)
    request = REAPI.ExecuteRequest(action_digest=digest(action), skip_cache_lookup=not lookup)
    last = (await scheduler.server_stream(EXECUTE, request, LRO.Operation))[-1]
    response = REAPI.ExecuteResponse()
    assert last.done and last.response.Unpack(response), last
    return response


async def test_what_a_worker_makes_is_in_the_cas_and_in_the_action_cache(site: Site) -> None:
    async with connect(site.cas.port) as cas, connect(site.scheduler.port) as scheduler:
        response = await execute(cas, scheduler, "cat in* > out; echo done")
        assert not response.status.code, response.status
        expected = b"".join(b"input %d of it\n" % number for number in sorted(range(50), key=str))
        (file,) = response.result.output_files
        assert file.digest == digest(expected)
        assert await cas.missing([file.digest]) == []
        assert not response.cached_result
        assert (await execute(cas, scheduler, "cat in* > out; echo done")).cached_result


async def test_a_missing_input_is_named_and_the_workers_log_says_what_to_look_at(site: Site) -> None:
    async with connect(site.cas.port) as cas, connect(site.scheduler.port) as scheduler:
        response = await execute(cas, scheduler, "true", upload=False)
        assert response.status.code == 9, response.status
        assert response.status.details, "the missing inputs are named, so that clients upload them"
        assert re.match(
            "Object [0-9a-f]{64}-1[45] not found in either fast or slow store. If using multiple workers, ensure all "
            "workers share the same CAS storage path.", response.status.message
        ), response.status.message  # fmt: skip
    assert "all workers must share the same CAS storage path" in site.worker.log_text()


async def test_a_cas_server_that_restarts_costs_a_build_nothing_but_time(site: Site) -> None:
    async with connect(site.cas.port) as cas, connect(site.scheduler.port) as scheduler:
        assert not (await execute(cas, scheduler, "cat in* > out")).status.code
    site.cas.kill()
    site.cas.start()
    async with connect(site.cas.port) as cas, connect(site.scheduler.port) as scheduler:
        response = await execute(cas, scheduler, "cat in* in0 > out", lookup=False)
        assert not response.status.code, response.status


async def test_a_scheduler_that_is_told_to_stop_lets_actions_elsewhere_finish(site: Site) -> None:
    nap = f"3600.{os.getpid()}"  # how we know its process, and end it: it shares no files with us
    async with connect(site.cas.port) as cas, connect(site.scheduler.port) as scheduler:
        answers = []

        async def client() -> None:
            answers.append(await execute(cas, scheduler, f"sleep {nap}; echo done > out", lookup=False))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            while not marked(nap):
                await trio.sleep(0.02)
            assert site.scheduler.process is not None
            site.scheduler.process.terminate()
            while "finishing what is running" not in site.scheduler.log_text():
                await trio.sleep(0.02)
            for pid in marked(nap):
                os.kill(pid, signal.SIGTERM)
        assert not answers[0].status.code, answers[0].status
        assert answers[0].result.exit_code == 0
        assert await trio.to_thread.run_sync(site.scheduler.process.wait, 30) == 0


@pytest.mark.skipif(
    not (shutil.which("bazel") and shutil.which("g++")),
    reason="NOT TESTED AGAINST BAZEL: `bazel` or `g++` is missing (apt-get install bazel-bootstrap g++)",
)
def test_bazel_builds_over_them_and_again_from_the_cache(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "client"
    folder.mkdir()
    bazel = Bazel(folder)
    flags = (
        f"--remote_cache=grpc://{site.cas.target}", f"--remote_executor=grpc://{site.scheduler.target}",
        "--remote_default_exec_properties=cpu_count=1",
    )  # fmt: skip
    try:
        first = bazel.test(*flags)
        assert first.get("remote", 0) > 0 and set(first) <= {"internal", "remote", "remote cache hit"}, first
        bazel.clean()
        assert_all_hits(bazel.test(*flags))
    finally:
        bazel.run("shutdown")
