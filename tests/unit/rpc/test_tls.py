"""TLS contexts: what they agree on with a peer, in memory, and what is wrong with files. tests/wire has real peers."""

import ssl

import pytest
import trustme

from nl.errors import ConfigError
from nl.model.access import PeerCertificate
from nl.rpc.tls import client_context, peer_certificate, server_context

CA = trustme.CA()
SERVER = CA.issue_cert("localhost")
CLIENT = CA.issue_cert("client@example.org")


@pytest.fixture
def files(tmp_path):
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, cert in (("server", SERVER), ("client", CLIENT)):
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    return {path.name: str(path) for path in tmp_path.iterdir()}


def own(files, name="server"):
    return {"cert_file": files[f"{name}.pem"], "key_file": files[f"{name}.key"]}


def shake_hands(server, client, *, name="localhost"):
    """Both ends after a handshake through memory; SSLError if either refuses."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    waiting = [True, True]
    for _ in range(10):
        for index, end in enumerate(ends):
            try:
                end.do_handshake()
                waiting[index] = False
            except ssl.SSLWantReadError:
                pass
        if not any(waiting):
            for reader, writer in (ends, reversed(ends)):  # with TLS 1.3 the client's certificate is judged last
                writer.write(b"x")
                assert reader.read(1) == b"x"
            return ends
    raise AssertionError("no end")


def test_both_ends_agree_on_http_2_and_the_newest_tls(files):
    client, server = shake_hands(server_context(**own(files)), client_context(ca_file=files["ca.pem"]))
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == "h2"
    assert client.version() == "TLSv1.3"


@pytest.mark.parametrize("offered", [["http/1.1"], ["http/1.0", "http/1.1"], ["other"]])
def test_who_does_not_speak_http_2_gets_http_1_1_or_nothing(files, offered):
    theirs = client_context(ca_file=files["ca.pem"])
    theirs.set_alpn_protocols(offered)
    client, _ = shake_hands(server_context(**own(files)), theirs)
    assert client.selected_alpn_protocol() == ("http/1.1" if "http/1.1" in offered else None)


@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated.*:DeprecationWarning")
@pytest.mark.parametrize("side", ["server", "client"])
def test_tls_1_1_is_refused_by_either_side(files, side):
    contexts = {"server": server_context(**own(files)), "client": client_context(ca_file=files["ca.pem"])}
    old = contexts["client" if side == "server" else "server"]
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake_hands(contexts["server"], contexts["client"])


def test_a_client_certificate_is_asked_for_where_there_is_a_ca_for_it(files):
    server = server_context(**own(files), client_ca_file=files["ca.pem"])
    _, end = shake_hands(server, client_context(ca_file=files["ca.pem"], **own(files, "client")))
    assert end.getpeercert()["subjectAltName"] == (("email", "client@example.org"),)
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client_context(ca_file=files["ca.pem"]))


def test_a_server_of_another_name_or_authority_is_not_spoken_to(files):
    server = server_context(**own(files))
    for client, name in ((client_context(ca_file=files["ca.pem"]), "example.org"), (client_context(), "localhost")):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(server, client, name=name)


@pytest.mark.parametrize("native_roots", [False, True])
def test_the_systems_authorities_are_trusted_only_where_nothing_else_is_said(files, native_roots):
    system = client_context().cert_store_stats()["x509_ca"]
    alone = client_context(ca_file=files["ca.pem"], native_roots=native_roots).cert_store_stats()["x509_ca"]
    assert alone == 1 + (system if native_roots else 0)


@pytest.mark.parametrize("option", ["cert_file", "key_file"])
def test_a_clients_certificate_and_key_come_together(files, option):
    missing = "key_file" if option == "cert_file" else "cert_file"
    with pytest.raises(ConfigError, match="both are needed, or neither") as caught:
        client_context(**{option: own(files, "client")[option]})
    assert caught.value.path == missing


def test_a_revocation_list_without_an_authority_is_a_mistake(files):
    with pytest.raises(ConfigError, match="client_ca_file") as caught:
        server_context(**own(files), client_crl_file=files["ca.pem"])
    assert caught.value.path == "client_crl_file"


def test_a_certificate_of_another_key_is_a_mistake(files):
    with pytest.raises(ConfigError) as caught:
        server_context(cert_file=files["server.pem"], key_file=files["client.key"])
    assert caught.value.path == "cert_file"


def test_a_certificate_says_what_its_fields_say():
    found = {
        "subject": ((("organizationName", "o"),), (("commonName", "someone"),)),
        "subjectAltName": (("DNS", "a.b"), ("URI", "spiffe://x"), ("email", "e@f"), ("IP", "::1"), ("DNS", "c")),
        "notAfter": "Jan  1 00:00:10 1970 GMT",
    }
    assert peer_certificate(found) == PeerCertificate(
        common_name="someone", uris=("spiffe://x",), dns_names=("a.b", "c"), emails=("e@f",), not_after=10.0
    )
    bare = peer_certificate({"notAfter": "Jan  1 00:00:10 1970 GMT"})
    assert (bare.common_name, bare.uris, bare.dns_names, bare.emails) == ("", (), (), ())
    assert peer_certificate(None) is None
    assert peer_certificate({}) is None


@pytest.mark.parametrize("content", [None, "nonsense"])
@pytest.mark.parametrize("option", ["cert_file", "key_file", "client_ca_file"])
def test_a_file_that_cannot_be_read_is_named_with_its_option(files, tmp_path, option, content):
    bad = tmp_path / "bad"
    if content is not None:
        bad.write_text(content)
    with pytest.raises(ConfigError, match=str(bad)) as caught:
        server_context(**{**own(files), option: str(bad)})
    assert caught.value.path == option
