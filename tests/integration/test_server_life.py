"""The life of a server process as its supervisor sees it: signals at any time, closed streams, few descriptors."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.foreign import CAS, REAPI, digest
from tests.support.processes import ROOT, nl_command

SERVICES: dict[str, Any] = {
    "cas": [{"cas_store": "CAS"}], "bytestream": [{"cas_store": "CAS"}], "ac": [{"ac_store": "AC"}], "health": {},
}  # fmt: skip
SLOW_START = """
import trio
import nl.stores.memory as memory

async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
    print("the store starts", flush=True)
    {how}
    task_status.started()

memory.MemoryStore.run = run
"""


def config(*addresses: str, **http: Any) -> str:
    listeners = [{"http": {"socket_address": each, **http}} for each in addresses or ("127.0.0.1:0",)]
    return json.dumps({
        "stores": [{"name": name, "memory": {}} for name in ("CAS", "AC")],
        "servers": [{"listener": each, "services": SERVICES} for each in listeners],
    })  # fmt: skip


class Process:
    """`nl serve FILE` with its output in a file."""

    def __init__(self, folder: Path, text: str, *, nofile: int | None = None, path: Path | None = None) -> None:
        (folder / "config.json5").write_text(text)
        self.log = folder / "log"
        environment = {**os.environ, **({"PYTHONPATH": f"{path}:{ROOT}"} if path else {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*nl_command(), "serve", str(folder / "config.json5")], cwd=ROOT, stdout=log, stderr=log,
                env=environment, preexec_fn=lambda: _limit(nofile),
            )  # fmt: skip

    def text(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], Any], *, seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.text()
            assert self.process.poll() is None, self.text()
            time.sleep(0.01)
        return found

    def addresses(self) -> list[str]:
        """What it says that it listens on, once it does."""
        def ready() -> list[str]:
            marks = [line for line in self.text().splitlines() if "Ready, listening on " in line]
            return [address for line in marks for address in line.rpartition("Ready, listening on ")[2].split(", ")]

        return list(self.until(ready))

    @property
    def port(self) -> int:
        return int(self.addresses()[0].rpartition(":")[2])

    def ends(self, number: int = signal.SIGTERM, *, seconds: float = 20) -> tuple[int, float]:
        """Sends a signal; the exit code, and how long it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(seconds), time.monotonic() - began


def _limit(nofile: int | None) -> None:
    if nofile is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))


@contextmanager
def running(*arguments: Any, **options: Any) -> Iterator[Process]:
    one = Process(*arguments, **options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


# ---------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_stores_start_ends_the_process_in_order(tmp_path: Path, number: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_START.format(how="await trio.sleep(600)"))
    with running(tmp_path, config(), path=tmp_path) as server:
        server.until(lambda: "the store starts" in server.text())
        code, took = server.ends(number)
        assert code == 0 and took < 2, server.text()
        assert "while it was starting" in server.text() and "Successfully shut down" in server.text()


def test_a_second_signal_ends_a_start_that_hangs_in_a_thread(tmp_path: Path) -> None:
    how = "await trio.to_thread.run_sync(__import__('time').sleep, 600)"
    (tmp_path / "sitecustomize.py").write_text(SLOW_START.format(how=how))
    with running(tmp_path, config(), path=tmp_path) as server:
        server.until(lambda: "the store starts" in server.text())
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: "while it was starting" in server.text())
        code, took = server.ends()
        assert code == -signal.SIGTERM and took < 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_there_is_a_loop_ends_the_process_at_once_without_a_traceback(number: int) -> None:
    script = "import time; from nl.cli.process import begin; begin(); print('begun', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.wait(5) == -number
        assert process.stderr.read() == ""


def test_a_health_watch_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    with running(tmp_path, config()) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        states: list[int] = []

        def follow() -> None:
            try:
                states.extend(each.status for each in watch)
            except grpc.RpcError as error:
                states.append(error.code().value[0])

        thread = threading.Thread(target=follow)
        thread.start()
        code, took = server.ends()
        thread.join()
        assert (code, states) == (0, [health_pb2.HealthCheckResponse.NOT_SERVING, grpc.StatusCode.UNAVAILABLE.value[0]])
        assert took < 1.5, f"{took:.2f} s"  # 0.1 s on a machine with nothing else to do


def test_an_idle_http_connection_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    with running(tmp_path, config()) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        client.request("GET", "/status")
        assert client.getresponse().read()
        code, took = server.ends()
        assert code == 0 and took < 1.5, f"{took:.2f} s"
        assert client.sock.recv(1) == b""
        client.close()


# ---------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full"])
def test_a_server_does_not_mind_which_of_its_streams_are_closed(tmp_path: Path, closed: str) -> None:
    """And no file or socket of its own becomes the standard output of it or of its actions."""
    log = "" if "2>" in closed else f"2>{tmp_path}/log"
    command = f"exec {' '.join(nl_command())} serve --listen unix:{tmp_path}/nl.sock --data-dir {tmp_path}/data"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(["bash", "-c", f"{command} {closed} {log}"], cwd=ROOT, env=buffered) as process:
        try:
            assert until_served(process, tmp_path / "nl.sock")["stores"]
            for number in (0, 1, 2):
                target = os.readlink(f"/proc/{process.pid}/fd/{number}")
                assert target.startswith(("/", "pipe:")), f"descriptor {number} is {target}"
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert not (tmp_path / "nl.sock").exists()
    if log:
        assert "Traceback" not in (tmp_path / "log").read_text()


def until_served(process: subprocess.Popen[Any], path: Path) -> Any:
    end = time.monotonic() + 30
    while True:
        assert time.monotonic() < end and process.poll() is None
        with suppress(FileNotFoundError, ConnectionRefusedError):
            page = status_over(path)
            if page["status"] == "SERVING":
                return page
        time.sleep(0.02)


def status_over(path: Path) -> Any:
    """The status page of a unix socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65_536), b""))
    return json.loads(answer.partition(b"\r\n\r\n")[2])


# --------------------------------------------------------------------------------------------------------- listeners


def test_every_listener_is_printed_and_serves(tmp_path: Path) -> None:
    sock = tmp_path / "nl.sock"
    with running(tmp_path, config("127.0.0.1:0", f"unix:{sock}")) as server:
        server.until(lambda: len(server.addresses()) == 2)
        tcp, unix = server.addresses()
        assert unix == f"unix:{sock}"
        for target in (tcp, unix):
            with grpc.insecure_channel(target) as channel:
                reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert reply.status == health_pb2.HealthCheckResponse.SERVING
        server.until(lambda: status_over(sock)["listeners"][unix]["connections"] == 1)  # grpc's last one has left
        page = status_over(sock)
        assert set(page["listeners"]) == {tcp, unix}
        assert page["listeners"][unix]["http1_connections"] == 1
        assert page["listeners"][tcp]["accepted"] == 1
        assert "google.bytestream.ByteStream" in page["listeners"][tcp]["services"]
        assert server.ends()[0] == 0
    assert not sock.exists()


def test_a_worker_comes_in_through_a_unix_socket(tmp_path: Path) -> None:
    sock = tmp_path / "workers.sock"
    parts = json.loads(config(f"unix:{sock}"))
    parts["schedulers"] = [{"name": "S", "simple": {}}]
    parts["servers"][0]["services"]["worker_api"] = {"scheduler": "S"}
    parts["workers"] = [{"local": {
        "worker_api_endpoint": {"uri": f"unix:{sock}"}, "cas_fast_slow_store": "CAS",
        "work_directory": str(tmp_path / "work"), "upload_action_result": {"ac_store": "AC"},
    }}]  # fmt: skip
    with running(tmp_path, json.dumps(parts)) as server:
        server.until(lambda: "Worker registered with scheduler" in server.text())
        assert server.ends()[0] == 0


# ------------------------------------------------------------------------------------------------------- descriptors


def test_silent_sockets_beyond_the_limit_of_files_keep_nobody_out_and_fail_no_upload(tmp_path: Path) -> None:
    text = json.loads(config())
    for store in text["stores"]:
        store.pop("memory")
        folder = f"{tmp_path}/{store['name']}"
        store["filesystem"] = {"content_path": folder, "temp_path": f"{folder}.temp"}
    with running(tmp_path, json.dumps(text), nofile=256) as server:
        port, silent = server.port, []
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
            for _ in range(400):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
                silent.append(sock)
            server.until(lambda: "connections are taken" in server.text())
            for number in range(40):
                put(channel, f"blob {number}".encode())
            with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as other:
                reply = health_pb2_grpc.HealthStub(other).Check(health_pb2.HealthCheckRequest(), timeout=15)
                assert reply.status == 1
            assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 200
        for sock in silent:
            sock.close()
        assert server.ends()[0] == 0
        log = server.text()
        assert log.count("connections are taken") == 1 and "raise global.max_open_files" in log
        assert "Traceback" not in log and "Too many open files" not in log


def put(channel: grpc.Channel, data: bytes) -> None:
    request = REAPI.BatchUpdateBlobsRequest()
    request.requests.add(digest=digest(data), data=data)
    call = channel.unary_unary(
        CAS + "BatchUpdateBlobs", REAPI.BatchUpdateBlobsRequest.SerializeToString,
        REAPI.BatchUpdateBlobsResponse.FromString,
    )  # fmt: skip
    assert call(request, timeout=10).responses[0].status.code == 0


def test_accept_without_a_descriptor_is_one_log_line_and_goes_on_when_there_are_some(tmp_path: Path) -> None:
    """Somebody else in the process has taken them all, which no count of connections can know."""
    with running(tmp_path, config()) as server:
        port = server.port
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (len_fds(server), 4096))
        client = socket.create_connection(("127.0.0.1", port), timeout=20)  # the kernel's backlog takes it
        server.until(lambda: "cannot accept: this process may have no more open files" in server.text())
        time.sleep(0.5)  # ten tracebacks a second would show
        assert server.text().count("cannot accept") == 1 and "Traceback" not in server.text()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        client.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
        assert server.ends()[0] == 0


def len_fds(server: Process) -> int:
    return max(int(each) for each in os.listdir(f"/proc/{server.process.pid}/fd")) + 1
