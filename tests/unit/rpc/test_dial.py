"""Several addresses at once: who begins when, who wins, and what becomes of the others. On a clock that jumps."""

import socket
import ssl
from contextlib import suppress

import pytest
import trio

from nl.rpc.dial import CannotConnect, open_transport, race
from nl.rpc.options import ChannelOptions
from nl.rpc.origin import Endpoint, Origin
from nl.rpc.resolver import Address

ORIGIN = Origin(Endpoint("cache.example:1"), ChannelOptions())
A, B, C = (Address(ORIGIN, 2, (f"192.0.2.{number}", 1)) for number in (1, 2, 3))
NEVER = object()


class Net:
    """What each address does: (seconds, result); an exception is raised, NEVER does not end."""

    def __init__(self, **does):
        self.does = does
        self.begun = {}
        self.discarded = []
        self.names = {A: "a", B: "b", C: "c"}

    async def attempt(self, address):
        name = self.names[address]
        self.begun[name] = trio.current_time() - self.start
        seconds, result = self.does[name]
        if result is NEVER:
            await trio.sleep_forever()
        await trio.sleep(seconds)
        if isinstance(result, Exception):
            raise result
        return result

    async def race(self, *addresses):
        self.start = trio.current_time()
        got = await race(addresses, self.attempt, head_start=0.25, discard=self.discarded.append)
        self.took = trio.current_time() - self.start
        return got


async def test_the_first_address_is_alone_while_it_may_still_answer(autojump_clock):
    net = Net(a=(0.2, "A"), b=(0, "B"))
    assert await net.race(A, B) == "A"
    assert net.begun == {"a": 0}


async def test_a_silent_address_costs_its_head_start(autojump_clock):
    net = Net(a=(0, NEVER), b=(0, NEVER), c=(0.1, "C"))
    assert await net.race(A, B, C) == "C"
    assert net.begun == pytest.approx({"a": 0, "b": 0.25, "c": 0.5})
    assert net.took == pytest.approx(0.6)


async def test_an_address_that_fails_makes_way_at_once(autojump_clock):
    net = Net(a=(0.1, CannotConnect("refused")), b=(0, "B"))
    assert await net.race(A, B) == "B"
    assert net.begun["b"] == pytest.approx(0.1)


async def test_a_slow_first_address_may_still_win(autojump_clock):
    net = Net(a=(0.4, "A"), b=(1, "B"))
    assert await net.race(A, B) == "A"
    assert net.took == pytest.approx(0.4)


async def test_who_comes_second_is_discarded(autojump_clock):
    class Stubborn(Net):
        async def attempt(self, address):
            with trio.CancelScope(shield=True):
                return await super().attempt(address)

    net = Stubborn(a=(0.5, "A"), b=(0.25, "B"))
    assert {await net.race(A, B), *net.discarded} == {"A", "B"}
    assert len(net.discarded) == 1


async def test_when_all_fail_each_is_named(autojump_clock):
    net = Net(a=(0, CannotConnect("refused")), b=(1, CannotConnect("unreachable")))
    with pytest.raises(CannotConnect) as caught:
        await net.race(A, B)
    assert str(caught.value) == "192.0.2.1:1: refused; 192.0.2.2:1: unreachable"


async def test_a_time_limit_leaves_nothing_behind(autojump_clock):
    net = Net(a=(0, NEVER), b=(0, NEVER))
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(3):
            await net.race(A, B)
    assert net.discarded == []


@pytest.mark.parametrize("keepalive", [None, 0.2, 90.4])
async def test_tcp_asks_after_a_silent_host_if_it_is_told_to(keepalive):
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        host, port = listener.socket.getsockname()
        origin = Origin(Endpoint(f"{host}:{port}"), ChannelOptions(tcp_keepalive=keepalive, max_send_buffer=54_321))
        transport = await open_transport(Address(origin, socket.AF_INET, (host, port)))
        try:
            assert transport.inline
            assert transport.peer == f"{host}:{port}"
            sock, tcp = transport._sock, socket.IPPROTO_TCP
            assert sock.getsockopt(tcp, socket.TCP_NOTSENT_LOWAT) == 54_321
            assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is (keepalive is not None)
            if keepalive is not None:
                names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                assert [sock.getsockopt(tcp, name) for name in names] == [max(1, round(keepalive))] * 2 + [3]
        finally:
            transport.close()


async def test_a_unix_socket_has_no_host_to_ask_after(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        origin = Origin(Endpoint(f"unix:{path}"), ChannelOptions(tcp_keepalive=5))
        transport = await open_transport(Address(origin, socket.AF_UNIX, path))
        assert not transport._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        transport.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(111, "long text with the address"), "Connection refused"), (OSError("its own"), "its own"),
        (trio.BrokenResourceError("broken"), "broken"), (trio.ClosedResourceError(), "ClosedResourceError"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError('a bug')"),
    ],
)  # fmt: skip
async def test_an_address_that_cannot_be_reached_says_why_in_a_few_words(error, text, caplog):
    async def connect():
        raise error

    with pytest.raises(CannotConnect) as caught:
        await open_transport(Address(Origin(Endpoint(connect), ChannelOptions())))
    assert str(caught.value) == text
    bug = isinstance(error, ZeroDivisionError)
    assert caplog.messages == (["the function that opens a channel's streams failed"] if bug else [])


async def test_nobody_listening_is_said_as_the_system_says_it(tmp_path):
    origin = Origin(Endpoint(f"unix:{tmp_path}/none"), ChannelOptions())
    with pytest.raises(CannotConnect, match="No such file or directory"):
        await open_transport(Address(origin, socket.AF_UNIX, f"{tmp_path}/none"))


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_a_server_that_speaks_no_tls_costs_its_socket_and_says_why(tmp_path, says, nursery):
    """And the socket is closed: its other end finds out."""
    path = str(tmp_path / "s")
    found = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        sock.setblocking(False)

        async def serve():
            accepted, _ = await trio.socket.from_stdlib_socket(sock).accept()
            with accepted:
                await accepted.recv(10_000)
                if says:
                    await accepted.send(says)
                    with suppress(ConnectionResetError):  # with something unread, closing is a reset
                        while data := await accepted.recv(10_000):
                            found.append(data)
            found.append("closed")

        nursery.start_soon(serve)
        origin = Origin(Endpoint(f"unix:{path}", ssl.create_default_context(), authority="a"), ChannelOptions())
        with pytest.raises(CannotConnect) as caught:
            await open_transport(Address(origin, socket.AF_UNIX, path))
        assert "TLS handshake" not in str(caught.value)
        assert str(caught.value)
        with trio.fail_after(20):
            while not found or found[-1] != "closed":
                await trio.sleep(0.01)
