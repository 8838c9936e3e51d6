"""How a call gets its identity: the transport hands over peer, certificate and header; handlers see the answer."""

import grpc
import pytest
import trustme
from grpclib.const import Cardinality, Handler

from nl.errors import UnauthenticatedError
from nl.model.access import Grant, Identity, PeerCertificate, Right
from nl.rpc.options import ServerOptions
from nl.rpc.tls import server_context
from tests.wire.rpc_hosting import in_thread, serving

ONE = Identity("one", [Grant(("*",), Right.READ_CAS)])


class Names:
    """Answers with the caller's name and with the metadata that the handler sees."""

    async def name(self, stream):
        await stream.recv_message()
        await stream.send_message(f"{stream.identity.name} {sorted(stream.metadata)}".encode())

    def __mapping__(self):
        return {"/t.S/Name": Handler(self.name, Cardinality.UNARY_UNARY, bytes, bytes)}


def ask(channel, *metadata):
    return channel.unary_unary("/t.S/Name")(b"", timeout=10, metadata=metadata)


async def test_without_authentication_everybody_is_everyone():
    async with serving(Names()) as (_, port):

        def run():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                return ask(channel, ("authorization", "Bearer x"))

        assert (await in_thread(run)).startswith(b"everyone ")


async def test_every_call_is_asked_about_and_its_header_is_for_nobody_else():
    asked = []

    def authenticate(peer, certificate, header):
        asked.append((peer.rpartition(":")[0], certificate, header))
        if header == b"Bearer wrong":
            raise UnauthenticatedError("this is not known here")
        return ONE

    async with serving(Names(), options=ServerOptions(authenticate=authenticate)) as (_, port):

        def run():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                replies = [ask(channel), ask(channel, ("authorization", "Bearer right"), ("x-a", "1"))]
                with pytest.raises(grpc.RpcError) as caught:
                    ask(channel, ("authorization", "Bearer wrong"))
                return replies, caught.value, ask(channel)

        replies, error, after = await in_thread(run)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert error.details() == "this is not known here"
    assert [reply.split(b" ")[0] for reply in (*replies, after)] == [b"one"] * 3
    assert b"x-a" in replies[1]
    assert b"authorization" not in replies[1]
    headers = [None, b"Bearer right", b"Bearer wrong", None]
    assert asked == [("127.0.0.1", None, header) for header in headers]


async def test_a_verified_client_certificate_is_handed_over(tmp_path):
    ca = trustme.CA()
    server, client = ca.issue_cert("127.0.0.1"), ca.issue_cert("ci.example.org", "bot@example.org", common_name="ci")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    tls = server_context(
        cert_file=str(tmp_path / "cert.pem"),
        key_file=str(tmp_path / "key.pem"),
        client_ca_file=str(tmp_path / "ca.pem"),
    )
    seen = []

    def authenticate(peer, certificate, header):
        seen.append(certificate)
        return ONE

    async with serving(Names(), options=ServerOptions(authenticate=authenticate, tls=tls)) as (_, port):

        def run():
            key, chain = client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
            with grpc.secure_channel(
                f"127.0.0.1:{port}", grpc.ssl_channel_credentials(ca.cert_pem.bytes(), key, chain)
            ) as channel:
                return ask(channel)

        await in_thread(run)
    [certificate] = seen
    assert isinstance(certificate, PeerCertificate)
    assert certificate.common_name == "ci"
    assert certificate.dns_names == ("ci.example.org",)
    assert certificate.emails == ("bot@example.org",)
    assert 1.8e9 < certificate.not_after < 2**63
