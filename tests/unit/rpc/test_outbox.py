"""What a connection sends: whole frames in order, also behind a sender who was cancelled in the middle of one."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc import messages
from nl.rpc.contract import TransportLost
from nl.rpc.outbox import HIGH_WATER, Outbox, Socket, _advance
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


class Slow:
    """A transport that takes nothing until it is told to."""

    def __init__(self, *, inline):
        self.inline = inline
        self.open = trio.Event()
        self.sent = []

    def try_send(self, parts):
        if not self.open.is_set():
            return 0
        self.sent += map(bytes, parts)
        return sum(map(len, parts))

    async def send(self, data):
        await self.open.wait()
        return self.try_send((data,))

    async def wait_writable(self):
        await self.open.wait()

    def close(self):
        """Nothing is open."""


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


@pytest.mark.parametrize("room", [0, 5, 17, 20, 30])
async def test_what_is_queued_while_the_writer_task_is_at_work_leaves_behind_it_also_when_that_is_cancelled(room):
    transport = Narrow(room)
    outbox = Outbox(transport, on_room=lambda: None)
    first, later, last = fr.ping(b"12345678"), fr.settings({}), fr.ping(b"87654321")
    async with trio.open_nursery() as nursery:
        outbox.nursery = nursery
        outbox.add(first)
        outbox.add(first)
        outbox.flush_soon()
        await wait_all_tasks_blocked()
        assert outbox.socket is (Socket.TAKEN if room < 34 else Socket.FREE)
        outbox.add(later)
        nursery.cancel_scope.cancel()
    outbox.nursery = None
    outbox.add(last)
    assert outbox.size == sum(map(len, outbox.queue))
    transport.room = 1 << 20
    await outbox.drain()
    assert transport.taken == first + first + later + last
    assert (outbox.size, outbox.queue, outbox.socket) == (0, [], Socket.FREE)


@pytest.mark.parametrize("room", [0, 5, 17, 20, 30, 50])
async def test_what_is_queued_while_a_payload_is_sent_leaves_behind_its_frame_also_when_that_is_cancelled(room):
    transport = Narrow(room)
    outbox = Outbox(transport, on_room=lambda: None)
    ahead, later = fr.ping(b"12345678"), fr.settings({})
    outbox.add(ahead)
    frames = messages.Cutter([b"a" * 100]).cut(100, sid=1, max_frame=100)
    whole = b"".join(frames.parts)
    async with trio.open_nursery() as nursery:
        await outbox.acquire()
        nursery.start_soon(outbox.write, frames)
        await wait_all_tasks_blocked()
        outbox.add(later)
        nursery.cancel_scope.cancel()
    assert outbox.size == sum(map(len, outbox.queue))
    transport.room = 1 << 20
    outbox.flush()
    assert transport.taken == ahead + (whole if room > len(ahead) else b"") + later


def _frames(data):
    frames = messages.DataFrames()
    frames.parts, frames.sizes = [data], [len(data)]
    return frames


async def test_a_writer_that_takes_a_full_queue_along_says_that_there_is_room():
    rooms = []
    outbox = Outbox(Narrow(1 << 20), on_room=lambda: rooms.append(outbox.size))
    await outbox.acquire()
    outbox.add(bytes(HIGH_WATER))
    await outbox.write(_frames(b"payload"))
    assert rooms == [0]


@pytest.mark.parametrize("inline", [True, False])
async def test_writers_take_turns(nursery, inline):
    transport = Slow(inline=inline)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery

    async def write(name):
        for _ in range(3):
            await outbox.acquire()
            await outbox.write(_frames(name * HIGH_WATER))

    async with trio.open_nursery() as writers:
        for name in (b"a", b"b", b"c"):
            writers.start_soon(write, name)
            await wait_all_tasks_blocked()
        transport.open.set()
    await wait_all_tasks_blocked()
    data = b"".join(transport.sent)
    order = b"".join(data[at : at + 1] for at in range(0, len(data), HIGH_WATER))
    assert order == (b"abcabcabc" if inline else b"aabcabcbc")  # into a queue, the first one comes without waiting
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("how", ["cancelled", "released", "lost"])
async def test_a_turn_is_handed_on_however_it_ends(nursery, inline, how):
    transport = Slow(inline=inline)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    await outbox.acquire()
    done = []

    async def wait(scope):
        with scope:
            try:
                await outbox.acquire()
            except TransportLost:
                done.append("lost")
            else:
                outbox.release()
                done.append("had it")

    scopes = [trio.CancelScope() for _ in range(3)]
    for scope in scopes:
        nursery.start_soon(wait, scope)
        await wait_all_tasks_blocked()
    assert not done
    if how == "cancelled":
        scopes[0].cancel()
    if how == "lost":
        outbox.lose()
    else:
        outbox.release()
    with trio.fail_after(1):
        await wait_all_tasks_blocked()
    assert done == {"cancelled": ["had it"] * 2, "released": ["had it"] * 3, "lost": ["lost"] * 3}[how]
    with trio.fail_after(1):  # it is free again, or for ever lost
        if how == "lost":
            with pytest.raises(TransportLost):
                await outbox.acquire()
        else:
            await outbox.acquire()
    nursery.cancel_scope.cancel()


async def test_with_nothing_to_send_no_writer_is_started(nursery):
    """Every connection is swept once a second: a thousand idle ones would start and end a thousand tasks at once."""
    outbox = Outbox(Narrow(100), on_room=lambda: None)
    outbox.nursery = nursery
    outbox.flush_soon()
    assert not nursery.child_tasks
    outbox.add(b"something")
    outbox.flush_soon()
    await wait_all_tasks_blocked()
    assert outbox.transport.taken == b"something"
    assert len(nursery.child_tasks) == 1
    nursery.cancel_scope.cancel()


async def test_who_is_cancelled_while_there_is_no_room_hands_its_turn_on(nursery):
    transport = Slow(inline=False)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    outbox.add(bytes(HIGH_WATER))
    outbox.flush_soon()
    scope, got = trio.CancelScope(), []

    async def first():
        with scope:
            await outbox.acquire()

    async def second():
        await outbox.acquire()
        got.append(outbox.size)

    nursery.start_soon(first)
    await wait_all_tasks_blocked()
    nursery.start_soon(second)
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
    transport.open.set()
    await wait_all_tasks_blocked()
    assert got == [0]
    nursery.cancel_scope.cancel()


async def test_who_waits_for_room_finds_out_that_the_connection_is_lost(nursery):
    outbox = Outbox(Slow(inline=False), on_room=lambda: None)
    outbox.nursery = nursery
    outbox.add(bytes(HIGH_WATER))
    outbox.flush_soon()
    ends = []

    async def acquire():
        with pytest.raises(TransportLost):
            await outbox.acquire()
        ends.append("turn")

    async def room():
        await outbox.wait_room()
        ends.append("room")

    for waiter in (acquire, acquire, room):
        nursery.start_soon(waiter)
        await wait_all_tasks_blocked()
    assert not ends
    outbox.lose()
    await wait_all_tasks_blocked()
    assert sorted(ends) == ["room", "turn", "turn"]
    nursery.cancel_scope.cancel()


async def test_another_writer_that_waits_in_vain_is_no_progress(nursery):
    """Else calls that expire one after another keep a connection whose peer reads nothing."""
    transport = Slow(inline=True)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    outbox.progress = -1.0
    for attempt in range(3):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as writers:
                await outbox.acquire()
                writers.start_soon(outbox.write, _frames(b"x"))
                await wait_all_tasks_blocked()
                assert (outbox.progress < 0) is (attempt > 0)
                outbox.progress = -1.0
                scope.cancel()
    transport.open.set()
    await outbox.acquire()
    await outbox.write(_frames(b"x"))
    transport.open = trio.Event()
    await outbox.acquire()
    nursery.start_soon(outbox.write, _frames(b"x"))
    await wait_all_tasks_blocked()
    assert outbox.progress > 0
    nursery.cancel_scope.cancel()
