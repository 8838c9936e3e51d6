"""grpc stores against our own server in another process: the contract, a killed server, TLS, tokens, headers."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trustme

from nl.config.workers import ClientTlsOptions
from nl.plugin import (
    CHUNK,
    Buffer,
    BytesReader,
    ConfigError,
    PermissionDeniedError,
    Reader,
    Store,
    UnavailableError,
    digest_of,
)
from nl.stores.grpc import GrpcEndpoint, GrpcRetry
from nl.testing import BareContext, StoreConformance, make_blob, read, same
from tests.support.foreign import REAPI, digest
from tests.support.foreign_server import ForeignServer
from tests.support.grpc_stores import Sorting, grpc_store, make_result, remote_cas
from tests.support.processes import Server, free_port, nl_command, serving
from tests.support.serving import memory_store

LARGE = 24 * 1024 * 1024
PATIENT = GrpcRetry(max_retries=12, delay=0.05, jitter=0.2)  # minutes in all


def filesystem(folder: Path) -> dict[str, Any]:
    return {"filesystem": {"content_path": str(folder), "temp_path": f"{folder}.temp"}}


def write_config(directory: Path, port: int, stores: dict[str, Any], **server: Any) -> Path:
    """A config with one listener that serves CAS and AC."""
    listener = {"socket_address": f"127.0.0.1:{port}", **server.pop("listener", {})}
    services = {
        "cas": [{"cas_store": "CAS"}], "ac": [{"ac_store": "AC"}], "bytestream": [{"cas_store": "CAS"}],
        "capabilities": server.pop("capabilities", []), "health": {},
    }  # fmt: skip
    config = {
        "stores": [{"name": name, **store} for name, store in stores.items()],
        "servers": [{"listener": {"http": listener}, "services": services, **server}],
    }
    file = directory / "config.json5"
    file.write_text(json.dumps(config))
    return file


@contextmanager
def running(directory: Path, **server: Any) -> Iterator[Server]:
    """`nl serve` with its stores on disk."""
    directory.mkdir()
    port = free_port()
    stores = {"CAS": filesystem(directory / "cas"), "AC": filesystem(directory / "ac")}
    file = write_config(directory, port, stores, **server)
    with serving(["serve", str(file)], port=port, log=directory / "log") as process:
        yield process


INSTANCES = 400


@dataclass
class Instances:
    """What a folder of the suite is: an instance of the server, and a store for the keys that are plain names."""

    port: int
    free: Iterator[str]
    taken: dict[Path, tuple[str, Store]]

    def of(self, folder: Path) -> str:
        if folder not in self.taken:
            self.taken[folder] = (next(self.free), memory_store())
        return self.taken[folder][0]

    def names_of(self, folder: Path) -> Store:
        return self.taken[folder][1]


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    """One server for the whole suite, and for each of its tests an instance with stores of its own."""
    directory = tmp_path_factory.mktemp("server")
    port, names = free_port(), [f"test/{number}" for number in range(INSTANCES)]
    cas = [{"instance_name": name, "cas_store": f"CAS-{name}"} for name in names]
    config = {
        "stores": [{"name": f"{sort}-{name}", "memory": {}} for sort in ("CAS", "AC") for name in names],
        "servers": [{
            "listener": {"http": {"socket_address": f"127.0.0.1:{port}"}},
            "services": {
                "cas": cas, "bytestream": cas, "health": {},
                "capabilities": [{"instance_name": name} for name in names],
                "ac": [{"instance_name": name, "ac_store": f"AC-{name}"} for name in names],
            },
        }],
    }  # fmt: skip
    file = directory / "config.json5"
    file.write_text(json.dumps(config))
    with serving(["serve", str(file)], port=port, log=directory / "log"):
        yield Instances(port, iter(names), {})


class TestGrpcStoreOfAnotherProcess(StoreConformance):
    """The contract, with the server in another process."""

    def make_value(self, size: int, *, seed: int = 0) -> bytes:
        return make_result(size, seed=seed)

    survives_restart = True
    instances: Instances

    @pytest.fixture(autouse=True)
    def take_instances(self, instances: Instances) -> None:
        type(self).instances = instances

    def make_store(self, context: BareContext, folder: Path) -> Store:
        port, name = self.instances.port, self.instances.of(folder)
        blobs = grpc_store(port, instance_name=name)
        results = grpc_store(port, kind="ac", instance_name=name)
        return Sorting(blobs, results, self.instances.names_of(folder))


# --- a server that is killed


class Watched(Reader):
    """Bytes in memory, with something that happens when half of them have been taken."""

    def __init__(self, data: bytes, at_half: Any, *, rewinds: bool) -> None:
        self._inner = BytesReader(data)
        self._taken = 0
        self._at_half = at_half
        self._rewinds = rewinds
        self.size = len(data)

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        parts = await self._inner.receive_parts(max_bytes)
        self._taken += sum(map(len, parts))
        if self._at_half is not None and self._taken >= self.size // 2:
            act, self._at_half = self._at_half, None
            await trio.to_thread.run_sync(act)
        return parts

    @property
    def can_rewind(self) -> bool:
        return self._rewinds

    async def rewind(self) -> None:
        await self._inner.rewind()


def restart(server: Server) -> None:
    server.kill()
    server.start()


async def test_a_server_killed_and_restarted_in_an_upload_has_the_blob_whole(tmp_path: Path) -> None:
    data = make_blob(LARGE)
    with running(tmp_path / "server") as server:
        async with remote_cas(server.port, retry=PATIENT) as store:
            reader = Watched(data, lambda: restart(server), rewinds=True)
            await store.write(digest_of(data), reader)
            assert await read(store, digest_of(data)) == data


async def test_an_upload_that_cannot_be_had_again_fails_with_the_server_and_can_be_made_anew(tmp_path: Path) -> None:
    data = make_blob(LARGE)
    with running(tmp_path / "server") as server:
        async with remote_cas(server.port, retry=PATIENT) as store:
            with pytest.raises(UnavailableError, match=f"127.0.0.1:{server.port}"):
                await store.write(digest_of(data), Watched(data, lambda: restart(server), rewinds=False))
            assert await store.has([digest_of(data)]) == [None]
            await store.put(digest_of(data), data)
            assert await read(store, digest_of(data)) == data


async def test_a_server_killed_and_restarted_in_a_download_costs_no_byte(tmp_path: Path) -> None:
    data = make_blob(LARGE)
    with running(tmp_path / "server") as server:
        async with remote_cas(server.port, retry=PATIENT) as store:
            await store.put(digest_of(data), data)
            got = bytearray()
            async with store.open(digest_of(data)) as reader:
                killed = False
                while parts := await reader.receive_parts():
                    for part in parts:
                        got += part
                    if not killed and len(got) > LARGE // 2:
                        killed = True
                        await trio.to_thread.run_sync(restart, server)
            assert got == data


# --- packed blobs

PACKS = [{"remote_cache_compression": True}]


def packable(size: int, *, seed: int = 0) -> bytes:
    """Bytes that pack to half."""
    return make_blob(size // 2, seed=seed).hex().encode()


async def test_blobs_travel_packed_between_two_of_our_own(tmp_path: Path) -> None:
    with running(tmp_path / "server", capabilities=PACKS) as server:
        async with remote_cas(server.port, experimental_remote_cache_compression=True) as store:
            blobs = [packable(size) for size in (65_536, 200_000, LARGE)]
            for data in blobs:
                await store.write(digest_of(data), BytesReader(data))
                assert same(await read(store, digest_of(data)), data)
                assert same(await read(store, digest_of(data), offset=10, length=50_000), data[10:50_010])
            counts = store.statistics()
            assert (counts["written_packed"], counts["read_packed"]) == (2, 2), "what batches carry goes plain"
        async with remote_cas(server.port) as plain:
            for data in blobs:
                assert same(await read(plain, digest_of(data)), data)
            assert plain.statistics()["read_packed"] == 0


async def test_a_server_that_does_not_announce_packing_gets_blobs_as_they_are(tmp_path: Path) -> None:
    data = packable(300_000)
    with running(tmp_path / "server", capabilities=[{}]) as server:
        async with remote_cas(server.port, experimental_remote_cache_compression=True) as store:
            await store.put(digest_of(data), data)
            assert same(await store.get(digest_of(data)), data)
            counts = store.statistics()
            assert (counts["written_packed"], counts["read_packed"]) == (0, 0)


async def test_a_server_killed_and_restarted_while_blobs_travel_packed_costs_no_byte(tmp_path: Path) -> None:
    data = packable(LARGE)
    with running(tmp_path / "server", capabilities=PACKS) as server:
        async with remote_cas(
            server.port, retry=PATIENT, experimental_remote_cache_compression=True
        ) as store:
            await store.write(digest_of(data), Watched(data, lambda: restart(server), rewinds=True))
            got = bytearray()
            async with store.open(digest_of(data)) as reader:
                killed = False
                while parts := await reader.receive_parts():
                    for part in parts:
                        got += part
                    if not killed and len(got) > LARGE // 2:
                        killed = True
                        await trio.to_thread.run_sync(restart, server)
            assert same(got, data)
            counts = store.statistics()
            assert (counts["written_packed"], counts["read_packed"]) == (0, 1), "both broke off once"


# --- TLS, tokens


async def test_each_endpoint_has_its_own_tls_client_certificate_and_packing(tmp_path: Path) -> None:
    ca = trustme.CA()
    own, client = ca.issue_cert("127.0.0.1", "localhost"), ca.issue_cert("worker@example.org")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, cert in (("server", own), ("client", client)):
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    tls = {"ca_file": str(tmp_path / "ca.pem"), "cert_file": str(tmp_path / "client.pem"),
           "key_file": str(tmp_path / "client.key")}  # fmt: skip
    listener = {
        "tls": {"cert_file": str(tmp_path / "server.pem"), "key_file": str(tmp_path / "server.key"),
                "client_ca_file": str(tmp_path / "ca.pem")},
        "compression": {"accepted_compression_algorithms": ["gzip"], "send_compression_algorithm": "gzip"},
    }  # fmt: skip
    data = b"packs well " * 200_000
    with tls_server(tmp_path / "server", listener, tls) as port:
        address = f"grpcs://localhost:{port}"
        known = GrpcEndpoint(address=address, tls_config=ClientTlsOptions(**tls), compression="gzip")
        async with remote_cas(endpoints=(known,)) as store:
            for blob in (data, data[:5000]):
                await store.put(digest_of(blob), blob)
                assert await store.get(digest_of(blob)) == blob
        strange = GrpcEndpoint(address=address, tls_config=ClientTlsOptions(ca_file=tls["ca_file"]))
        async with remote_cas(endpoints=(strange,)) as store:
            with pytest.raises(UnavailableError, match=rf"localhost:{port}"):
                await store.check()
    missing = GrpcEndpoint(address=address, tls_config=ClientTlsOptions(ca_file="/nowhere/ca.pem"))
    with pytest.raises(ExceptionGroup) as caught:
        async with remote_cas(endpoints=(missing,)):
            raise AssertionError("started")
    (error,) = caught.value.exceptions
    assert isinstance(error, ConfigError) and error.path == "endpoints[0].tls_config.ca_file"


@contextmanager
def tls_server(directory: Path, listener: dict[str, Any], tls: dict[str, str]) -> Iterator[int]:
    """A server whose health answer needs a client certificate: it is up when it takes a TLS connection."""
    directory.mkdir()
    port = free_port()
    stores = {"CAS": filesystem(directory / "cas"), "AC": filesystem(directory / "ac")}
    file = write_config(directory, port, stores, listener=listener)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*nl_command(), "serve", str(file)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                ssl.get_server_certificate(("127.0.0.1", port), ca_certs=tls["ca_file"], timeout=1)
                break
            except ssl.SSLError:
                break  # it speaks TLS, and wants a certificate
            except OSError:
                assert time.monotonic() < until, (directory / "log").read_text()
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(30)


async def test_a_token_of_a_file_opens_the_door_and_a_new_one_in_it_is_taken(tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"

    def create(name: str, right: str) -> str:
        command = [*nl_command(), "token", "create", name, "--allow", right, "--file", str(tokens)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    reads, writes = create("reads", "read"), create("writes", "write")
    mine.write_text(f"{reads}\n")
    with running(tmp_path / "server", auth={"tokens_file": str(tokens)}) as server:
        endpoint = GrpcEndpoint(address=f"grpc://127.0.0.1:{server.port}", token_file=str(mine))
        async with remote_cas(endpoints=(endpoint,)) as store:
            assert await store.has([digest_of(b"x")]) == [None]
            with pytest.raises(PermissionDeniedError, match="write_cas") as caught:
                await store.put(digest_of(b"x"), b"x")
            assert f"127.0.0.1:{server.port}" in str(caught.value) and reads not in str(caught.value)
            mine.write_text(f"{writes}\n")
            with trio.fail_after(20):
                while True:
                    try:
                        await store.put(digest_of(b"x"), b"x")
                        break
                    except PermissionDeniedError:
                        await trio.sleep(0.1)
            assert await store.get(digest_of(b"x")) == b"x"


# --- headers of clients


async def test_a_clients_headers_are_passed_on_as_the_config_says_and_its_token_only_if_it_says_so(
    tmp_path: Path,
) -> None:
    data = make_blob(500_000)
    with ForeignServer().running() as backend:
        backend.put(data, digest_of(data))
        backend.put(b"small", digest_of(b"small"))

        def remote(*names: str, kind: str = "cas") -> dict[str, Any]:
            address = {"address": f"grpc://127.0.0.1:{backend.port}"}
            return {"grpc": {"endpoints": [address], "store_type": kind, "forward_headers": list(names)}}

        for names in (("X-Request-Id",), ("x-request-id", "authorization")):
            directory = tmp_path / str(len(names))
            directory.mkdir()
            port = free_port()
            file = write_config(directory, port, {"CAS": remote(*names), "AC": remote(names[0], kind="ac")})
            with serving(["serve", str(file)], port=port, log=directory / "log"):
                backend.metadata.clear()
                backend.calls.clear()
                await trio.to_thread.run_sync(ask_with_headers, port, data)
            by_call = list(zip(backend.calls, backend.metadata, strict=True))
            (of_result,) = [headers for method, headers in by_call if method == "GetActionResult"]
            assert of_result["x-request-id"] == "r-2" and "authorization" not in of_result, "another store's list"
            own = [headers for method, headers in by_call if method not in ("GetCapabilities", "GetActionResult")]
            assert {method for method, _ in by_call} >= {"FindMissingBlobs", "BatchReadBlobs", "Read", "Write"}
            assert all(headers["x-request-id"].startswith("r-") for headers in own), by_call
            assert {headers["x-request-id"] for headers in own} == {"r-1", "r-2"}, "each with its own"
            assert all("x-other" not in headers for headers in own)
            tokens = {headers.get("authorization") for headers in own}
            assert tokens == ({None} if len(names) == 1 else {"Bearer t-1", "Bearer t-2"})


def ask_with_headers(port: int, data: bytes) -> None:
    """Two clients, who ask for the same at once."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        prefix = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
        for number in (1, 2):
            metadata = [("x-request-id", f"r-{number}"), ("x-other", "1"), ("authorization", f"Bearer t-{number}")]

            def call(name: str, request: Any, reply: Any, metadata: Any = metadata) -> Any:
                method = channel.unary_unary(prefix + name, lambda each: each.SerializeToString(), reply.FromString)
                return method(request, metadata=metadata, timeout=30)

            asked = REAPI.FindMissingBlobsRequest(blob_digests=[digest(data), digest(b"missing")])
            assert len(call("FindMissingBlobs", asked, REAPI.FindMissingBlobsResponse).missing_blob_digests) == 1
            wanted = REAPI.BatchReadBlobsRequest(digests=[digest(data), digest(b"small")])
            got = call("BatchReadBlobs", wanted, REAPI.BatchReadBlobsResponse)
            assert sorted(each.data for each in got.responses) == sorted([data, b"small"])
            update = REAPI.BatchUpdateBlobsRequest()
            new = make_blob(300_000, seed=number)
            update.requests.add(digest=digest(new), data=new)
            stored = call("BatchUpdateBlobs", update, REAPI.BatchUpdateBlobsResponse)
            assert not stored.responses[0].status.code
        asked = REAPI.GetActionResultRequest(action_digest=digest(b"action"))
        results = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult"
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(results)(asked.SerializeToString(), metadata=metadata, timeout=30)
