"""`--listen`, as a config says it."""

import json
from types import SimpleNamespace

import pytest

from nl.config.loader import load_text
from nl.server.defaults import default_config, default_data_directory, socket_address


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


@pytest.mark.parametrize(("blobs", "results"), [(0, 0), (1, 1 << 20), (20 << 20, 1 << 20), (40 << 20, 2 << 20)])
def test_results_get_a_twentieth_on_top_and_never_too_little(tmp_path, blobs, results):
    text = default_config(listen=("127.0.0.1",), port=7, data_dir=tmp_path, max_bytes=blobs)
    cas, ac = json.loads(text)["stores"]
    assert cas["filesystem"]["eviction_policy"]["max_bytes"] == blobs
    backend = ac["completeness_checking"]["backend"]["filesystem"]
    assert backend["eviction_policy"]["max_bytes"] == results
    assert (cas["filesystem"]["content_path"], backend["content_path"]) == (f"{tmp_path}/cas", f"{tmp_path}/ac")


@pytest.mark.parametrize("tokens", [None, "relative/tokens", "/etc/$nl"])
def test_tokens_are_asked_for_where_there_is_a_file_of_them(tmp_path, monkeypatch, tokens):
    monkeypatch.chdir(tmp_path)
    text = default_config(listen=("127.0.0.1",), port=7, data_dir=tmp_path, max_bytes=0, tokens=tokens)
    auth = load_text(text).auth
    expected = {None: None, "relative/tokens": f"{tmp_path}/relative/tokens", "/etc/$nl": "/etc/$nl"}[tokens]
    assert (auth.tokens_file if auth is not None else None) == expected


@pytest.mark.parametrize(("root", "expected"), [("/x", "/x/nl"), ("relative", "{}/.local/share/nl"),
                                                ("", "{}/.local/share/nl")])  # fmt: skip
def test_data_lies_where_the_desktop_specification_says(monkeypatch, tmp_path, root, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", root)
    assert str(default_data_directory()) == expected.format(tmp_path)


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "x86-64"), ("aarch64", "arm-a64"), ("riscv64", "riscv64")])
def test_the_worker_says_what_machine_it_is_in_the_words_of_the_lexicon(monkeypatch, tmp_path, machine, name):
    monkeypatch.setattr("nl.server.defaults.os.uname", lambda: SimpleNamespace(machine=machine))
    text = default_config(listen=("127.0.0.1",), port=7, data_dir=tmp_path, max_bytes=0)
    worker = load_text(text).workers[0].local
    assert worker.platform_properties["ISA"].values == (name,)
    assert worker.max_inflight_tasks == int(worker.platform_properties["cpu_count"].values[0])
