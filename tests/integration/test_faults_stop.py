"""Stopping in order, and what is left after a storm: no lost call, no orphan, no leaked task or descriptor."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import trio

from nl.rpc import frames as fr
from nl.worker.processes import MAX_IDLE
from tests.integration.faults_site import Builder, encode, marked, request, until
from tests.support.foreign import BYTES, BYTESTREAM, CAS, chunks, connect, digest, read_name, upload_name
from tests.support.processes import Server, all_in_one, descriptors
from tests.wire.execution_support import EXECUTE, LONGRUNNING, response

MIB = 1024 * 1024


def status_page(server: Server) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{server.target}/status", timeout=5) as reply:
        page: dict[str, Any] = json.load(reply)
    return page


def children(pid: int) -> set[int]:
    """All processes below one."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    front = [pid]
    while front:
        below = parents.get(front.pop(), [])
        found.update(below)
        front += below
    return found


def paused_upload(data: bytes, gate: threading.Event, *, name: str, reached: threading.Event) -> Iterator[Any]:
    messages = chunks(name, data, size=MIB)
    yield messages[0]
    reached.set()
    gate.wait(30)
    yield from messages[1:]


async def test_a_signal_lets_uploads_and_actions_finish(tmp_path: Path) -> None:
    with all_in_one(tmp_path, isolation="plain") as server:
        async with connect(server.port) as client:
            builder = Builder(server, client)
            gate, mark = tmp_path / "gate", f"stopping-{tmp_path.name}"
            waits = f"while [ ! -e {gate} ]; do sleep 0.01; done; echo done > out"
            call = builder.begin(await builder.request(f"(setsid sh -c 'sleep 600; :' {mark} &); {waits}"))
            await until(lambda: len(marked(mark)) == 1)
            data, go, reached = os.urandom(3 * MIB), threading.Event(), threading.Event()
            write = client.channel.stream_unary(
                BYTES + "Write", BYTESTREAM.WriteRequest.SerializeToString, BYTESTREAM.WriteResponse.FromString
            )
            upload = write.future(paused_upload(data, go, name=upload_name(digest(data)), reached=reached), timeout=60)
            await trio.to_thread.run_sync(reached.wait, 10)
            below = children(server.pid)
            assert below, "an action runs"
            os.kill(server.pid, signal.SIGTERM)
            await until(lambda: not server.answers())  # it says that it does not serve any more
            gate.touch()
            go.set()
            operations = await trio.to_thread.run_sync(list, call)
            assert response(operations[-1]).result.exit_code == 0
            assert (await trio.to_thread.run_sync(upload.result)).committed_size == len(data)
            assert server.process is not None
            assert await trio.to_thread.run_sync(server.process.wait, 20) == 0
        assert marked(mark) == []
        await until(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()])
        assert "Traceback" not in server.log_text()
        server.start()
        async with connect(server.port) as client:
            assert b"".join(await client.read(read_name(digest(data)))) == data


async def test_a_second_signal_ends_everything_at_once_and_cleanly(tmp_path: Path) -> None:
    with all_in_one(tmp_path, isolation="plain") as server:
        async with connect(server.port) as client:
            builder = Builder(server, client)
            mark = f"stopped-{tmp_path.name}"
            call = builder.begin(await builder.request(f"(setsid sh -c 'sleep 600; :' {mark} &); sleep 600"))
            await until(lambda: len(marked(mark)) == 1)
            data, go, reached = os.urandom(3 * MIB), threading.Event(), threading.Event()
            write = client.channel.stream_unary(
                BYTES + "Write", BYTESTREAM.WriteRequest.SerializeToString, BYTESTREAM.WriteResponse.FromString
            )
            upload = write.future(paused_upload(data, go, name=upload_name(digest(data)), reached=reached), timeout=60)
            await trio.to_thread.run_sync(reached.wait, 10)
            below = children(server.pid)
            os.kill(server.pid, signal.SIGTERM)
            await until(lambda: not server.answers())
            assert await trio.to_thread.run_sync(lambda: server.stop(timeout_s=10)) == 0
            go.set()
            ends = {status_of(call), await trio.to_thread.run_sync(upload.code)}
            assert ends <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}, ends
        await until(lambda: marked(mark) == [])
        await until(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()])
        assert "Traceback" not in server.log_text()


def status_of(call: Any) -> grpc.StatusCode:
    """How a call that streams replies has ended; an Operation that is done counts by its response."""
    try:
        last = list(call)[-1]
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return next(each for each in grpc.StatusCode if each.value[0] == response(last).status.code)


class Storm:
    """Bad clients of every kind. Each thread of them does `rounds` of everything."""

    def __init__(self, server: Server, blob: Any, execute: Any) -> None:
        self.server = server
        self.blob = blob
        self.execute = execute
        self.errors: list[str] = []

    def run(self, rounds: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        for _ in range(rounds):
            with grpc.insecure_channel(self.server.target, options=options) as channel:
                self.cancelled_reads(channel)
                self.cancelled_executes(channel)
                self.bad_requests(channel)
            self.cut_connections()

    def cancelled_reads(self, channel: grpc.Channel) -> None:
        read = channel.unary_stream(BYTES + "Read", encode, BYTESTREAM.ReadResponse.FromString)
        request = BYTESTREAM.ReadRequest(resource_name=read_name(self.blob))
        calls = [read(request, timeout=30) for _ in range(10)]
        for number, call in enumerate(calls):
            for _ in range(number % 3):
                next(call)
            call.cancel()

    def cancelled_executes(self, channel: grpc.Channel) -> None:
        execute = channel.unary_stream(EXECUTE, encode, LONGRUNNING.Operation.FromString)
        calls = [execute(self.execute, timeout=30) for _ in range(3)]
        next(calls[0])
        for call in calls:
            call.cancel()

    def bad_requests(self, channel: grpc.Channel) -> None:
        raw = channel.unary_stream(CAS + "FindMissingBlobs", None, None)
        for wrong in (b"\xff\xff\xff", b"\x0a\x05ab", bytes(5 * MIB)):
            try:
                list(raw(wrong, timeout=30))
                self.errors.append(f"{wrong[:10]!r} was accepted")
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    self.errors.append(f"{error.code()} {error.details()}")

    def cut_connections(self) -> None:
        hello = fr.PREFACE + fr.settings({})
        name = upload_name(digest(b"never sent whole"))
        begun = BYTESTREAM.WriteRequest(resource_name=name, data=bytes(20_000)).SerializeToString()
        read = BYTESTREAM.ReadRequest(resource_name=read_name(self.blob)).SerializeToString()
        for sent in (
            b"",
            b"PRI * HT",
            b"GET /status HTTP/1.1\r\nHo",
            b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            hello + b"\0\0\5\xff",
            hello + b"\0\0\0\0\0\0\0\0\0" * 3,
            hello + request(1, BYTES + "Write", begun, end=False)[:-19_950],  # no upload yet that could be gone on with
            hello + request(1, BYTES + "Read", read, end=True),
        ):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no farewell
                sock.sendall(sent)


async def test_a_storm_of_bad_clients_leaves_no_task_descriptor_or_process_behind(tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    with all_in_one(tmp_path, isolation="plain") as server:
        async with connect(server.port) as client:
            await client.write(chunks(upload_name(digest(data)), data, size=MIB))
            builder = Builder(server, client)
            assert (await builder.run("echo warm > out")).status.code == 0
            execute = await builder.request("sleep 0.05; echo $$ > out", do_not_cache=True)
        storm = Storm(server, digest(data), execute)
        await trio.to_thread.run_sync(storm.run, 1)
        idle = await settled(server)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(trio.to_thread.run_sync, storm.run, 6)
        assert storm.errors == []
        after = await settled(server, at_most=idle)
        print(f"tasks, descriptors: {idle} before, {after} after the storm")
        assert "Traceback" not in server.log_text(), server.log_text()[-3000:]
        async with connect(server.port) as client:
            assert b"".join(await client.read(read_name(digest(data)))) == data
        assert server.stop(timeout_s=10) == 0


Figures = tuple[int, int]
LAZY_TASKS = 2
"""Both ends of the worker's connection are in this process, and each starts a writer when it first has to wait."""


async def settled(server: Server, *, at_most: Figures | None = None) -> Figures:
    """Tasks and descriptors once nothing runs any more; with `at_most`, once they are back there.

    The worker keeps some processes for the next actions, as many as its own bound allows: each has a descriptor. While
    an action runs there are more processes than descriptors for them, so nothing is counted then.
    """

    def figures() -> Figures:
        tasks = status_page(server)["tasks"]
        opened, kept, of_actions = descriptors(server.pid), *worker_processes(server.pid)
        assert kept <= MAX_IDLE
        return (NEVER, NEVER) if of_actions else (tasks, opened - kept)

    allowed = None if at_most is None else (at_most[0] + LAZY_TASKS, at_most[1])
    lowest, same = figures(), 0
    with trio.move_on_after(30):
        while same < 20 or (allowed is not None and any(a > b for a, b in zip(lowest, allowed, strict=True))):
            await trio.sleep(0.02)
            before, lowest = lowest, _least(lowest, figures())
            same = same + 1 if lowest == before and NEVER not in lowest else 0
        return lowest
    raise AssertionError(f"tasks and descriptors are {lowest}; expected at most {allowed}")


NEVER = 1 << 30


def worker_processes(pid: int) -> tuple[int, int]:
    """How many processes the worker keeps for actions (children of its one reaper), and how many are below those."""
    below = {each: parent_of(each) for each in children(pid)}
    reapers = {each for each, parent in below.items() if parent == pid}
    kept = {each for each, parent in below.items() if parent in reapers}
    return len(kept), len(below) - len(reapers) - len(kept)


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _least(one: Figures, other: Figures) -> Figures:
    """The page itself is answered by tasks, over a connection, so only the lowest figures are comparable."""
    return min(one[0], other[0]), min(one[1], other[1])
