"""What a connection sends: whole frames in order, also behind a sender who was cancelled in the middle of one."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc import messages
from nl.rpc.outbox import Outbox, Socket, _advance
from nl.rpc.transport import Transport


class Narrow(Transport):
    """Takes as many bytes as it is told to, and keeps them."""

    inline = True
    peer = "here"
    certificate = None

    def __init__(self, room):
        self.room = room
        self.taken = b""

    def try_send(self, parts):
        data = b"".join(parts)[: self.room]
        self.room -= len(data)
        self.taken += data
        return len(data)

    async def wait_writable(self):
        while not self.room:
            await trio.sleep_forever()

    async def send(self, data):
        await self.wait_writable()
        return self.try_send((data,))

    async def wait_readable(self): ...

    def try_recv_into(self, view):
        return -1

    async def linger(self): ...

    def close(self): ...


def test_advancing_skips_what_was_sent():
    parts = [b"abc", b"", b"defg", b"h"]
    index = _advance(parts, 0, 5)
    assert b"".join(parts[index:]) == b"fgh"
    assert _advance([b"a", b"b"], 0, 2) == 2


@pytest.mark.parametrize("room", range(0, 75, 3))
async def test_a_cancelled_writer_leaves_whole_frames_and_the_right_size(room):
    transport = Narrow(room)
    outbox = Outbox(transport, on_room=lambda: None)
    ahead = fr.ping(b"12345678") + fr.settings({})
    outbox.add(ahead)
    frames = messages.Cutter([b"a" * 10, b"b" * 15]).cut(25, sid=1, max_frame=10)
    whole = b"".join(frames.parts)
    async with trio.open_nursery() as nursery:
        await outbox.acquire()
        nursery.start_soon(outbox.write, frames)
        await wait_all_tasks_blocked()
        cancelled = room < len(ahead) + len(whole)
        nursery.cancel_scope.cancel()
    assert outbox.socket is Socket.FREE
    assert outbox.size == sum(map(len, outbox.queue))
    transport.room = 1 << 20
    outbox.flush()
    begun = max(0, room - len(ahead))
    kept = min(-(-begun // 19) * 19, len(whole))  # frames of 19, 19 and 14 bytes, and of them those that have begun
    assert transport.taken == ahead + whole[:kept]
    assert frames.unsent == (25 - sum(frames.sizes[: -(-begun // 19)]) if cancelled else 0)
    assert (outbox.size, outbox.queue) == (0, [])
