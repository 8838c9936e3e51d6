"""The parts put together, without a socket: what has been read is looked at, whenever buffers are put away."""

import trio
from trio.testing import wait_all_tasks_blocked

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


class Slow(Once):
    """What it is given leaves at the second attempt, as where a writer task is needed."""

    async def send(self, data):
        return len(data)


async def test_a_writer_task_that_has_nothing_to_do_ends_at_the_second_look_and_comes_again_for_more(nursery):
    connection = Connection(Slow(b""), Limits())
    outbox = connection.outbox
    outbox.nursery = nursery
    for _ in range(2):
        outbox.add(fr.ping(b"12345678"))
        outbox.flush()
        await wait_all_tasks_blocked()
        assert outbox.size == 0
        for left in (1, 0):
            assert connection.check(trio.current_time(), interval=None, timeout=9, stall=9) is None
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == left
    connection.close()
