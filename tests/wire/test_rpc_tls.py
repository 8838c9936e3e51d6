"""TLS: ALPN, mandatory client certificates, revocation; grpcio as the foreign client."""
# ruff: noqa: SIM117  # nested blocks say which ends first

import datetime
import ssl
from pathlib import Path

import grpc
import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError

from nl.errors import ConfigError
from nl.rpc.channel import Channel
from nl.rpc.options import ChannelOptions, ServerOptions
from nl.rpc.tls import client_context, server_context
from nl.web.server import HttpServer, Response, Route
from tests.wire.rpc_hosting import in_thread, serving
from tests.wire.rpc_service import RawService

CA = trustme.CA()
SERVER = CA.issue_cert("localhost", "127.0.0.1")
CLIENT = CA.issue_cert("client@example.org")
REVOKED = CA.issue_cert("revoked@example.org")
STRANGER = trustme.CA().issue_cert("stranger@example.org")


@pytest.fixture
def files(tmp_path):
    """Paths of PEM files by name."""
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, cert in (("server", SERVER), ("client", CLIENT), ("revoked", REVOKED), ("stranger", STRANGER)):
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    now = datetime.datetime.now(datetime.UTC)
    ca_cert = x509.load_pem_x509_certificate(CA.cert_pem.bytes())
    revoked = x509.load_pem_x509_certificate(REVOKED.cert_chain_pems[0].bytes())
    entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number).revocation_date(now).build()
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca_cert.subject)
    builder = builder.last_update(now).next_update(now + datetime.timedelta(days=1)).add_revoked_certificate(entry)
    key = serialization.load_pem_private_key(CA.private_key_pem.bytes(), None)
    crl = builder.sign(key, hashes.SHA256())
    (tmp_path / "crl.pem").write_bytes(crl.public_bytes(serialization.Encoding.PEM))
    return {path.name: str(path) for path in tmp_path.iterdir()}


def context(files, **kwargs):
    return server_context(cert_file=files["server.pem"], key_file=files["server.key"], **kwargs)


def grpcio_channel(port, files, name=None):
    read = lambda file: Path(file).read_bytes()  # noqa: E731
    key, chain = (read(files[f"{name}.key"]), read(files[f"{name}.pem"])) if name else (None, None)
    credentials = grpc.ssl_channel_credentials(read(files["ca.pem"]), key, chain)
    unlimited = [("grpc.max_receive_message_length", -1)]
    return grpc.secure_channel(f"localhost:{port}", credentials, unlimited)


def echo(port, files, name=None, size=5):
    with grpcio_channel(port, files, name) as channel:
        return channel.unary_unary("/t.S/Echo")(b"e" * size, timeout=10)


@pytest.mark.parametrize("size", [5, 3_000_000])
async def test_grpcio_speaks_to_us_over_tls(files, size):
    async with serving(RawService(), options=ServerOptions(tls=context(files))) as (_, port):
        assert await in_thread(lambda: echo(port, files, size=size)) == b"e" * size


async def test_a_big_stream_over_tls_arrives_whole(files):
    def run(port):
        with grpcio_channel(port, files) as channel:
            big = channel.unary_unary("/t.S/Big")(b"9000000", timeout=20)
            total = channel.stream_unary("/t.S/Drain")(iter([bytes(1_000_000)] * 9), timeout=20)
            return len(big), total

    async with serving(RawService(), options=ServerOptions(tls=context(files))) as (_, port):
        assert await in_thread(run, port) == (9_000_000, b"9000000 in 9")


async def test_client_certificates_are_required_when_a_ca_is_given(files):
    tls = context(files, client_ca_file=files["ca.pem"], client_crl_file=files["crl.pem"])
    async with serving(RawService(), options=ServerOptions(tls=tls)) as (_, port):
        assert await in_thread(lambda: echo(port, files, "client")) == b"eeeee"
        for name in (None, "stranger", "revoked"):
            with pytest.raises(grpc.RpcError) as caught:
                await in_thread(lambda name=name: echo(port, files, name))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, name


async def test_our_channel_over_tls_with_a_client_certificate(files):
    tls = context(files, client_ca_file=files["ca.pem"])
    ours = client_context(ca_file=files["ca.pem"], cert_file=files["client.pem"], key_file=files["client.key"])
    async with serving(RawService(), options=ServerOptions(tls=tls)) as (_, port):
        options = ChannelOptions(max_message_size=8 << 20)
        async with Channel(f"localhost:{port}", tls=ours, options=options) as channel:
            request = channel.request("/t.S/Big", Cardinality.UNARY_UNARY, bytes, bytes)
            async with request as stream:
                await stream.send_message(b"5000000", end=True)
                assert await stream.recv_message() == bytes(5_000_000)


async def test_a_handler_and_a_page_learn_whom_the_certificate_names(files):
    seen = []

    class Asks(RawService):
        async def echo(self, stream):
            seen.append(stream.core.transport.certificate)
            await super().echo(stream)

    async def page(request):
        return Response(body=",".join(request.certificate.emails).encode())

    tls = context(files, client_ca_file=files["ca.pem"])
    http1 = HttpServer({"/who": Route(page)}).serve
    async with serving(Asks(), options=ServerOptions(tls=tls), http1=http1) as (_, port):
        assert await in_thread(lambda: echo(port, files, "client")) == b"eeeee"
        assert seen[0].emails == ("client@example.org",) and seen[0].dns_names == ()
        client = client_context(ca_file=files["ca.pem"], cert_file=files["client.pem"], key_file=files["client.key"])
        client.set_alpn_protocols(["http/1.1"])
        stream = await trio.open_ssl_over_tcp_stream("localhost", port, ssl_context=client, https_compatible=True)
        await stream.send_all(b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join([chunk async for chunk in stream])
        assert answer.endswith(b"client@example.org")
        await trio.aclose_forcefully(stream)


async def test_without_client_certificates_nobody_is_named(files):
    seen = []

    class Asks(RawService):
        async def echo(self, stream):
            seen.append(stream.core.transport.certificate)
            await super().echo(stream)

    async with serving(Asks(), options=ServerOptions(tls=context(files))) as (_, port):
        assert await in_thread(lambda: echo(port, files, "client")) == b"eeeee"
    assert seen == [None]


async def test_a_server_we_do_not_trust_is_not_spoken_to(files):
    options = ServerOptions(tls=context(files))
    async with (
        serving(RawService(), options=options) as (_, port),
        Channel(f"localhost:{port}", tls=client_context()) as channel,
    ):
            with pytest.raises(GRPCError, match="cannot connect"):
                async with channel.request("/t.S/Echo", Cardinality.UNARY_UNARY, bytes, bytes) as stream:
                    await stream.send_message(b"", end=True)


async def test_http_1_1_is_served_over_tls_beside_grpc(files):
    async def page(request):
        return Response(body=b"hello " + request.path.encode())

    http1 = HttpServer({"/page": Route(page)}).serve
    async with serving(RawService(), options=ServerOptions(tls=context(files)), http1=http1) as (_, port):
        client = client_context(ca_file=files["ca.pem"])
        client.set_alpn_protocols(["http/1.1"])
        stream = await trio.open_ssl_over_tcp_stream("localhost", port, ssl_context=client, https_compatible=True)
        await stream.send_all(b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b""
        while chunk := await stream.receive_some():
            data += chunk
        assert data.endswith(b"hello /page")
        await trio.aclose_forcefully(stream)


async def test_a_peer_that_never_finishes_the_handshake_is_dropped(files):
    options = ServerOptions(tls=context(files), handshake_timeout=0.2)
    async with serving(RawService(), options=options) as (_, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"\x16\x03\x01")
        with trio.fail_after(20):
            try:
                assert await stream.receive_some() == b""
            except trio.BrokenResourceError:
                pass
        await stream.aclose()


def test_a_key_file_with_two_keys_is_a_config_error(files, tmp_path):
    both = tmp_path / "both.key"
    both.write_bytes(Path(files["server.key"]).read_bytes() + Path(files["client.key"]).read_bytes())
    with pytest.raises(ConfigError, match="Expected 1 key in file"):
        server_context(cert_file=files["server.pem"], key_file=str(both))


@pytest.mark.parametrize("missing", ["cert_file", "key_file", "client_ca_file"])
def test_a_missing_file_is_named(files, missing):
    given = {"cert_file": files["server.pem"], "key_file": files["server.key"], missing: "/nowhere/at.all"}
    with pytest.raises(ConfigError, match="/nowhere/at.all"):
        server_context(**given)


def test_contexts_ask_for_http_2(files):
    assert context(files).minimum_version is ssl.TLSVersion.TLSv1_2
