"""Whoever waits for the connection's credit gets it, whatever has become of the one that was before it in the line.

Messages are taken up to their limit, however they arrive.
"""

import gzip

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.errors import ExhaustedError, InvalidRequestError
from nl.rpc import frames as fr
from nl.rpc.call import JOINED_UP_TO, Call, encoder_of
from nl.rpc.connection import Connection
from nl.rpc.contract import TransportLost
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.stream import Owner
from nl.rpc.outbox import HIGH_WATER, Socket
from nl.rpc.transport import Transport


class Wide(Transport):
    """Takes all and brings nothing."""

    inline = True
    peer = "here"
    certificate = None

    def try_recv_into(self, view):
        return -1

    async def wait_readable(self): ...

    def try_send(self, parts):
        return sum(map(len, parts))

    async def send(self, data):
        return len(data)

    async def wait_writable(self): ...

    async def linger(self): ...

    def close(self): ...


def cancelled_while_it_waits(first, scope, grant):
    scope.cancel()
    yield
    grant()
    yield


def over_when_its_credit_is_here(first, scope, grant):
    grant()
    first.send_closed = True
    yield


def without_a_window_of_its_own_when_its_credit_is_here(first, scope, grant):
    grant()
    first.window_delta = -fr.DEFAULT_WINDOW
    yield


def cancelled_while_it_waits_for_the_socket(first, scope, grant):
    first.connection.outbox.socket = Socket.TAKEN
    grant()
    yield
    scope.cancel()
    yield


@pytest.mark.parametrize(
    "what",
    [
        cancelled_while_it_waits, over_when_its_credit_is_here, cancelled_while_it_waits_for_the_socket,
        without_a_window_of_its_own_when_its_credit_is_here,
    ],
)  # fmt: skip
async def test_credit_that_the_first_in_line_does_not_take_goes_to_the_second(nursery, what):
    connection = Connection(Wide(), Limits())
    h2 = connection.h2
    first, second = (Call(connection, sid, max_message_size=100) for sid in (1, 3))
    h2.streams |= {1: first, 3: second}
    h2.send_window = 0
    scope, credits = trio.CancelScope(), []

    async def send():
        with scope:
            try:
                await first.send_prefixed([b"x" * 100])
            except TransportLost:
                pass
        await trio.sleep_forever()  # its caller is in no hurry to end the call

    async def wait():
        credits.append(await second.wait_send_credit())

    for task in (send, wait):
        nursery.start_soon(task)
        await wait_all_tasks_blocked()

    def grant():
        h2.send_window += 10
        h2.wake_next()

    for _ in what(first, scope, grant):
        await wait_all_tasks_blocked()
    assert credits == [10]
    assert first not in h2.blocked
    nursery.cancel_scope.cancel()


async def test_of_what_the_first_in_line_leaves_the_second_gets_the_rest(nursery):
    connection = Connection(Wide(), Limits())
    h2 = connection.h2
    first, second = (Call(connection, sid, max_message_size=100) for sid in (1, 3))
    h2.streams |= {1: first, 3: second}
    h2.send_window = 0
    credits = []

    async def wait():
        credits.append(await second.wait_send_credit())

    nursery.start_soon(first.send_prefixed, [b"x" * 100])
    await wait_all_tasks_blocked()
    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    h2.send_window = 130
    h2.wake_next()
    await wait_all_tasks_blocked()
    assert credits == [30]


async def received(data, pieces, *, encoding=None, body=False):
    """The message that a call of at most 100 bytes makes of DATA that comes in such pieces."""
    call = Call(Connection(Wide(), Limits()), 1, max_message_size=100)
    call.encoding, call.recv_closed = encoding, True
    for start, stop in zip((0, *pieces), (*pieces, len(data)), strict=True):
        call.chunks.append((memoryview(data)[start:stop], None))  # as from several buffers: `add` would join them
        call.held += stop - start
    if not body:
        return await call.receive_message()
    reader, whole = await call.receive_body(), b""
    while parts := await reader.receive_parts():
        whole += b"".join(parts)
    return whole


@pytest.mark.parametrize("body", [False, True])
@pytest.mark.parametrize("pieces", [(), (2,), (5,), (5, 50), (104,)])
async def test_a_message_may_be_as_large_as_the_limit_and_no_larger_however_it_arrives(pieces, body):
    largest, too_large = bytes(range(100)), bytes(101)
    assert await received(fr.PREFIX.pack(0, 100) + largest, pieces, body=body) == largest
    with pytest.raises(ExhaustedError, match="message of 101 bytes; the limit is 100, the option max_message_size"):
        await received(fr.PREFIX.pack(0, 101) + too_large, pieces, body=body)


@pytest.mark.parametrize(("pieces", "most", "is_taken"), [
    ((), 100, True), ((), 50, True), ((), 49, False), ((30,), 100, False), ((2,), 100, False),
])  # fmt: skip
async def test_a_message_is_taken_at_once_only_if_it_is_small_and_here_in_one_piece(pieces, most, is_taken):
    data, message = fr.PREFIX.pack(0, 50) + bytes(range(50)), bytes(range(50))
    call = Call(Connection(Wide(), Limits()), 1, max_message_size=100)
    for start, stop in zip((0, *pieces), (*pieces, len(data)), strict=True):
        call.chunks.append((memoryview(data)[start:stop], None))
        call.held += stop - start
    assert call.take_message(most) == (message if is_taken else None)
    assert call.held == (0 if is_taken else len(data))
    if not is_taken:
        assert await call.receive_message() == message, "it is still there"


@pytest.mark.parametrize("body", [False, True])
async def test_a_packed_message_may_unpack_to_the_limit_and_no_further(body):
    async def unpacked(size):
        packed = gzip.compress(bytes(size))
        return await received(fr.PREFIX.pack(1, len(packed)) + packed, (), encoding="gzip", body=body)

    assert await unpacked(100) == bytes(100)
    with pytest.raises(ExhaustedError, match="100"):
        await unpacked(101)


class Held:
    """A call of at most 1,000 bytes whose DATA comes from one receive buffer, in such pieces."""

    def __init__(self, data, *cuts, ended=False):
        self.connection = Connection(Wide(), Limits(stream_window=100_000, connection_window=100_000))
        self.call = Call(self.connection, 1, max_message_size=10_000)
        self.connection.h2.streams[1] = self.call
        self.owner = Owner()
        self.data = data
        self.cuts = cuts
        self.arrive(data, *cuts, ended=ended)

    def arrive(self, data, *cuts, ended=False):
        call = self.call
        for start, stop in zip((0, *cuts), (*cuts, len(data)), strict=True):
            for window in (self.connection.h2.recv_window, call.recv_window):
                window.left -= stop - start
            call.chunks.append((memoryview(data)[start:stop], self.owner))
            call.held += stop - start
            self.owner.held += stop - start
        call.recv_closed = ended
        call.on_data()

    def is_free(self):
        """Whether buffer, credit and memory have been given back."""
        window = self.connection.h2.recv_window
        return (self.owner.held, self.call.held, window.left + window.owed, self.connection.pinned) == (
            0, 0, window.size, 0,
        )  # fmt: skip


MESSAGE = fr.PREFIX.pack(0, 3000) + bytes(3000)


@pytest.mark.parametrize("cuts", [(), (2,), (5,), (1000, 2000)])
@pytest.mark.parametrize("how", ["message", "taken", "body", "body in pieces", "body, its end not asked for"])
async def test_whatever_has_been_received_gives_back_its_buffer_and_its_credit(how, cuts):
    held = Held(MESSAGE, *cuts)
    call = held.call
    if how == "message":
        assert bytes(await call.receive_message()) == bytes(3000)
    elif how == "taken":
        if (data := call.take_message()) is None:
            data = await call.receive_message()
        assert bytes(data) == bytes(3000)
    else:
        body = await call.receive_body()
        assert body.size == 3000
        got = 0
        while got < 3000:
            got += sum(map(len, await body.receive_parts(*([700] if "pieces" in how else []))))
            assert held.owner.held > 0, "its views are still looked at"
        if "not asked" not in how:
            assert await body.receive_parts() == ()
    call.end_receiving()
    assert held.is_free()


async def test_a_body_that_is_left_gives_back_what_was_handed_out_when_nobody_receives_any_more():
    held = Held(MESSAGE, 1000)
    body = await held.call.receive_body()
    parts = await body.receive_parts(500)
    assert sum(map(len, parts)) == 500
    held.call.end_receiving()
    assert held.owner.held == held.call.held == 3005 - 505
    assert await body.receive_parts() == (), "it is no body of this call any more"


async def test_a_body_is_read_to_its_end_before_the_next_message():
    for receive in ("receive_message", "receive_body"):
        held = Held(MESSAGE + MESSAGE)
        body = await held.call.receive_body()
        await body.receive_parts(2999)
        with pytest.raises(RuntimeError, match="must be read to its end"):
            await getattr(held.call, receive)()
        held = Held(MESSAGE + MESSAGE)
        body = await held.call.receive_body()
        assert held.call.take_message() is None
        while await body.receive_parts():
            pass
        assert held.call.take_message() is None or receive
        assert await getattr(held.call, receive)() is not None


@pytest.mark.parametrize("body", [False, True])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 3004])
async def test_a_stream_that_ends_inside_of_a_message_says_so_and_one_that_ends_before_it_is_over(size, body):
    held = Held(MESSAGE[:size], ended=True)

    async def receive():
        if not body:
            return await held.call.receive_message()
        if (reader := await held.call.receive_body()) is not None:
            while await reader.receive_parts():
                pass
        return reader

    if not size:
        assert await receive() is None
    else:
        with pytest.raises(InvalidRequestError, match="the stream ends inside of a message"):
            await receive()
    held.call.end_receiving()
    held.call.pin(0)
    assert held.is_free()


@pytest.mark.parametrize(("flag", "encoding", "error"), [
    (0, None, None), (0, "gzip", None), (1, None, "compressed-flag 1, but grpc-encoding is None"),
    (1, "identity", "compressed-flag 1, but grpc-encoding is identity"), (2, "gzip", "compressed-flag 2"),
])  # fmt: skip
async def test_only_what_was_announced_may_be_compressed(flag, encoding, error):
    held = Held(fr.PREFIX.pack(flag, 3) + b"abc")
    held.call.encoding = encoding
    if error is None:
        assert bytes(await held.call.receive_message()) == b"abc"
    else:
        with pytest.raises(InvalidRequestError, match=error):
            await held.call.receive_message()


async def test_a_message_in_part_is_pinned_as_it_grows_and_free_when_it_is_whole(nursery):
    held = Held(MESSAGE[:1005])
    got = []

    async def receive():
        got.append(bytes(await held.call.receive_message()))

    nursery.start_soon(receive)
    await wait_all_tasks_blocked()
    assert (held.connection.pinned, held.owner.held) == (1000, 0)
    held.arrive(MESSAGE[1005:2005])
    await wait_all_tasks_blocked()
    assert (held.connection.pinned, got) == (2000, [])
    held.arrive(MESSAGE[2005:])
    await wait_all_tasks_blocked()
    assert got == [bytes(3000)]
    assert held.is_free()


class Noted(Connection):
    """Counts how often it is told that more is pinned."""

    def __init__(self):
        super().__init__(Wide(), Limits())
        self.told = []

    def on_pinned(self):
        self.told.append(self.pinned)


async def test_who_counts_is_told_of_all_that_is_pinned_and_not_of_what_is_let_go():
    connection = Noted()
    one, other = (Call(connection, sid, max_message_size=100) for sid in (1, 3))
    one.pin(100)
    other.pin(50)
    one.pin(30)
    assert connection.told == [100, 150, 80]
    one.pin(0)
    other.pin(0)
    assert connection.told == [100, 150, 80]
    assert connection.pinned == 0


class Recorded(Wide):
    """Notes what it is given, and whether that was a copy."""

    def __init__(self):
        self.sent = []

    def try_send(self, parts):
        self.sent += parts
        return sum(map(len, parts))

    async def send(self, data):
        return self.try_send((data,))


async def sending(**windows):
    connection = Connection(Recorded(), Limits())
    call = Call(connection, 1, max_message_size=100)
    connection.h2.streams[1] = call
    for name, value in windows.items():
        setattr(connection.h2, name, value)
    return connection, call


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("bound", ["size", "stream", "connection", "frame", "queue"])
async def test_small_messages_are_queued_and_others_go_from_their_senders_buffer(bound, over):
    """Small: of 16 KiB with their prefix, if the windows, a frame and the queue have room for all of it."""
    windows = {"peer_max_frame": 1 << 20, "peer_initial_window": 1 << 20, "send_window": 1 << 20}
    size = JOINED_UP_TO if bound == "size" else 1000
    name = {"stream": "peer_initial_window", "connection": "send_window", "frame": "peer_max_frame"}.get(bound)
    if name is not None:
        windows[name] = size
    connection, call = await sending(**windows)
    if bound == "queue":
        connection.outbox.size = HIGH_WATER - 1 + (over > 0)
    payload = b"p" * (size - 5 + (over if bound != "queue" else 0))
    queued = over <= 0
    with trio.move_on_after(0 if not queued and bound in ("stream", "connection") else 5) as scope:
        await call.send_framed([payload])
    sent = connection.outbox.transport.sent
    if queued:
        assert connection.outbox.queue == [fr.header(len(payload) + 5, fr.DATA, 0, 1) + fr.PREFIX.pack(0, len(payload))
                                           + payload]  # fmt: skip
        assert sent == []
        assert connection.h2.send_window == windows["send_window"] - len(payload) - 5
        assert call.window_delta == -len(payload) - 5
    else:
        whole = b"".join(map(bytes, sent))
        assert len(whole) > len(payload) or scope.cancelled_caught
        assert any(getattr(part, "obj", part) is payload for part in sent)
        assert scope.cancelled_caught == (bound in ("stream", "connection"))
    assert call.send_closed is False


@pytest.mark.parametrize("size", [10, 100_000])
async def test_the_last_message_ends_the_stream_and_forgets_it_if_the_other_side_has_ended_it_too(size):
    for answered in (False, True):
        connection, call = await sending(send_window=1 << 20, peer_initial_window=1 << 20)
        call.recv_closed = answered
        await call.send_framed([bytes(size)], end_stream=True)
        connection.outbox.flush()
        assert call.send_closed
        assert (1 in connection.h2.streams) is not answered
        data = b"".join(map(bytes, connection.outbox.transport.sent))
        flags = []
        while data:
            flags.append(data[4])
            data = data[9 + int.from_bytes(data[:3], "big") :]
        assert flags == [0] * (len(flags) - 1) + [fr.END_STREAM]
        assert connection.pinned == 0


@pytest.mark.parametrize("what", ["reset", "closed", "lost"])
async def test_a_call_that_is_over_can_send_nothing(what):
    connection, call = await sending()
    if what == "reset":
        call.reset_code = 8
    elif what == "closed":
        call.send_closed = True
    else:
        connection.outbox.lose()
    for action in (call.send_framed([b"x"]), call.wait_send_credit()):
        with pytest.raises(TransportLost, match="connection lost" if what == "lost" else "the call is over"):
            await action
    assert connection.outbox.queue == []


async def test_since_when_a_call_has_had_no_credit_is_known_until_it_has_some(mock_clock, nursery):
    connection, call = await sending(send_window=0)
    nursery.start_soon(call.wait_send_credit)
    await wait_all_tasks_blocked()
    since = trio.current_time()
    assert call.blocked_since == since
    mock_clock.jump(10)
    call.on_window()  # in vain
    await wait_all_tasks_blocked()
    assert call.blocked_since == since
    connection.h2.send_window = 10
    connection.h2.wake_next()
    await wait_all_tasks_blocked()
    assert call.blocked_since is None


async def test_who_waits_for_data_or_credit_finds_out_that_the_call_is_over(nursery):
    connection, call = await sending(send_window=0)
    ended = []

    async def wait(action):
        try:
            await action()
        except TransportLost:
            ended.append("lost")
        else:
            ended.append("told")

    nursery.start_soon(wait, call.wait_data)
    nursery.start_soon(wait, call.wait_send_credit)
    await wait_all_tasks_blocked()
    assert call in connection.h2.blocked
    call.reset_code = 8
    call.wake()
    await wait_all_tasks_blocked()
    assert sorted(ended) == ["lost", "told"]
    assert call not in connection.h2.blocked


async def test_a_message_may_encode_itself():
    class Own:
        def encode_parts(self):
            return [b"own", b"parts"]

    assert encoder_of(Own()) == [b"own", b"parts"]


async def test_a_packed_body_is_handed_out_in_pieces_as_large_as_was_asked_for():
    packed = gzip.compress(bytes(range(100)))
    held = Held(fr.PREFIX.pack(1, len(packed)) + packed, ended=True)
    held.call.encoding = "gzip"
    body = await held.call.receive_body()
    assert body.size == 100
    pieces = []
    while parts := await body.receive_parts(30):
        pieces += [bytes(part) for part in parts]
    assert [len(piece) for piece in pieces] == [30, 30, 30, 10]
    assert b"".join(pieces) == bytes(range(100))
    assert held.is_free()


async def test_credit_that_a_task_gives_back_leaves_at_once():
    """The reader may have nothing to read until the peer has that credit."""
    for how in ("message", "taken", "body"):
        size = 30_000
        held = Held(fr.PREFIX.pack(0, size) + bytes(size))
        held.call.max_message_size = size
        outbox = held.connection.outbox
        outbox.transport = Recorded()
        async with trio.open_nursery() as nursery:
            outbox.nursery = nursery
            if how == "message":
                await held.call.receive_message()
            elif how == "taken":
                assert held.call.take_message() is not None
            else:
                body = await held.call.receive_body()
                while await body.receive_parts():
                    pass
            await wait_all_tasks_blocked()
            assert fr.window_update(0, size + 5) in b"".join(map(bytes, outbox.transport.sent))
            assert outbox.queue == []
            nursery.cancel_scope.cancel()


async def test_a_message_out_of_several_buffers_frees_all_of_them():
    held = Held(MESSAGE[:1000], 400)
    first, held.owner = held.owner, Owner()
    held.arrive(MESSAGE[1000:2000], 500)
    second, held.owner = held.owner, Owner()
    held.arrive(MESSAGE[2000:])
    body = await held.call.receive_body()
    while parts := await body.receive_parts(1700):
        assert parts
    assert (first.held, second.held, held.owner.held) == (0, 0, 0)
    assert held.is_free()
