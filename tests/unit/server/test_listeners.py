"""What a listener's section says is what the transport is told."""

import socket
import ssl
from dataclasses import replace

import pytest
import trio
import trustme

from nl.config.listeners import AdvancedHttpOptions, CompressionOptions, ConnectionOptions, HttpListener, TlsOptions
from nl.errors import ConfigError
from nl.rpc.h2.limits import Limits
from nl.rpc.live_tls import LiveContext
from nl.rpc.options import ServerOptions
from nl.server.listeners import bind, http_limits, transport_options


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


KNOBS = {
    "experimental_http2_initial_stream_window_size": ("stream_window", 70_000),
    "experimental_http2_initial_connection_window_size": ("connection_window", 80_000),
    "experimental_http2_max_frame_size": ("max_frame_size", 20_000),
    "experimental_http2_max_concurrent_streams": ("max_concurrent_streams", 5),
    "experimental_http2_max_header_list_size": ("max_header_list_size", 5000),
    "experimental_http2_max_pending_accept_reset_streams": ("reset_burst", 6),
}


@pytest.mark.parametrize("key", KNOBS)
def test_a_knob_of_http_2_turns_what_it_names_and_nothing_else(key):
    limit, value = KNOBS[key]
    told = options(advanced_http=AdvancedHttpOptions(**{key: value})).limits
    assert told == replace(Limits(), **{limit: value})


def test_what_is_not_said_is_as_the_transport_has_it():
    assert options() == ServerOptions()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"http2_keep_alive_interval": 7}, {"keepalive_interval": 7.0}),
        ({"http2_keep_alive_interval": 0}, {"keepalive_interval": None}),
        ({"experimental_http2_keep_alive_timeout_s": 8}, {"keepalive_timeout": 8.0}),
        ({"experimental_http2_max_send_buf_size": 1 << 15}, {"max_send_buffer": 1 << 15}),
    ],
)
def test_so_are_times_and_buffers(given, told):
    assert options(advanced_http=AdvancedHttpOptions(**given)) == replace(ServerOptions(), **told)


@pytest.mark.parametrize(
    ("send", "accepted", "told"),
    [
        (None, (), (None, ())), ("none", ("none",), (None, ())), ("gzip", ("none", "gzip"), ("gzip", ("gzip",))),
        ("none", ("gzip",), (None, ("gzip",))),
    ],
)  # fmt: skip
def test_messages_are_packed_as_the_config_says(send, accepted, told):
    given = CompressionOptions(send_compression_algorithm=send, accepted_compression_algorithms=accepted)
    found = options(compression=given)
    assert (found.send_compression, found.accepted_compression) == told


def test_the_largest_message_is_as_the_config_says():
    assert options(max_decoding_message_size=77).max_message_size == 77


def test_the_files_of_tls_are_looked_at_as_often_as_the_config_says(files):
    assert options(tls=TlsOptions(**files)).tls._interval_s == 10.0
    assert options(tls=TlsOptions(**files, reload_interval_s=3.0)).tls._interval_s == 3.0


@pytest.mark.parametrize("missing", ["cert_file", "client_ca_file", "client_crl_file"])
@pytest.mark.parametrize("interval_s", [0, 10])
def test_a_file_of_tls_that_cannot_be_used_is_named_with_its_path(files, missing, interval_s):
    with pytest.raises(ConfigError, match=f"^here.tls.{missing}: "):
        options(tls=TlsOptions(**{**files, missing: "/nowhere"}, reload_interval_s=interval_s))


class NoNames(trio.abc.HostnameResolver):
    """Knows nobody."""

    async def getaddrinfo(self, *args):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *args):
        raise NotImplementedError


async def test_a_name_that_is_none_and_an_address_that_is_taken_are_one_line_each():
    trio.socket.set_custom_hostname_resolver(NoNames())
    with pytest.raises(ConfigError, match='^here: "nowhere:1" cannot be resolved: Name or service not known$'):
        await bind(HttpListener(socket_address="nowhere:1"), path="here")
    first = await bind(HttpListener(socket_address="127.0.0.1:0"), path="here")
    try:
        with pytest.raises(ConfigError, match=f"^here: Address '{first.addresses[0]}' is already in use by another"):
            await bind(HttpListener(socket_address=first.addresses[0]), path="here")
    finally:
        first.close()
    with pytest.raises(ConfigError, match="^here: Address '192.0.2.1:0' is not an address of this machine"):
        await bind(HttpListener(socket_address="192.0.2.1:0"), path="here")


async def test_an_address_may_be_bound_before_it_exists():
    bound = await bind(HttpListener(socket_address="192.0.2.1:0", freebind=True), path="here")
    assert bound.addresses[0].startswith("192.0.2.1:")
    bound.close()
