"""The parts put together, without a socket: what has been read is looked at, whenever buffers are put away."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc.arena import COMPACT_AFTER_S
from nl.rpc.connection import LINGER_S, MAX_QUEUED, Connection
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.h2.limits import Limits
from nl.rpc.outbox import Socket
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


async def test_how_long_a_peer_may_read_nothing_and_say_nothing(nursery):
    connection = Connection(Once(b""), Limits())
    outbox = connection.outbox
    born = connection.born

    def check(now, **kwargs):
        return connection.check(born + now, **{"interval": None, "timeout": 9, "stall": 60, **kwargs})

    outbox.progress, outbox.socket = born, Socket.TAKEN
    assert check(60) is None
    assert check(60.5) == "the peer has read nothing for 60 s"
    outbox.socket = Socket.FREE
    assert check(1000) is None, "nothing waits for it"
    assert check(29, interval=30) is None
    assert connection.ping_sent is None
    assert check(30, interval=30) is None
    assert connection.ping_sent == born + 30
    assert bytes(b"".join(outbox.queue)) == fr.ping(b"nl-alive")
    assert check(39, interval=30) is None
    assert check(39.5, interval=30) == "no answer to a keepalive PING within 9 s"
    assert bytes(b"".join(outbox.queue)) == fr.ping(b"nl-alive"), "one is enough"
    connection.heard = born + 30  # at the very moment of the PING
    assert check(39.5, interval=30) is None, "whatever it says is a sign of life"
    assert connection.ping_sent is None
    assert check(59.9, interval=30) is None
    assert connection.ping_sent is None
    assert check(60, interval=30) is None
    assert connection.ping_sent == born + 60
    connection.on_ping_ack(b"nl-alive")
    assert connection.ping_sent is None
    outbox.lose()
    assert check(66) == "connection lost"
    connection.close()


async def test_what_is_held_for_a_peer_is_queue_buffers_and_unread_data():
    data = fr.settings({}) + fr.frame(fr.HEADERS, fr.END_HEADERS, 1, b"\x83\x86\x84")
    connection = Connection(Once(data), Limits())
    assert connection.held_bytes() == 0
    connection.pump()
    connection.rest()
    assert connection.held_bytes() == connection.outbox.size > 0
    connection.outbox.queue.clear()
    connection.outbox.size = 0
    connection.pinned = 70
    connection.h2.recv_window.left -= 500
    assert connection.held_bytes() == 570
    connection.h2.recv_window.owed += 200
    assert connection.held_bytes() == 370
    connection.close()


async def test_at_the_end_everything_is_let_go_of():
    connection = Connection(Once(fr.settings({}) + fr.ping(b"12345678")[:12]), Limits())
    connection.pump()
    assert connection.inbox.current is not None
    connection.close()
    assert connection.lost
    assert connection.inbox.kept_bytes() == 0
    assert (connection.outbox.nursery, connection.nursery, connection.reader._stream) == (None, None, None)
    assert connection.h2.role is not connection
    assert getattr(connection.outbox.on_room, "__self__", None) is None


@pytest.mark.parametrize("over", [0, 1])
async def test_a_peer_that_asks_and_does_not_read_is_cut_off_at_so_many_bytes(over):
    connection = Connection(Once(fr.settings({})), Limits())
    connection.outbox.size = MAX_QUEUED - len(fr.SETTINGS_ACK) + over
    if over:
        with pytest.raises(ConnectionFault, match="ENHANCE_YOUR_CALM: answers are not read"):
            connection.pump()
    else:
        assert connection.pump() is False
    connection.close()


class Deaf(Once):
    """Takes the last words and never closes."""

    def __init__(self):
        super().__init__(b"")
        self.said = b""

    def try_send(self, parts):
        self.said += b"".join(map(bytes, parts))
        return sum(map(len, parts))

    async def send(self, data):
        return self.try_send((data,))

    async def linger(self):
        await trio.sleep_forever()


async def test_the_last_words_have_a_moment_also_where_everything_is_cancelled(autojump_clock):
    connection = Connection(Deaf(), Limits())
    connection.outbox.add(b"queued")
    began = trio.current_time()
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.say_goodbye(ErrorCode.NO_ERROR, "bye")
    assert trio.current_time() - began == pytest.approx(LINGER_S)
    assert connection.transport.said == b"queued" + fr.goaway(0, 0, "bye")
    connection.close()


async def test_the_last_words_to_a_peer_that_has_gone_are_no_error():
    class Gone(Once):
        async def send(self, data):
            raise TransportLost("gone")

    connection = Connection(Gone(b""), Limits())
    await connection.say_goodbye(ErrorCode.NO_ERROR)
    connection.close()


async def test_a_peer_that_has_closed_is_lost_and_one_that_pauses_keeps_no_buffer():
    class Ended(Once):
        def try_recv_into(self, view):
            return super().try_recv_into(view) if self.data else 0

    connection = Connection(Ended(fr.settings({})), Limits())
    assert connection.pump() is False
    with pytest.raises(TransportLost, match="closed by the peer"):
        connection.pump()
    connection.close()
    connection = Connection(Once(b""), Limits())
    assert connection.pump() is False
    assert connection.inbox.current is None
    connection.close()
