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
from nl.model.access import EVERYONE
from nl.rpc.channel import Channel
from nl.rpc.live_tls import LiveContext
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


def crl_of(*certificates):
    """The authority's list of revoked certificates."""
    now = datetime.datetime.now(datetime.UTC)
    ca_cert = x509.load_pem_x509_certificate(CA.cert_pem.bytes())
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca_cert.subject)
    builder = builder.last_update(now).next_update(now + datetime.timedelta(days=1))
    for certificate in certificates:
        serial = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(serialization.load_pem_private_key(CA.private_key_pem.bytes(), None), hashes.SHA256())


@pytest.fixture
def files(tmp_path):
    """Paths of PEM files by name."""
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, cert in (("server", SERVER), ("client", CLIENT), ("revoked", REVOKED), ("stranger", STRANGER)):
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    (tmp_path / "crl.pem").write_bytes(crl_of(REVOKED).public_bytes(serialization.Encoding.PEM))
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


def remembering(seen):
    """An authenticator that lets everybody in and keeps what certificates they have shown."""

    def authenticate(peer, certificate, authorization):
        seen.append(certificate)
        return EVERYONE

    return authenticate


async def test_the_authenticator_and_a_page_learn_whom_the_certificate_names(files):
    seen = []

    async def page(request):
        return Response(body=",".join(request.certificate.emails).encode())

    tls = context(files, client_ca_file=files["ca.pem"])
    http1 = HttpServer({"/who": Route(page)}).serve
    options = ServerOptions(tls=tls, authenticate=remembering(seen))
    async with serving(RawService(), options=options, http1=http1) as (_, port):
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
    options = ServerOptions(tls=context(files), authenticate=remembering(seen))
    async with serving(RawService(), options=options) as (_, port):
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


async def test_optional_client_certificates_let_those_without_one_in_but_no_wrong_one(files):
    tls = context(files, client_ca_file=files["ca.pem"], client_crl_file=files["crl.pem"], client_optional=True)
    async with serving(RawService(), options=ServerOptions(tls=tls)) as (_, port):
        for name in ("client", None):
            assert await in_thread(lambda name=name: echo(port, files, name)) == b"eeeee"
        with pytest.raises(grpc.RpcError):
            await in_thread(lambda: echo(port, files, "revoked"))


def replace_file(target, source):
    """As certificate managers do it: another inode under the name."""
    beside = Path(f"{target}.new")
    beside.write_bytes(Path(source).read_bytes())
    beside.rename(target)


def shown_certificate(port):
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


async def reloaded(live, before):
    with trio.fail_after(10):
        while live.context is before:
            await trio.sleep(0.01)


async def test_new_files_are_taken_up_by_new_connections_and_the_old_ones_go_on(files, caplog, tmp_path):
    caplog.set_level("INFO")
    names = [files["server.pem"], files["server.key"]]
    live = LiveContext(lambda: context(files), names, interval_s=0.02)
    renewed = CA.issue_cert("localhost", "127.0.0.1")
    (tmp_path / "renewed.pem").write_bytes(renewed.cert_chain_pems[0].bytes())
    (tmp_path / "renewed.key").write_bytes(renewed.private_key_pem.bytes())
    async with serving(RawService(), options=ServerOptions(tls=live)) as (_, port):
        with grpcio_channel(port, files) as channel:
            call = channel.unary_unary("/t.S/Echo")
            assert await in_thread(lambda: call(b"1", timeout=10)) == b"1"
            before = live.context
            replace_file(files["server.pem"], tmp_path / "renewed.pem")
            await trio.sleep(0.1)  # certificate and key do not match: not taken, and said once
            assert live.context is before
            assert await in_thread(shown_certificate, port) == SERVER.cert_chain_pems[0].bytes().decode()
            replace_file(files["server.key"], tmp_path / "renewed.key")
            await reloaded(live, before)
            assert await in_thread(lambda: call(b"2", timeout=10)) == b"2"
        assert await in_thread(shown_certificate, port) == renewed.cert_chain_pems[0].bytes().decode()
    bad = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(bad) == 1 and "cannot be used, the earlier ones stay" in bad[0].getMessage()


async def test_a_certificate_that_has_been_revoked_does_not_come_in_any_more(files, tmp_path):
    (tmp_path / "revoked.crl").write_bytes(Path(files["crl.pem"]).read_bytes())
    Path(files["crl.pem"]).write_bytes(crl_of().public_bytes(serialization.Encoding.PEM))
    kwargs = {"client_ca_file": files["ca.pem"], "client_crl_file": files["crl.pem"]}
    live = LiveContext(lambda: context(files, **kwargs), list(kwargs.values()), interval_s=0.02)
    async with serving(RawService(), options=ServerOptions(tls=live)) as (_, port):
        assert await in_thread(lambda: echo(port, files, "revoked")) == b"eeeee"
        before = live.context
        replace_file(files["crl.pem"], tmp_path / "revoked.crl")
        await reloaded(live, before)
        with pytest.raises(grpc.RpcError):
            await in_thread(lambda: echo(port, files, "revoked"))


async def test_files_that_do_not_change_are_not_loaded_again(files):
    loads = []

    def load():
        loads.append(1)
        return context(files)

    live = LiveContext(load, [files["server.pem"], "/nowhere"], interval_s=0.001)
    with trio.move_on_after(0.2):
        await live.run()
    assert len(loads) == 1


def test_an_encrypted_key_is_one_line_and_nobody_is_asked_for_a_passphrase(files, tmp_path):
    key = serialization.load_pem_private_key(Path(files["server.key"]).read_bytes(), None)
    lock = serialization.BestAvailableEncryption(b"secret")
    encoding, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "locked.key").write_bytes(key.private_bytes(encoding, pkcs8, lock))
    with pytest.raises(ConfigError, match="key_file: .*locked.key is encrypted; expected a key without a passphrase"):
        server_context(cert_file=files["server.pem"], key_file=str(tmp_path / "locked.key"))


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
