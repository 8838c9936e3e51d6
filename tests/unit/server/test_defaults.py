"""`--listen`, as a config says it."""

import json

import pytest

from nl.config.loader import load_text
from nl.server.defaults import default_config, socket_address


@pytest.mark.parametrize(("listen", "address"), [
    ("127.0.0.1", "127.0.0.1:7"), ("127.0.0.1:80", "127.0.0.1:80"), ("localhost", "localhost:7"), ("::", "[::]:7"),
    ("::1", "[::1]:7"), ("[::1]", "[::1]:7"), ("[::1]:80", "[::1]:80"), ("fe80::1", "[fe80::1]:7"),
    ("unix:/run/nl.sock", "unix:/run/nl.sock"), ("unix:relative:80", "unix:relative:80"), (":80", ":80"),
])
def test_an_address_may_bring_its_own_port(listen, address):
    assert socket_address(listen, 7) == address


def test_each_address_is_a_listener_with_the_same_services(tmp_path):
    text = default_config(listen=("127.0.0.1", "unix:/run/$nl.sock"), port=7, data_dir=tmp_path, max_bytes=0)
    config = load_text(text, source="here")
    addresses = [server.listener.http.address for server in config.servers]
    assert addresses == [("127.0.0.1", 7), ("unix:/run/$nl.sock", 0), ("127.0.0.1", 0)]
    raw = json.loads(text)["servers"]
    assert raw[0]["services"] == raw[1]["services"]
    assert len({server.name for server in config.servers}) == 3
