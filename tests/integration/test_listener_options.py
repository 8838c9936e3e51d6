"""What a listener's section of a config says is what a running server does: TLS, compression, limits, bad addresses."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from tests.support.foreign import CAS, REAPI, Foreign, digest
from tests.support.processes import ROOT, Server, free_port, nl_command


def config(port: int, **http: Any) -> str:
    listener = {"http": {"socket_address": f"127.0.0.1:{port}", **http}}
    services = {"cas": [{"cas_store": "CAS"}], "bytestream": [{"cas_store": "CAS"}], "health": {}}
    return json.dumps(
        {"stores": [{"name": "CAS", "memory": {}}], "servers": [{"listener": listener, "services": services}]}
    )


class TlsServer(Server):
    """Its readiness cannot be asked over plain HTTP: the log tells it."""

    def answers(self) -> bool:
        return "Ready, listening on" in self.log_text()


@contextmanager
def serving_config(directory: Path, port: int, *, kind: type[Server] = Server, **http: Any) -> Iterator[Server]:
    file = directory / "server.json5"
    file.write_text(config(port, **http))
    server = kind(["serve", str(file)], port=port, log=directory / "server.log")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def authority(directory: Path) -> tuple[trustme.CA, dict[str, str]]:
    ca = trustme.CA()
    own = ca.issue_cert("localhost")
    own.private_key_pem.write_to_path(str(directory / "key.pem"))
    for index, blob in enumerate(own.cert_chain_pems):
        blob.write_to_path(str(directory / "cert.pem"), append=index > 0)
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    return ca, {"cert_file": str(directory / "cert.pem"), "key_file": str(directory / "key.pem")}


async def test_tls_is_spoken_and_only_clients_with_a_certificate_of_the_authority_get_in(tmp_path: Path) -> None:
    ca, files = authority(tmp_path)
    port = free_port()
    tls = {**files, "client_ca_file": str(tmp_path / "ca.pem")}
    with serving_config(tmp_path, port, kind=TlsServer, tls=tls):
        client = ca.issue_cert("a-builder")
        known = grpc.ssl_channel_credentials(
            ca.cert_pem.bytes(), client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
        )
        with grpc.secure_channel(f"localhost:{port}", known) as channel:
            foreign = Foreign(channel)
            await foreign.put(b"over TLS")
            assert await foreign.missing([digest(b"over TLS")]) == []
        stranger = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
        with grpc.secure_channel(f"localhost:{port}", stranger) as channel, pytest.raises(grpc.RpcError) as refused:
            await Foreign(channel).missing([digest(b"over TLS")])
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_messages_are_packed_both_ways_when_the_listener_says_so(tmp_path: Path) -> None:
    port = free_port()
    compression = {"send_compression_algorithm": "gzip", "accepted_compression_algorithms": ["gzip"]}
    with (
        serving_config(tmp_path, port, compression=compression),
        grpc.insecure_channel(f"127.0.0.1:{port}", compression=grpc.Compression.Gzip) as channel,
    ):
        foreign = Foreign(channel)
        blob = b"squeeze me " * 100_000
        await foreign.put(blob)
        replies = await foreign.batch_read([digest(blob)])
        assert [reply.data for reply in replies] == [blob]


async def test_packed_messages_are_refused_by_a_listener_that_does_not_take_them(tmp_path: Path) -> None:
    port = free_port()
    with (
        serving_config(tmp_path, port),
        grpc.insecure_channel(f"127.0.0.1:{port}", compression=grpc.Compression.Gzip) as channel,
    ):
        with pytest.raises(grpc.RpcError) as refused:
            await Foreign(channel).missing([digest(b"x" * k) for k in range(100)])
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "gzip" in refused.value.details()


async def test_the_limit_of_a_message_is_the_listeners(tmp_path: Path) -> None:
    port = free_port()
    with (
        serving_config(tmp_path, port, max_decoding_message_size="100kb"),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        foreign = Foreign(channel)
        await foreign.put(b"x" * 20_000)
        await foreign.put(b"y" * 200_000)  # this method takes more than the option says
        request = REAPI.BatchReadBlobsRequest(digests=[digest(b"x" * 20_000)] * 2_000)
        with pytest.raises(grpc.RpcError) as refused:
            await foreign.unary(CAS + "BatchReadBlobs", request, REAPI.BatchReadBlobsResponse)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def failing_start(directory: Path, text: str) -> str:
    file = directory / "bad.json5"
    file.write_text(text)
    done = subprocess.run([*nl_command(), "serve", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("nl: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = failing_start(tmp_path, config(taken.getsockname()[1]))
    assert "servers[0].listener.http.socket_address" in line and "already in use by another process" in line


def test_a_certificate_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    tls = {"cert_file": str(tmp_path / "no.pem"), "key_file": str(tmp_path / "no-key.pem")}
    line = failing_start(tmp_path, config(free_port(), tls=tls))
    assert "servers[0].listener.http.tls" in line and "no-key.pem" in line


def test_a_folder_that_cannot_be_made_is_one_line_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = {"name": "CAS", "filesystem": {"content_path": str(tmp_path / "file" / "cas"), "temp_path": str(tmp_path)}}
    text = json.dumps({**json.loads(config(free_port())), "stores": [store]}, indent=1)
    line = failing_start(tmp_path, text)
    assert "bad.json5:" in line and "stores[0].filesystem" in line and str(tmp_path / "file") in line
