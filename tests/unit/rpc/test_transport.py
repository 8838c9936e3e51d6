"""A socket as a transport: what a closed one says, whoever closed it and whenever."""

import re
import socket

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from nl.rpc.contract import TransportLost
from nl.rpc.transport import SocketTransport, StreamTransport, describe_peer


@pytest.fixture
async def pair():
    one, other = (SocketTransport(sock, unsent_max=1 << 20) for sock in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def fill(transport):
    while transport.try_send((bytes(1 << 20),)):
        pass


async def test_bytes_go_through(pair):
    one, other = pair
    buffer = memoryview(bytearray(100))
    assert other.try_recv_into(buffer) == -1
    assert one.try_send((b"ab", b"cd")) == 4
    await other.wait_readable()
    assert (other.try_recv_into(buffer), bytes(buffer[:4])) == (4, b"abcd")
    one.close()
    await other.wait_readable()
    assert other.try_recv_into(buffer) == 0


async def test_closed_before_anybody_waits_is_lost_and_harms_no_other(pair):
    """A closed socket has -1 for a descriptor: trio would note who waits for that, and refuse the next."""
    one, other = pair
    one.close()
    other.close()
    for transport in (one, other, one):
        for wait in (transport.wait_readable, transport.wait_writable):
            with pytest.raises(TransportLost):
                await wait()


@pytest.mark.parametrize("what", ["readable", "writable"])
async def test_closed_while_somebody_waits_is_lost(pair, what):
    one, _ = pair
    fill(one)
    lost = trio.Event()

    async def wait():
        with pytest.raises(TransportLost):
            await (one.wait_readable() if what == "readable" else one.wait_writable())
        lost.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert not lost.is_set()
        one.close()
    assert lost.is_set()


async def test_nothing_can_be_sent_or_read_when_it_is_closed(pair):
    one, _ = pair
    one.close()
    one.close()
    with pytest.raises(TransportLost):
        one.try_send((b"x",))
    with pytest.raises(TransportLost):
        one.try_send((b"x", b"y"))
    with pytest.raises(TransportLost):
        one.try_recv_into(memoryview(bytearray(10)))
    with pytest.raises(TransportLost):
        await one.send(b"x")
    with pytest.raises(TransportLost):
        await one.linger()


async def test_sending_waits_for_room_and_goes_on(pair):
    one, other = pair
    fill(one)
    sent = []

    async def send():
        sent.append(await one.send(b"more"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        assert not sent
        trash = memoryview(bytearray(1 << 20))
        while other.try_recv_into(trash) > 0:
            pass
    assert 0 < sent[0] <= 4


async def test_a_few_bytes_of_room_take_a_few_bytes(pair):
    one, other = pair
    assert one.try_send((b"abcdef",)) == 6
    await other.wait_readable()
    small = memoryview(bytearray(4))
    assert (other.try_recv_into(small), bytes(small)) == (4, b"abcd")
    assert (other.try_recv_into(small), bytes(small[:2])) == (2, b"ef")
    assert other.try_recv_into(small) == -1


async def test_lingering_ends_the_sending_side_and_waits_for_the_peers_end(pair):
    one, other = pair
    done = trio.Event()

    async def linger():
        await one.linger()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(linger)
        await wait_all_tasks_blocked()
        buffer = memoryview(bytearray(10))
        assert other.try_recv_into(buffer) == 0
        other.try_send((b"last words",))
        await wait_all_tasks_blocked()
        assert not done.is_set()
        other.close()
    assert done.is_set()


async def test_what_is_on_its_way_is_counted_until_it_is_there():
    listener, client = socket.socket(), socket.socket()
    with listener, client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            transport = SocketTransport(client, unsent_max=12_345)
            assert transport.peer == f"127.0.0.1:{listener.getsockname()[1]}"
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 12_345
            assert transport.on_its_way() == 0
            fill(transport)
            assert transport.on_its_way() > 0
            transport.close()
            assert transport.on_its_way() == 0


class Stream(trio.abc.Stream):
    """Gives out these pieces, then what is at the end: nothing, or an error."""

    def __init__(self, *pieces, end=b""):
        self.pieces = list(pieces)
        self.end = end
        self.sent = []
        self.closed = False

    async def receive_some(self, max_bytes=None):
        await trio.lowlevel.checkpoint()
        piece = self.pieces.pop(0) if self.pieces else self.end
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def send_all(self, data):
        if isinstance(self.end, Exception):
            raise self.end
        self.sent.append(bytes(data))

    async def wait_send_all_might_not_block(self): ...

    async def aclose(self):
        if isinstance(self.end, Exception):
            raise self.end
        self.closed = True


async def test_a_stream_is_read_as_it_comes_and_in_parts():
    transport = StreamTransport(Stream(b"abcdef", b"g"), peer="there")
    small = memoryview(bytearray(4))
    assert transport.try_recv_into(small) == -1
    got = []
    for _ in range(3):
        await transport.wait_readable()
        got.append(bytes(small[: transport.try_recv_into(small)]))
    assert got == [b"abcd", b"ef", b"g"]
    for _ in range(2):
        await transport.wait_readable()
        assert transport.try_recv_into(small) == 0
    assert (transport.peer, transport.certificate) == ("there", None)
    assert (transport.inline, transport.on_its_way()) == (False, 0)


async def test_a_stream_is_sent_to_in_pieces_and_closed_in_the_end():
    stream = Stream()
    transport = StreamTransport(stream, peer="there")
    data, count = bytes(100_000), 0
    assert transport.try_send((data,)) == 0
    while count < len(data):
        count += await transport.send(data[count:])
    assert (b"".join(stream.sent), list(map(len, stream.sent))) == (data, [65_536, 34_464])
    await transport.linger()
    assert stream.closed


@pytest.mark.parametrize("error", [OSError("x"), trio.BrokenResourceError("x"), trio.ClosedResourceError("x")])
async def test_a_stream_that_is_broken_is_lost_whatever_is_done_with_it(error):
    transport = StreamTransport(Stream(end=error), peer="there")
    for action in (transport.wait_readable, lambda: transport.send(b"x"), transport.linger):
        with pytest.raises(TransportLost, match="x"):
            await action()


async def test_closing_closes_what_is_below_whatever_kind_of_stream_it_is():
    one, other = socket.socketpair()
    with one, other:
        for sock in (one, other):
            sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(one))
        StreamTransport(stream, peer="").close()
        assert stream.socket.fileno() == -1
    here, there = trio.testing.memory_stream_pair()
    StreamTransport(here, peer="").close()
    assert await there.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await there.send_all(b"x")
    StreamTransport(Stream(), peer="").close()


def test_peers_are_called_as_people_write_them():
    one, other = socket.socketpair()
    with one, other:
        assert re.fullmatch(r"unix:uid=\d+,pid=\d+", describe_peer(one))
    with socket.socket() as nobody:
        assert describe_peer(nobody) == "unknown"

    class At:
        family = socket.AF_INET6

        def __init__(self, host):
            self.host = host

        def getpeername(self):
            return (self.host, 80, 0, 0)

    found = [describe_peer(At(host)) for host in ("10.0.0.1", "::1", "::ffff:10.0.0.1", "::ffff:1")]
    assert found == ["10.0.0.1:80", "[::1]:80", "10.0.0.1:80", "[::ffff:1]:80"]
