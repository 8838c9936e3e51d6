"""Listening sockets: both families on one, and files of unix sockets that come and go with their process."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from nl.config.listeners import HttpListener
from nl.errors import ConfigError
from nl.rpc.transport import describe_peer
from nl.server import sockets
from nl.server.listeners import bind


async def bound(address, **options):
    return await bind(HttpListener(socket_address=address, **options), path="here")


def connect(family, address):
    client = socket.socket(family)
    client.settimeout(5)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    return client


async def test_the_unspecified_ipv6_address_takes_clients_of_ipv4(tmp_path):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    both = await bound("[::]:0")
    port = int(both.addresses[0].rpartition(":")[2])
    with connect(socket.AF_INET, ("127.0.0.1", port)):
        pass
    both.close()


async def test_any_other_ipv6_address_leaves_ipv4_alone():
    try:
        alone = await bound("[::1]:0")
    except ConfigError:
        pytest.skip("no IPv6 here")
    port = int(alone.addresses[0].rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        connect(socket.AF_INET, ("127.0.0.1", port))
    alone.close()


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_where_there_is_no_ipv6_the_unspecified_address_is_that_of_ipv4(monkeypatch, number, caplog):
    """What a kernel with ipv6.disable=1 says to socket(), and one without the module to bind()."""
    real = socket.socket

    class Kernel(real):
        def __init__(self, family=-1, *arguments, **options):
            if family == socket.AF_INET6:
                raise OSError(number, os.strerror(number))
            super().__init__(family, *arguments, **options)

    monkeypatch.setattr(sockets.socket, "socket", Kernel)
    fallen_back = await bound("[::]:0")
    monkeypatch.undo()
    assert fallen_back.addresses[0].startswith("0.0.0.0:")
    assert "has no IPv6" in caplog.text
    fallen_back.close()


async def test_a_unix_socket_is_a_file_for_its_owner_alone_and_goes_at_the_end(tmp_path):
    path = tmp_path / "nl.sock"
    one = await bound(f"unix:{path}")
    assert one.addresses == [f"unix:{path}"]
    assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o600
    with connect(socket.AF_UNIX, str(path)):
        pass
    one.close()
    assert not path.exists()


async def test_the_mode_of_a_unix_socket_is_what_the_config_says_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        one = await bound(f"unix:{tmp_path}/nl.sock", unix_socket_mode="0666")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "nl.sock").stat().st_mode) == 0o666
    one.close()


async def test_nobody_else_can_connect_before_the_mode_is_set(tmp_path, monkeypatch):
    first, real, before = [], os.chmod, os.umask(0)

    def chmod(path, mode):
        first.append(stat.S_IMODE(os.stat(path).st_mode))
        real(path, mode)

    monkeypatch.setattr(sockets.os, "chmod", chmod)
    try:
        one = await bound(f"unix:{tmp_path}/nl.sock", unix_socket_mode="0666")
    finally:
        os.umask(before)
    assert first == [0o600]
    one.close()


async def test_a_socket_that_a_killed_process_has_left_is_replaced(tmp_path):
    path = tmp_path / "nl.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    one = await bound(f"unix:{path}")
    with connect(socket.AF_UNIX, str(path)):
        pass
    one.close()


async def test_a_socket_on_which_somebody_listens_is_left_alone(tmp_path):
    path = tmp_path / "nl.sock"
    first = await bound(f"unix:{path}")
    with pytest.raises(ConfigError, match="already in use by another process"):
        await bound(f"unix:{path}")
    with connect(socket.AF_UNIX, str(path)):
        pass
    first.close()


async def test_what_is_no_socket_is_never_removed(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="is no socket"):
        await bound(f"unix:{path}")
    assert path.read_text() == "data"


async def test_a_successors_socket_is_not_removed_at_the_end(tmp_path):
    path = tmp_path / "nl.sock"
    first = await bound(f"unix:{path}")
    os.rename(path, tmp_path / "old")
    second = await bound(f"unix:{path}")
    first.close()
    with connect(socket.AF_UNIX, str(path)):
        pass
    second.close()
    Path(tmp_path / "old").unlink()


@pytest.mark.parametrize(("path", "why"), [
    ("{}/no/such/folder/nl.sock", "its folder does not exist"), ("{}/" + "x" * 200, "too long"),
])
async def test_a_unix_socket_that_cannot_be_made_is_one_line(tmp_path, path, why):
    with pytest.raises(ConfigError, match=why):
        await bound("unix:" + path.format(tmp_path))


async def test_the_peer_of_a_unix_socket_is_who_the_kernel_says_it_is(tmp_path):
    one = await bound(f"unix:{tmp_path}/nl.sock")
    with connect(socket.AF_UNIX, f"{tmp_path}/nl.sock"), trio.fail_after(5):
        accepted, _ = await one.sockets[0].socket.accept()
        assert describe_peer(accepted) == f"unix:uid={os.getuid()},pid={os.getpid()}"
        accepted.close()
    one.close()


async def test_the_peer_of_ipv4_on_a_socket_of_both_is_an_ipv4_address():
    both = await bound("[::]:0")
    port = int(both.addresses[0].rpartition(":")[2])
    with connect(socket.AF_INET, ("127.0.0.1", port)) as client, trio.fail_after(5):
        accepted, _ = await both.sockets[0].socket.accept()
        assert describe_peer(accepted) == f"127.0.0.1:{client.getsockname()[1]}"
        accepted.close()
    both.close()


async def test_a_socket_that_cannot_be_removed_is_a_line_in_the_log(tmp_path, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    one = await bound(f"unix:{folder / 'nl.sock'}")
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("a file now")
    one.close()
    assert f"cannot remove the socket {folder / 'nl.sock'}: Not a directory" in caplog.text


async def test_a_port_that_is_taken_is_not_taken_for_a_machine_without_ipv6(caplog):
    with pytest.raises(OSError) as caught, socket.socket(socket.AF_INET6) as other:  # noqa: PT011
        other.bind(("::", 0))
        other.listen()
        sockets.listen_tcp(socket.AF_INET6, other.getsockname(), freebind=False)
    assert caught.value.errno == errno.EADDRINUSE
    assert caplog.messages == []


def test_so_many_may_wait_to_be_accepted():
    assert sockets.BACKLOG == 1024
