"""Whoever waits for the connection's credit gets it, whatever has become of the one that was before it in the line.

Messages are taken up to their limit, however they arrive.
"""

import gzip

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.errors import ExhaustedError
from nl.rpc import frames as fr
from nl.rpc.call import Call
from nl.rpc.connection import Connection
from nl.rpc.contract import TransportLost
from nl.rpc.h2.limits import Limits
from nl.rpc.outbox import Socket
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
