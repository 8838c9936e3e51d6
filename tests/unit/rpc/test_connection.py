"""The parts put together, without a socket: what has been read is looked at, whenever buffers are put away."""

from nl.rpc import frames as fr
from nl.rpc.arena import COMPACT_AFTER_S
from nl.rpc.connection import Connection
from nl.rpc.h2.limits import Limits
from nl.rpc.transport import Transport


class Once(Transport):
    """Has these bytes, and never any more."""

    peer = "here"
    certificate = None

    def __init__(self, data):
        self.data = data

    def try_recv_into(self, view):
        count = min(len(view), len(self.data))
        view[:count], self.data = self.data[:count], self.data[count:]
        return count or -1

    async def wait_readable(self): ...

    def try_send(self, parts):
        return 0

    async def send(self, data): ...

    async def wait_writable(self): ...

    async def linger(self): ...

    def close(self): ...


async def test_frames_that_wait_for_their_turn_outlive_their_buffer():
    """Parsing pauses after a thousand frames; a second later the buffer may be put away, and nothing more may come."""
    count = 2000
    connection = Connection(Once(fr.settings({}) + fr.window_update(0, 1000) * count), Limits())
    more = connection.pump()
    assert more
    assert connection.h2.send_window < fr.DEFAULT_WINDOW + 1000 * count
    assert connection.inbox.current is not None
    connection.inbox.compact(connection.h2.now + COMPACT_AFTER_S, ())
    assert connection.inbox.current is None
    while more:
        more = connection.pump()
    assert connection.h2.send_window == fr.DEFAULT_WINDOW + 1000 * count
    connection.close()
