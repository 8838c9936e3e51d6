"""Options of a listener: every number is one that HTTP/2 and the operating system allow, or the config is refused."""

import pytest

from nl.config.listeners import AdvancedHttpOptions, ConnectionOptions
from nl.config.loader import load_value
from nl.errors import ConfigError
from tests.unit.config.kinds import kinds


def http(**options):
    given = {"socket_address": "127.0.0.1:1", **options}
    raw = {"servers": [{"listener": {"http": given}, "services": {}}]}
    return load_value(raw, env={}, kinds=kinds(), on_warning=pytest.fail).servers[0].listener.http


def refusal(**options):
    with pytest.raises(ConfigError) as caught:
        http(**options)
    return str(caught.value)


RANGES = {
    "experimental_http2_initial_stream_window_size": (65_535, 2**31 - 1),
    "experimental_http2_initial_connection_window_size": (65_535, 2**31 - 1),
    "experimental_http2_max_frame_size": (16_384, 2**24 - 1),
    "experimental_http2_max_concurrent_streams": (1, 2**32 - 1),
    "experimental_http2_max_header_list_size": (1024, 2**32 - 1),
    "experimental_http2_max_send_buf_size": (16_384, 2**31 - 1),
    "experimental_http2_keep_alive_timeout_s": (1, 86_400),
    "http2_keep_alive_interval": (0, 86_400),
    "experimental_http2_max_pending_accept_reset_streams": (1, 2**32 - 1),
}


@pytest.mark.parametrize("key", RANGES)
def test_a_number_for_http_2_is_checked_with_its_path_its_value_and_what_is_expected(key):
    low, high = RANGES[key]
    for value in (low, high):
        assert getattr(http(advanced_http={key: value}).advanced_http, key) == value
    for value in {low - 1, high + 1} - {-1}:
        message = refusal(advanced_http={key: value})
        assert message.startswith(
            f"servers[0].listener.http.advanced_http.{key}: {value} is out of range; expected {low} to {high} ("
        ), message


def test_every_number_for_http_2_has_a_range():
    numbers = {key for key, kind in AdvancedHttpOptions.__annotations__.items() if "Count" in str(kind)}
    assert numbers == set(RANGES)


@pytest.mark.parametrize(("key", "value"), [
    ("max_connections", 0), ("max_held_bytes", "1MiB"), ("handshake_timeout_s", 0), ("stall_timeout_s", "10ms"),
    ("window_timeout_s", 0),
])
def test_what_clients_may_cost_is_never_nothing(key, value):
    assert f"servers[0].listener.http.connections.{key}: " in refusal(connections={key: value})


def test_what_clients_may_cost_can_be_told():
    given = {"max_connections": 7, "max_held_bytes": "64MiB", "handshake_timeout_s": "3s", "stall_timeout_s": 4,
             "window_timeout_s": 5, "idle_timeout_s": "1h"}
    assert http(connections=given).connections == ConnectionOptions(
        max_connections=7, max_held_bytes=64 << 20, handshake_timeout_s=3.0, stall_timeout_s=4.0,
        window_timeout_s=5.0, idle_timeout_s=3600.0,
    )


@pytest.mark.parametrize("text", ["unix:", "unix: ", "unix:/a\0b"])
def test_a_unix_socket_needs_a_path(text):
    assert "names no socket" in refusal(socket_address=text)


def test_a_unix_socket_has_a_path_and_a_mode():
    listener = http(socket_address="unix:/run/nl.sock", unix_socket_mode="0660")
    assert (listener.unix_path, int(listener.unix_socket_mode, 8)) == ("/run/nl.sock", 0o660)
    assert http().unix_path is None
    assert "is no mode" in refusal(unix_socket_mode="rw")


def test_optional_client_certificates_need_an_authority():
    tls = {"cert_file": "c", "key_file": "k", "client_auth": "accept"}
    assert "tls.client_auth: \"accept\" without client_ca_file" in refusal(tls=tls)
    assert http(tls={**tls, "client_ca_file": "ca"}).tls.client_auth == "accept"


@pytest.mark.parametrize(("text", "address"), [
    ("h:0", ("h", 0)), ("h:65535", ("h", 65535)), (":1", ("0.0.0.0", 1)), (" [::1]:1 ", ("::1", 1)),
    ("unix:/a:1", ("unix:/a:1", 0)), ("a-b.c1:80", ("a-b.c1", 80)),
])
def test_where_a_listener_is(text, address):
    assert http(socket_address=text).address == address


@pytest.mark.parametrize(("text", "problem"), [
    ("h:65536", "has a port above 65535"), ("h:99999", "has a port above 65535"), ("h", "is not an address"),
    ("h:", "is not an address"), ("h:123456", "is not an address"), ("h:-1", "is not an address"),
    ("-h:1", "is not an address"), ("h-:1", "is not an address"), ("::1:1", "is not an address"),
])
def test_what_is_no_address_is_refused(text, problem):
    assert problem in refusal(socket_address=text)


@pytest.mark.parametrize(("key", "least"), [("handshake_timeout_s", 0.1), ("stall_timeout_s", 0.1),
                                            ("window_timeout_s", 0.1), ("max_connections", 1),
                                            ("max_held_bytes", 16 << 20)])
def test_the_least_that_clients_may_cost(key, least):
    assert getattr(http(connections={key: least}).connections, key) == least
    below = least - 1 if isinstance(least, int) else least * 0.99
    assert f"servers[0].listener.http.connections.{key}: " in refusal(connections={key: below})


@pytest.mark.parametrize(("mode", "is_one"), [("600", True), ("0660", True), ("777", True), ("00600", False),
                                              ("800", False), ("66", False), ("0o660", False)])
def test_modes_are_three_octal_digits(mode, is_one):
    if is_one:
        assert http(unix_socket_mode=mode).unix_socket_mode == mode
    else:
        assert "is no mode" in refusal(unix_socket_mode=mode)


def test_a_list_of_revoked_certificates_needs_an_authority():
    tls = {"cert_file": "c", "key_file": "k", "client_crl_file": "r"}
    assert "tls.client_crl_file: set without client_ca_file; expected both or neither" in refusal(tls=tls)
    assert http(tls={**tls, "client_ca_file": "ca"}).tls.client_auth == "require"
