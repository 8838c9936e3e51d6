"""Accepting: which errors cost one connection, which cost a pause and a line in the log, and which are the end."""

import errno
import os
import socket

import pytest
import trio

from nl.rpc.accepting import accept_forever
from nl.rpc.slots import Slots


class Listener:
    """A listener to which these come in turn: sockets, or errors of accept(2); then nobody."""

    def __init__(self, *comes):
        self.comes = list(comes)
        self.times = []
        self.closed = False
        self.here, self.there = socket.socketpair()
        self.there.send(b"x")
        self.socket = self

    def fileno(self):
        return self.here.fileno()

    async def accept(self):
        await trio.lowlevel.checkpoint()
        if not self.comes:
            await trio.sleep_forever()
        self.times.append(trio.current_time())
        come = self.comes.pop(0)
        if isinstance(come, int):
            raise OSError(come, os.strerror(come))
        return trio.socket.from_stdlib_socket(come), ("peer", 1)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.closed = True
        self.here.close()
        self.there.close()


@pytest.fixture
def pair():
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


async def run(listener, slots, served, *, seconds=5):
    async def serve(sock):
        served.append(slots.taken)
        sock.close()

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(seconds):
            await accept_forever(listener, slots, nursery, serve)
        nursery.cancel_scope.cancel()
    assert listener.closed


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.EHOSTUNREACH, errno.ENETDOWN])
async def test_an_error_of_the_one_that_was_next_costs_nobody_else_anything(autojump_clock, pair, caplog, number):
    listener, slots, served = Listener(number, number, pair[0]), Slots(5, remedy=""), []
    await run(listener, slots, served)
    assert served == [1], "its slot was taken before its task began"
    assert listener.times == [listener.times[0]] * 3
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (
            errno.EMFILE,
            "this process may have no more open files; raise its limit (ulimit -n) or lower max_connections",
        ),
        (errno.ENFILE, "this machine may have no more open files; raise fs.file-max or lower max_connections"),
        (errno.ENOBUFS, "the kernel has no memory for more connections"),
        (errno.ENOMEM, "the kernel has no memory for more connections"),
    ],
)
async def test_what_keeps_all_from_being_accepted_is_told_and_tried_again_after_a_pause(
    autojump_clock, pair, caplog, number, text
):
    listener, slots, served = Listener(number, number, pair[0]), Slots(5, remedy=""), []
    await run(listener, slots, served)
    assert served == [1]
    assert [round(each - listener.times[0], 3) for each in listener.times] == [0, 0.1, 0.2]
    assert caplog.messages == [f"cannot accept: {text} ({os.strerror(number)})"]


async def test_any_other_error_is_ours(autojump_clock):
    with pytest.raises(ExceptionGroup) as caught:
        await run(Listener(errno.EBADF), Slots(5, remedy=""), [])
    assert caught.value.exceptions[0].errno == errno.EBADF


async def test_nobody_is_accepted_while_all_slots_are_taken(autojump_clock, pair):
    listener, slots, served = Listener(pair[0]), Slots(1, remedy=""), []
    slots.take()
    await run(listener, slots, served)
    assert (served, listener.times) == ([], [])


async def test_room_is_made_only_for_a_client_that_is_there(autojump_clock):
    listener, slots = Listener(), Slots(1, remedy="")
    listener.here.recv(1)
    slots.take()
    asked = []
    slots.relief.append(lambda: asked.append(1) or False)
    await run(listener, slots, [])
    assert asked == []
