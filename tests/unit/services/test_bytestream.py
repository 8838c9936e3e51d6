"""ByteStream, as far as neither a network nor a store has a part in it."""

import hashlib

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.errors import InternalError
from nl.model.access import EVERYONE
from nl.pb import bytestream
from nl.pb.codec import decode, encode
from nl.rpc.call import WholeBody
from nl.services.bytestream import ByteStreamInstance, ByteStreamService
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing.context import BareContext

DATA = b"0123456789"
NAME = f"uploads/u/blobs/{hashlib.sha256(DATA).hexdigest()}/{len(DATA)}"


class Writes:
    """A Write call that brings these messages."""

    identity = EVERYONE

    def __init__(self, *messages):
        self._messages = list(messages)

    def take_body(self, max_bytes):
        return None

    async def receive_body(self):
        return WholeBody(encode(self._messages.pop(0))) if self._messages else None


async def test_a_service_that_does_not_run_takes_no_upload_in_pieces_and_keeps_no_slot_for_it():
    store = MemoryStore(MemoryOptions(), BareContext("CAS"))
    service = ByteStreamService({"": ByteStreamInstance(store)}, max_open_writes=10)
    for _ in range(3):
        with pytest.raises(InternalError, match="not running"):
            await service.write(Writes(bytestream.WriteRequest(resource_name=NAME, data=DATA[:4])))
        assert service.statistics()["uploads_open"] == 0
        assert service.statistics()["uploads_started"] == 0, "the next one would join what has no task"


class Uploading(Writes):
    """A Write call whose client keeps it open, and sends what it is given later."""

    def __init__(self, *messages):
        super().__init__(*messages)
        self.replies = []
        self._more, self._coming = trio.open_memory_channel(1)

    async def receive_body(self):
        return await super().receive_body() or WholeBody(encode(await self._coming.receive()))

    async def send_later(self, message):
        await self._more.send(message)

    async def send_parts(self, parts):
        self.replies.append(decode(bytestream.WriteResponse, b"".join(parts)).committed_size)


async def test_an_upload_that_gave_up_before_it_had_a_slot_leaves_nothing_that_another_try_would_wait_for(
    autojump_clock, nursery
):
    service = ByteStreamService({"": ByteStreamInstance(MemoryStore(MemoryOptions(), BareContext("CAS")))},
                                max_open_writes=1)  # fmt: skip
    await nursery.start(service.run)
    other = b"another blob"
    first = Uploading(bytestream.WriteRequest(
        resource_name=f"uploads/v/blobs/{hashlib.sha256(other).hexdigest()}/{len(other)}", data=other[:4]
    ))  # fmt: skip
    nursery.start_soon(service.write, first)
    await wait_all_tasks_blocked()
    beginning = bytestream.WriteRequest(resource_name=NAME, data=DATA[:4])
    with trio.move_on_after(0.5) as patience:  # less than the first upload may be silent before it has to make room
        await service.write(Uploading(beginning))
    assert patience.cancelled_caught
    assert service.statistics()["uploads_started"] == 1, "who would join a session that has no task waits for ever"
    await first.send_later(bytestream.WriteRequest(write_offset=4, finish_write=True, data=other[4:]))
    await wait_all_tasks_blocked()
    assert first.replies == [len(other)]
    again = Uploading(beginning)
    await again.send_later(bytestream.WriteRequest(write_offset=4, finish_write=True, data=DATA[4:]))
    with trio.fail_after(30):
        await service.write(again)
    assert again.replies == [len(DATA)]
    assert service.statistics()["uploads_open"] == 0
    nursery.cancel_scope.cancel()
