"""The server as a whole, on a clock that jumps: its grace, who makes room, what is counted, what a handler is shown."""

import logging

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.model.caller import caller_headers
from nl.rpc import frames as fr
from nl.rpc.contract import TransportLost
from nl.rpc.leaving import Leaving
from nl.rpc.options import ServerOptions
from nl.rpc.server import Server
from nl.rpc.slots import IDLE_S, Slots
from tests.unit.rpc.served import Handlers, connected, serving, unix_listener
from tests.wire.raw_h2 import headers, message


@pytest.fixture
async def connect():
    """Opens clients, and closes them in the end."""
    clients = []

    async def opened(address, hello=True):
        clients.append(connected(address))
        if hello:
            await clients[-1].send(fr.PREFACE + fr.settings({}))
            await clients[-1].settled()
        return clients[-1]

    yield opened
    for client in clients:
        client.stream.socket.close()


class Service(Handlers):
    def __init__(self):
        super().__init__(Echo=self.echo, Hang=self.hang, Stubborn=self.stubborn, Shown=self.shown)
        self.release = trio.Event()
        self.running = 0

    async def echo(self, call):
        await call.send_message(await call.recv_message())

    async def hang(self, call):
        await call.recv_message()
        self.running += 1
        await self.release.wait()
        await call.send_message(b"released")

    async def stubborn(self, call):
        with trio.CancelScope(shield=True):
            await self.hang(call)

    async def shown(self, call):
        await call.recv_message()
        await call.send_message(repr(caller_headers()).encode())


# -- shutting down ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "took"), [(None, 0.3), ("Hang", 5 + 0.3), ("Stubborn", 5 + 1)])
async def test_calls_have_the_grace_and_a_second_to_end_then_all_is_closed(autojump_clock, connect, method, took):
    service = Service()
    server = Server([service], options=ServerOptions(keepalive_interval=None))
    listener = unix_listener()
    address = listener.socket.getsockname()
    ended = trio.Event()

    async def serve(*, task_status=trio.TASK_STATUS_IGNORED):
        await server.serve([listener], task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        client = await connect(address)
        if method is not None:
            await client.send(headers(1, method), message(1, b"a"))
            await client.settled()
            await wait_all_tasks_blocked()
        began = trio.current_time()
        over = []

        async def shutdown():
            await server.shutdown(5)
            over.append(trio.current_time() - began)

        nursery.start_soon(shutdown)
        await wait_all_tasks_blocked()
        assert server.leaving.begun
        with pytest.raises(OSError):
            connected(address)
        if method == "Stubborn":
            await trio.sleep(7)
            assert over == pytest.approx([5 + 1])
            service.release.set()
        elif method == "Hang":
            assert await client.status(1) == (14, "the server is shutting down")
        await client.until(fr.GOAWAY)
        client.stream.socket.close()
        await ended.wait()
        if method != "Stubborn":
            assert trio.current_time() - began <= took + 0.1
        assert server.statistics()["connections"] == 0


async def test_a_server_that_does_not_serve_yet_can_be_shut_down():
    server = Server([])
    await server.shutdown(0)
    assert server.leaving.begun


async def test_who_has_not_spoken_yet_when_the_server_leaves_is_let_go(autojump_clock, connect):
    async with serving(Service()) as (server, address):
        silent = await connect(address, hello=False)
        while not server.slots.greeting:
            await trio.lowlevel.checkpoint()
        await server.shutdown(100)
        assert trio.current_time() < 5
        await silent.closed()


# -- counting --------------------------------------------------------------------------------------------------------


async def test_statistics_are_levels_and_counters_of_what_is_there(autojump_clock, connect):
    seen = []

    async def http1(stream, first):
        stream.held = 700
        seen.append(first)
        await stream.receive_some()

    service = Service()
    async with serving(service, http1=http1) as (server, address):
        assert set(server.statistics().values()) == {0}
        client = await connect(address)
        await client.send(headers(1, "Hang"), message(1, b"a"))
        await client.settled()
        other = await connect(address, hello=False)
        await other.send(b"GET / HTTP/1.1\r\n")
        while not seen:
            await trio.lowlevel.checkpoint()
        await connect(address, hello=False)
        while not server.slots.greeting:
            await trio.lowlevel.checkpoint()
        found = server.statistics()
        [connection] = server._connections
        assert found == {
            "connections": 3, "handshakes": 1, "http2_connections": 1, "http1_connections": 1, "accepted": 3,
            "streams": 1, "held_bytes": 700 + connection.held_bytes(),
        }  # fmt: skip
        assert server._held.total == found["held_bytes"]
        assert seen == [b"GET / HTTP/1.1\r\n"]
        other.stream.socket.close()
        service.release.set()
        await client.ending(1)
        while server.slots.taken > 2:
            await trio.lowlevel.checkpoint()
        found = server.statistics()
        assert (found["connections"], found["http1_connections"], found["accepted"], found["streams"]) == (2, 0, 3, 0)
        assert server.outcomes == {0: 1}


async def test_connections_look_after_themselves_about_once_a_second(autojump_clock, connect):
    async with serving(Service(), options=ServerOptions(keepalive_interval=10)) as (server, address):
        client = await connect(address)
        began = trio.current_time()
        await client.until(fr.PING)
        assert 10 <= trio.current_time() - began <= 12
        client.stream.socket.close()
        while server.statistics()["connections"]:
            await trio.sleep(0.1)


async def test_what_is_too_much_is_found_out_at_once_and_not_at_the_next_sweep(autojump_clock, connect, caplog):
    async def http1(stream, first):
        stream.held = 5000
        await trio.sleep_forever()

    async with serving(Service(), http1=http1, options=ServerOptions(max_held=4000)) as (server, address):
        began = trio.current_time()
        client = await connect(address, hello=False)
        await client.send(b"GET / HTTP/1.1\r\n")
        await client.closed()
        assert trio.current_time() - began < 0.9
        assert server.statistics()["held_bytes"] == server._held.total == 0
        [text] = caplog.messages
        assert text.endswith("the server holds too much for its clients, 5000 bytes of it for this one")
        assert text.startswith("unix:")


# -- who makes room --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [-0.5, 0.5])
@pytest.mark.parametrize("which", ["HTTP/2", "HTTP/1.1"])
async def test_one_that_has_been_idle_for_a_while_makes_room(autojump_clock, connect, which, over):
    service = Service()
    left = []

    async def http1(stream, first):
        with stream.leaving.idle():
            await trio.sleep_forever()
        left.append("HTTP/1.1")

    options = ServerOptions(max_connections=2, keepalive_interval=None)
    async with serving(service, http1=http1, options=options) as (server, address):
        if which == "HTTP/2":
            idle = await connect(address)
        else:
            idle = await connect(address, hello=False)
            await idle.send(b"GET / HTTP/1.1\r\n")
            while not server._others:
                await trio.lowlevel.checkpoint()
        busy = await connect(address)
        await busy.send(headers(1, "Hang"), message(1, b"a"))
        await busy.settled()
        await trio.sleep(IDLE_S + over)
        assert server._let_an_idle_one_go() is (over > 0)
        await wait_all_tasks_blocked()
        if over < 0:
            assert not left
            assert not any(each.draining for each in server._connections)
            return
        if which == "HTTP/2":
            await idle.until(fr.GOAWAY)
        else:
            assert left == ["HTTP/1.1"]
        assert server._let_an_idle_one_go() is False, "nobody is asked twice"
        assert not any(each.draining and each.h2.streams for each in server._connections)


async def test_of_both_kinds_the_one_that_has_been_idle_longer_is_asked(autojump_clock, connect):
    left = []

    async def http1(stream, first):
        with stream.leaving.idle():
            await trio.sleep_forever()
        left.append(first)

    async with serving(Service(), http1=http1, options=ServerOptions(keepalive_interval=None)) as (server, address):
        for order in ((b"one", None), (None, b"two")):
            for what in order:
                client = await connect(address, hello=what is None)
                if what is not None:
                    await client.send(what)
                    while len(server._others) < 1:
                        await trio.lowlevel.checkpoint()
                await trio.sleep(IDLE_S + 1)
            assert server._let_an_idle_one_go()
            await wait_all_tasks_blocked()
            drained = [each for each in server._connections if each.draining]
            assert (len(left), len(drained)) == ((1, 0) if order[0] else (1, 1))
            for each in list(server._connections):
                each.close_soon()
            await wait_all_tasks_blocked()


async def test_listeners_are_asked_for_room_for_each_other(autojump_clock):
    process = Slots(10, remedy="")
    servers = [Server([], slots=process) for _ in range(2)]
    assert len(process.relief) == 2
    assert [len(each.slots.relief) for each in servers] == [1, 1]
    assert [let_go() for let_go in process.relief] == [False, False]
    assert [each.slots.limit for each in servers] == [20_000] * 2


# -- first words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"PRI * HT"])
async def test_who_does_not_finish_its_first_words_is_let_go_after_a_while(autojump_clock, connect, said):
    async with serving(Service(), options=ServerOptions(handshake_timeout=7)) as (server, address):
        client = await connect(address, hello=False)
        await client.send(said)
        began = trio.current_time()
        await client.closed()
        assert 6.9 <= trio.current_time() - began <= 7.1
        while server.slots.taken:
            await trio.lowlevel.checkpoint()
        assert not server.slots.greeting


@pytest.mark.parametrize("said", [b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
async def test_what_nobody_here_speaks_is_ended_politely_and_soon(autojump_clock, connect, said):
    async with serving(Service()) as (server, address):
        client = await connect(address, hello=False)
        await client.send(said)
        began = trio.current_time()
        await client.closed()
        while server.slots.taken:
            await trio.sleep(0.05)
        assert trio.current_time() - began < 0.5, "also where the client does not close"


async def test_the_preface_may_come_byte_by_byte(autojump_clock, connect):
    async with serving(Service()) as (_, address):
        client = await connect(address, hello=False)
        for byte in fr.PREFACE:
            await client.send(bytes([byte]))
            await wait_all_tasks_blocked()
        await client.send(fr.settings({}), headers(1), message(1, b"a"))
        assert (await client.status(1))[0] == 0


async def test_a_bug_in_serving_one_connection_is_told_and_costs_that_connection(autojump_clock, connect, caplog):
    async def http1(stream, first):
        if first.startswith(b"BUG"):
            raise ZeroDivisionError("a bug")
        kinds = {b"O": OSError, b"L": TransportLost, b"C": trio.ClosedResourceError, b"G": trio.BrokenResourceError}
        raise kinds[first[:1]]("gone")

    caplog.set_level(logging.INFO)
    async with serving(Service(), http1=http1) as (server, address):
        gone = "connection ended: gone"
        for first, text in ((b"BUG", "a connection failed"), (b"G", gone), (b"O", gone), (b"L", gone), (b"C", gone)):
            client = await connect(address, hello=False)
            await client.send(first)
            await client.closed()
            while server.slots.taken:
                await trio.lowlevel.checkpoint()
            assert caplog.messages[-1] == text
        assert server.statistics()["http1_connections"] == 0
        client = await connect(address)
        await client.send(headers(1), message(1, b"a"))
        assert (await client.status(1))[0] == 0


@pytest.mark.parametrize("names", [frozenset(), frozenset({"x-own", "authorization"})])
async def test_handlers_are_shown_the_headers_that_the_options_name_and_no_others(autojump_clock, connect, names):
    async with serving(Service(), options=ServerOptions(shown_headers=names)) as (_, address):
        client = await connect(address)
        extra = [(b"x-own", b"1"), (b"x-other", b"2"), (b"authorization", b"secret")]
        await client.send(headers(1, "Shown", extra=extra), message(1, b""))
        _, data, _ = await client.ending(1)
        shown = (("x-own", "1"), ("authorization", "secret")) if names else ()
        assert data[5:] == repr(shown).encode()


def test_leaving_is_the_servers_own():
    assert isinstance(Server([]).leaving, Leaving)
    assert not Server([]).leaving.begun
