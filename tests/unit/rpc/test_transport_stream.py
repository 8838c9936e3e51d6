"""A transport as HTTP/1.1 sees it: a trio stream, whose peer may be gone."""

import pytest
import trio

from nl.rpc.contract import TransportLost
from nl.rpc.leaving import Leaving
from nl.rpc.transport import Transport
from nl.rpc.transport_stream import READ_SIZE, TransportStream


class Scripted(Transport):
    """Brings these pieces: bytes, -1 for nothing yet, b"" for the end. Takes some bytes at a time."""

    peer = "here"
    certificate = None

    def __init__(self, *pieces, takes=1000, lost=False):
        self.pieces = list(pieces)
        self.takes = takes
        self.lost = lost
        self.sent = []
        self.done = []
        self.rooms = []

    def _check(self):
        if self.lost:
            raise TransportLost("gone")

    async def wait_readable(self):
        self._check()
        await trio.lowlevel.checkpoint()

    def try_recv_into(self, view):
        self.rooms.append(len(view))
        piece = self.pieces.pop(0)
        if piece == -1:
            return -1
        view[: len(piece)] = piece
        return len(piece)

    def try_send(self, parts):
        return 0

    async def send(self, data):
        self._check()
        self.sent.append(bytes(data[: self.takes]))
        return len(self.sent[-1])

    async def wait_writable(self):
        self.done.append("writable")

    async def linger(self):
        self.done.append("linger")
        self._check()

    def close(self):
        self.done.append("close")


async def test_some_bytes_come_as_they_are_there_and_none_at_the_end():
    stream = TransportStream(Scripted(-1, b"abc", b""))
    assert await stream.receive_some() == b"abc"
    assert await stream.receive_some() == b""


@pytest.mark.parametrize(
    ("asked", "room"), [(None, READ_SIZE), (10, 10), (READ_SIZE, READ_SIZE), (READ_SIZE + 1, READ_SIZE)]
)
async def test_no_more_is_read_than_was_asked_for_and_than_a_buffer_holds(asked, room):
    transport = Scripted(b"x")
    assert await TransportStream(transport).receive_some(asked) == b"x"
    assert transport.rooms == [room]


async def test_everything_is_sent_in_its_order_however_little_is_taken_at_a_time():
    transport = Scripted(takes=3)
    stream = TransportStream(transport)
    await stream.send_all(b"abcdefgh")
    await stream.send_all(b"")
    assert transport.sent == [b"abc", b"def", b"gh"]
    await stream.wait_send_all_might_not_block()
    assert transport.done == ["writable"]


@pytest.mark.parametrize("lost", [False, True])
async def test_closing_says_goodbye_and_closes_also_where_the_peer_has_gone_first(lost):
    transport = Scripted(lost=lost)
    await TransportStream(transport).aclose()
    assert transport.done == ["linger", "close"]


async def test_a_lost_connection_is_what_trio_calls_a_broken_resource():
    stream = TransportStream(Scripted(lost=True))
    for action in (stream.receive_some(), stream.send_all(b"x")):
        with pytest.raises(trio.BrokenResourceError, match="gone"):
            await action


def test_whoever_serves_it_says_what_is_held_and_who_counts_is_told():
    stream = TransportStream(Scripted())
    told = []
    stream.held = 5
    stream.on_held = lambda: told.append(stream.held)
    for count in (100, 7, 0):
        stream.held = count
    assert told == [100, 7, 0]
    assert (stream.peer, stream.certificate) == ("here", None)


def test_it_leaves_with_its_server_if_it_has_one():
    leaving = Leaving()
    leaving.begin()
    assert TransportStream(Scripted(), leaving=leaving).leaving is leaving
    assert not TransportStream(Scripted()).leaving.begun
