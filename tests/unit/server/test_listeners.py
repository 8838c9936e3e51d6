"""What a listener's section says is what the transport is told."""

import ssl

import pytest
import trustme

from nl.config.listeners import ConnectionOptions, HttpListener, TlsOptions
from nl.rpc.live_tls import LiveContext
from nl.server.listeners import http_limits, transport_options


@pytest.fixture
def files(tmp_path):
    ca = trustme.CA()
    own = ca.issue_cert("localhost")
    own.private_key_pem.write_to_path(str(tmp_path / "key"))
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca"))
    return {name: str(tmp_path / path) for name, path in (("cert_file", "cert"), ("key_file", "key"),
                                                          ("client_ca_file", "ca"))}  # fmt: skip


def options(**given):
    return transport_options(HttpListener(socket_address="127.0.0.1:1", **given), path="here")


def test_what_clients_may_cost_reaches_the_transport_and_the_http_side():
    costs = ConnectionOptions(
        max_connections=7, max_held_bytes=64 << 20, handshake_timeout_s=3.0, stall_timeout_s=4.0, window_timeout_s=5.0,
        idle_timeout_s=6.0,
    )  # fmt: skip
    told = options(connections=costs)
    assert (told.max_connections, told.max_held) == (7, 64 << 20)
    assert (told.handshake_timeout, told.stall_timeout, told.window_timeout, told.idle_timeout) == (3.0, 4.0, 5.0, 6.0)
    assert (http_limits(costs).header_timeout, http_limits(costs).stall_timeout) == (3.0, 4.0)


def test_an_idle_timeout_of_zero_is_never():
    assert options().idle_timeout is None


@pytest.mark.parametrize(("client_auth", "mode"), [("require", ssl.CERT_REQUIRED), ("accept", ssl.CERT_OPTIONAL)])
def test_client_certificates_are_required_or_accepted_as_the_config_says(files, client_auth, mode):
    tls = options(tls=TlsOptions(**files, client_auth=client_auth)).tls
    assert isinstance(tls, LiveContext) and tls.context.verify_mode is mode


def test_files_are_followed_unless_the_interval_is_zero(files):
    assert isinstance(options(tls=TlsOptions(**files)).tls, LiveContext)
    assert isinstance(options(tls=TlsOptions(**files, reload_interval_s=0)).tls, ssl.SSLContext)
