"""ByteStream, as far as neither a network nor a store has a part in it."""

import hashlib

import pytest

from nl.errors import InternalError
from nl.model.access import EVERYONE
from nl.pb import bytestream
from nl.pb.codec import encode
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

    async def receive_body(self):
        return WholeBody(encode(self._messages.pop(0))) if self._messages else None


async def test_a_service_that_does_not_run_takes_no_upload_in_pieces_and_keeps_no_slot_for_it():
    store = MemoryStore(MemoryOptions(), BareContext("CAS"))
    service = ByteStreamService({"": ByteStreamInstance(store)}, max_open_writes=10)
    for _ in range(3):
        with pytest.raises(InternalError, match="not running"):
            await service.write(Writes(bytestream.WriteRequest(resource_name=NAME, data=DATA[:4])))
    assert service.statistics()["uploads_open"] == 0
    assert service.statistics()["uploads_started"] == 0
