"""Messages of a Write mean the same however they arrive: at once, in pieces, or after a wait."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.blob.reader import read_all
from nl.errors import DeadlineError, InvalidRequestError
from nl.pb import bytestream
from nl.pb.codec import encode
from nl.rpc.contract import MessageBody
from nl.services.write_messages import WriteMessages, WriteStoppedError


class Pieces(MessageBody):
    """A message that comes a few bytes at a time; its client falls silent before the piece `silent_at`."""

    def __init__(self, data, *, count, silent_at):
        self.size = len(data)
        self._left = [data[at : at + count] for at in range(0, len(data), count)]
        self._until_silence = silent_at

    async def receive_parts(self, max_bytes=0):
        self._until_silence -= 1
        if not self._until_silence:
            await trio.sleep_forever()
        return [self._left.pop(0)] if self._left else ()


class Stream:
    """A call that brings these messages: at hand as a whole, or in pieces of `count` bytes."""

    def __init__(self, *messages, count=0, silent_at=0):
        self._messages = list(messages)
        self._count = count
        self._silent_at = silent_at

    def keep(self, count):
        """Of no interest here."""

    def take_body(self, max_bytes):
        is_at_hand = self._messages and not self._count and len(self._messages[0]) <= max_bytes
        return self._messages.pop(0) if is_at_hand else None

    async def receive_body(self):
        if not self._messages:
            return None
        return Pieces(self._messages.pop(0), count=self._count or 1 << 20, silent_at=self._silent_at)


NAMED = encode(bytestream.WriteRequest(resource_name="uploads/u/blobs/a/4", data=b"data"))
MESSAGES = {
    "usual": NAMED,
    "last": encode(bytestream.WriteRequest(resource_name="r", write_offset=4, finish_write=True, data=b"d" * 1000)),
    "no data": encode(bytestream.WriteRequest(resource_name="r", finish_write=True)),
    "data first": b"\x52\x04data" + encode(bytestream.WriteRequest(resource_name="r", write_offset=3)),
    "a long name": encode(bytestream.WriteRequest(resource_name="r" * 20_000, data=b"data")),
    "large": encode(bytestream.WriteRequest(resource_name="r", data=b"d" * 200_000)),
    "truncated": NAMED[:-1],
    "no name": encode(bytestream.WriteRequest(data=b"data")),
    "empty": b"",
    "not UTF-8": b"\x0a\x01\xff\x52\x04data",
}


async def outcome(stream):
    """What the one message of a stream says, or the error about it."""
    messages = WriteMessages(stream, idle_s=60)
    try:
        message = await messages.receive_message()
        found = (message.resource_name, message.offset, message.finish, message.size, await read_all(message))
        assert await messages.receive_message() is None
        return found
    except InvalidRequestError as error:
        return str(error)


@pytest.mark.parametrize("what", MESSAGES)
async def test_a_message_means_the_same_at_once_and_in_pieces(what):
    at_once = await outcome(Stream(MESSAGES[what]))
    for count in (3, 1000):
        assert await outcome(Stream(MESSAGES[what], count=count)) == at_once
    assert isinstance(at_once, str) == (what in ("truncated", "no name", "empty", "not UTF-8"))


@pytest.mark.parametrize("silent_at", range(1, -(-len(NAMED) // 3) + 1))
async def test_a_client_that_falls_silent_anywhere_in_a_message_is_not_waited_for(autojump_clock, silent_at):
    began = trio.current_time()
    messages = WriteMessages(Stream(NAMED, count=3, silent_at=silent_at), idle_s=60)
    with pytest.raises(DeadlineError, match="no progress for 60 s"):
        await read_all(await messages.receive_message())
    assert trio.current_time() - began == pytest.approx(60)


async def test_the_wait_for_a_client_can_be_stopped_and_nothing_is_taken_afterwards(nursery):
    messages = WriteMessages(Stream(NAMED, NAMED, count=3, silent_at=2), idle_s=60)
    caught = []

    async def receive():
        with pytest.raises(WriteStoppedError) as error:
            await messages.receive_message()
        caught.append(error)

    nursery.start_soon(receive)
    await wait_all_tasks_blocked()
    assert messages.waiting_since <= trio.current_time()
    messages.stop()
    await wait_all_tasks_blocked()
    assert caught
    with pytest.raises(WriteStoppedError):
        await messages.receive_message()
