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
    assert nursery.cancel_scope.cancelled_caught == cancelled
    assert outbox.socket is Socket.FREE
    assert outbox.size == sum(map(len, outbox.queue))
    assert all(map(len, outbox.queue))
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
    with trio.fail_after(60):
        await wait_all_tasks_blocked()
    assert done == {"cancelled": ["had it"] * 2, "released": ["had it"] * 3, "lost": ["lost"] * 3}[how]
    with trio.fail_after(60):  # it is free again, or for ever lost
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


class Gone(Narrow):
    """Its peer has left; who sends finds out."""

    def __init__(self, room=0):
        super().__init__(room)
        self.closed = 0

    def try_send(self, parts):
        if not self.room:
            raise TransportLost("gone")
        return super().try_send(parts)

    async def wait_writable(self): ...

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("how", ["flush", "task", "write", "drain"])
async def test_whoever_finds_the_peer_gone_loses_the_connection_for_all(nursery, how):
    outbox = Outbox(Gone(), on_room=lambda: None)
    outbox.nursery = nursery
    ends = []

    async def room():
        await outbox.wait_room()
        ends.append("room")

    if how == "write":
        await outbox.acquire()
        with pytest.raises(TransportLost):
            await outbox.write(_frames(b"x"))
    else:
        outbox.size = HIGH_WATER  # as if in the writer's hands
        outbox.socket = Socket.TAKEN
        nursery.start_soon(room)
        await wait_all_tasks_blocked()
        assert not ends
        outbox.socket = Socket.FREE
        outbox.add(b"x")
        if how == "flush":
            outbox.flush()
        elif how == "task":
            outbox.flush_soon()
        else:
            with pytest.raises(TransportLost):
                await outbox.drain()
            outbox.lose()
        await wait_all_tasks_blocked()
        assert ends == ["room"]
    assert outbox.lost
    assert outbox.transport.closed == (how == "task"), "the task tells the reader, who waits for the socket"
    with pytest.raises(TransportLost):
        await outbox.acquire()
    nursery.cancel_scope.cancel()


async def test_what_is_dropped_counts_no_more_and_the_connection_is_lost():
    outbox = Outbox(Narrow(0), on_room=lambda: None)
    outbox.add(b"something")
    outbox.drop()
    assert (outbox.queue, outbox.size, outbox.lost) == ([], 0, True)


async def test_nothing_leaves_between_a_payloads_turn_and_its_first_byte(nursery):
    transport = Narrow(1 << 20)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    outbox.add(b"first")
    outbox.flush_soon()  # the task is about to begin
    await outbox.acquire()
    outbox.add(b"second")
    outbox.flush()
    outbox.flush_soon()
    await wait_all_tasks_blocked()
    assert transport.taken == b""
    await outbox.write(_frames(b"payload"))
    assert transport.taken == b"firstsecondpayload"
    assert (outbox.size, outbox.queue) == (0, [])
    nursery.cancel_scope.cancel()


async def test_what_was_queued_behind_a_turn_leaves_when_that_is_given_back_unused(nursery):
    transport = Narrow(1 << 20)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    await outbox.acquire()
    outbox.add(b"queued")
    outbox.flush_soon()
    outbox.release()
    await wait_all_tasks_blocked()
    assert transport.taken == b"queued"
    nursery.cancel_scope.cancel()


async def test_while_the_reader_is_at_work_nothing_is_sent_and_after_it_all_at_once(nursery):
    transport = Narrow(1 << 20)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    outbox.corked = True
    outbox.add(b"one")
    outbox.flush_soon()
    assert not nursery.child_tasks
    outbox.add(b"two")
    outbox.corked = False
    outbox.flush()
    assert transport.taken == b"onetwo"
    assert outbox.size == 0
    outbox.flush()
    assert not nursery.child_tasks
    nursery.cancel_scope.cancel()


class Valve(Narrow):
    """Takes as many more bytes as it is told to, and wakes who waits for that."""

    def __init__(self):
        super().__init__(0)
        self.opened = trio.Event()

    def let(self, count):
        self.room += count
        opened, self.opened = self.opened, trio.Event()
        opened.set()

    async def wait_writable(self):
        while not self.room:
            await self.opened.wait()


@pytest.mark.parametrize("size", [HIGH_WATER - 1, HIGH_WATER, HIGH_WATER + 1])
@pytest.mark.parametrize("how", ["flush", "task"])
async def test_there_is_room_below_the_mark_and_not_at_it(nursery, how, size):
    """However the queue becomes shorter: at once, or by the task, some bytes at a time."""
    rooms, waited = [], []
    transport = Valve()
    outbox = Outbox(transport, on_room=lambda: rooms.append(outbox.size))

    async def wait():
        await outbox.wait_room()
        waited.append(outbox.size)

    outbox.add(bytes(size))
    if how == "task":
        outbox.nursery = nursery
        outbox.flush_soon()
    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    assert waited == ([] if size >= HIGH_WATER else [size])
    rooms.clear()
    for left in range(size - 1, HIGH_WATER - 3, -1):
        transport.let(1)
        if how == "flush":
            outbox.flush()
        await wait_all_tasks_blocked()
        assert outbox.size == left
        assert rooms == list(range(min(size, HIGH_WATER) - 1, left - 1, -1))
        assert waited == ([] if left >= HIGH_WATER else [min(size, HIGH_WATER - 1)])
    nursery.cancel_scope.cancel()


async def test_time_without_progress_counts_from_when_something_began_to_wait(autojump_clock, nursery):
    transport = Slow(inline=True)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    await trio.sleep(100)
    outbox.add(b"first")
    outbox.flush_soon()
    await wait_all_tasks_blocked()
    assert outbox.progress == trio.current_time()
    await trio.sleep(50)
    outbox.add(b"more")
    outbox.flush_soon()
    await wait_all_tasks_blocked()
    assert outbox.progress == trio.current_time() - 50
    transport.open.set()
    await wait_all_tasks_blocked()
    assert outbox.progress == trio.current_time()
    assert outbox.size == 0
    nursery.cancel_scope.cancel()


async def test_each_bit_that_the_peer_takes_is_progress(autojump_clock, nursery):
    transport = Valve()
    outbox = Outbox(transport, on_room=lambda: None)
    await outbox.acquire()
    nursery.start_soon(outbox.write, _frames(b"x" * 100))
    await wait_all_tasks_blocked()
    begun = trio.current_time()
    await trio.sleep(10)
    assert outbox.progress == begun
    transport.let(10)
    await wait_all_tasks_blocked()
    assert transport.taken == b"x" * 10
    assert outbox.progress == begun + 10
    nursery.cancel_scope.cancel()


async def test_the_last_words_wait_for_whoever_has_the_socket(nursery):
    transport = Slow(inline=True)
    outbox = Outbox(transport, on_room=lambda: None)
    await outbox.acquire()
    nursery.start_soon(outbox.write, _frames(b"payload"))
    await wait_all_tasks_blocked()
    outbox.add(b"goodbye")
    done = trio.Event()

    async def drain():
        await outbox.drain()
        done.set()

    nursery.start_soon(drain)
    await wait_all_tasks_blocked()
    assert not done.is_set()
    transport.open.set()
    await wait_all_tasks_blocked()
    assert done.is_set()
    assert transport.sent == [b"payload", b"goodbye"]
    assert (outbox.socket, outbox.size) == (Socket.FREE, 0)
    outbox.lose()
    outbox.add(b"too late")
    await outbox.drain()
    assert transport.sent == [b"payload", b"goodbye"]
    nursery.cancel_scope.cancel()


async def test_the_writer_task_makes_way_for_a_payload_which_takes_along_what_is_queued(nursery):
    transport = Slow(inline=True)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    outbox.add(b"first")
    outbox.flush_soon()
    await wait_all_tasks_blocked()
    outbox.add(b"second")

    async def payload():
        await outbox.acquire()
        assert (outbox.queue, transport.sent) == ([b"second"], [b"first"])
        await outbox.write(_frames(b"payload"))

    nursery.start_soon(payload)
    await wait_all_tasks_blocked()
    transport.open.set()
    await wait_all_tasks_blocked()
    assert transport.sent == [b"first", b"second", b"payload"]
    nursery.cancel_scope.cancel()


async def test_a_writer_task_that_has_ended_is_replaced_for_more(nursery):
    transport = Narrow(1 << 20)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.nursery = nursery
    for number in (b"1", b"2"):
        outbox.add(number)
        outbox.flush_soon()
        await wait_all_tasks_blocked()
        for _ in range(2):
            outbox.dismiss_idle_writer()
            outbox.dismiss_idle_writer()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
    assert transport.taken == b"12"
    nursery.cancel_scope.cancel()


async def test_a_queued_payload_is_counted_until_it_has_left(nursery):
    """With nothing before it, with something, and with more parts than the kernel takes at once."""
    for ahead in (b"", b"before"):
        transport = Narrow(1 << 20)
        outbox = Outbox(transport, on_room=lambda: None)
        if ahead:
            outbox.add(ahead)
        await outbox.acquire()
        frames = messages.Cutter([b"%04d" % number for number in range(3000)]).cut(1 << 20, sid=1, max_frame=16_384)
        await outbox.write(frames)
        assert transport.taken == ahead + b"".join(frames.parts)
        assert (outbox.size, outbox.socket) == (0, Socket.FREE)


async def test_who_waits_for_room_makes_it_if_nobody_else_does():
    transport = Narrow(1 << 20)
    outbox = Outbox(transport, on_room=lambda: None)
    outbox.add(bytes(HIGH_WATER))
    with trio.fail_after(60):
        await outbox.wait_room()
    assert (outbox.size, len(transport.taken)) == (0, HIGH_WATER)


async def test_who_is_cancelled_in_its_turn_has_not_got_it(nursery):
    outbox = Outbox(Slow(inline=False), on_room=lambda: None)
    outbox.add(bytes(HIGH_WATER))
    got = []

    async def acquire(scope):
        with scope:
            await outbox.acquire()
            got.append(scope)

    scope = trio.CancelScope()
    nursery.start_soon(acquire, scope)
    await wait_all_tasks_blocked()
    scope.cancel()
    await wait_all_tasks_blocked()
    assert scope.cancelled_caught
    assert got == []
    assert not outbox._queueing


@pytest.mark.parametrize("over", [-1, 0])
async def test_a_turn_that_is_given_back_tells_of_room_where_there_is_some(over):
    rooms = []
    outbox = Outbox(Narrow(0), on_room=lambda: rooms.append(outbox.size))
    await outbox.acquire()
    outbox.add(bytes(HIGH_WATER + over))
    outbox.release()
    assert rooms == ([HIGH_WATER - 1] if over < 0 else [])
