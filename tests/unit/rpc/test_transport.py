"""A socket as a transport: what a closed one says, whoever closed it and whenever."""

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc.contract import TransportLost
from nl.rpc.transport import SocketTransport


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
