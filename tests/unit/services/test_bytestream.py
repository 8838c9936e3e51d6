"""ByteStream, as far as neither a network nor a store has a part in it."""

import hashlib

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.blob.zstd import compress
from nl.errors import DeadlineError, InternalError, InvalidRequestError, RangeError, UploadMismatchError
from nl.model.access import ALL_RIGHTS, EVERYONE, Grant, Identity
from nl.model.digest import Digest
from nl.pb import bytestream
from nl.pb.codec import decode, encode
from nl.plugin import digest_of
from nl.rpc.call import WholeBody
from nl.services.bytestream import ByteStreamInstance, ByteStreamService
from nl.storage.contract import SMALL, Traits
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


LARGE = bytes(range(256)) * 400


def name_of(data, *, uuid="u", instance="", size=None):
    prefix = f"{instance}/" if instance else ""
    return f"{prefix}uploads/{uuid}/blobs/{hashlib.sha256(data).hexdigest()}/{len(data) if size is None else size}"


def packed_name(data):
    return name_of(data).replace("blobs/", "compressed-blobs/zstd/")


def whole(data, /, **more):
    return bytestream.WriteRequest(**{"resource_name": name_of(data), "data": data, "finish_write": True, **more})


def memory_store():
    return MemoryStore(MemoryOptions(), BareContext("CAS"))


class Reading:
    """A call with one request, which keeps its replies."""

    def __init__(self, request, identity=EVERYONE):
        self.request, self.identity, self.replies = request, identity, []
        self.send_credit = 1 << 30

    async def recv_message(self):
        return self.request

    async def wait_send_credit(self):
        return self.send_credit

    async def send_message(self, reply):
        self.replies.append(reply)

    async def send_parts(self, parts):
        self.replies.append(decode(bytestream.ReadResponse, b"".join(parts)))


async def status_of(service, name, identity=EVERYONE):
    call = Reading(bytestream.QueryWriteStatusRequest(resource_name=name), identity)
    await service.query_write_status(call)
    return call.replies[0].committed_size, call.replies[0].complete


@pytest.fixture
async def service(nursery, monkeypatch):
    """One over a store in memory; `.store` has what was uploaded."""
    monkeypatch.setattr("nl.blob.coding.INLINE", 1 << 30)  # a clock that jumps does not wait for threads
    store = memory_store()
    made = ByteStreamService({"": ByteStreamInstance(store, 60.0, 50.0), "b": ByteStreamInstance(store, 10.0, 500.0)})
    made.store = store
    await nursery.start(made.run)
    yield made
    nursery.cancel_scope.cancel()


WAYS = {
    "small": (DATA, [whole(DATA)]),
    "in one message": (LARGE, [whole(LARGE)]),
    "in pieces": (LARGE, [whole(LARGE, data=LARGE[:9], finish_write=False),
                          bytestream.WriteRequest(data=LARGE[9:], write_offset=9, finish_write=True)]),
    "without an end": (LARGE, [whole(LARGE, finish_write=False)]),
    "packed and small": (DATA, [whole(compress(DATA), resource_name=packed_name(DATA))]),
    "packed": (LARGE, [whole(compress(LARGE), resource_name=packed_name(LARGE))]),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_whichever_way_a_blob_comes_it_is_stored_and_no_slot_stays_taken(autojump_clock, service, way):
    data, messages = WAYS[way]
    call = Uploading(*messages) if way == "in pieces" else Ending(*messages)
    await service.write(call)
    committed = len(compress(data)) if way.startswith("packed") else len(data)
    assert call.replies == [committed]
    assert await service.store.get(digest_of(data)) == data
    assert {key: value for key, value in service.statistics().items() if "open" in key or "unpacking" in key} == {
        "uploads_open": 0, "reads_open": 0, "uploads_unpacking": 0, "reads_reopened": 0
    }  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_whichever_way_a_blob_comes_it_is_checked_and_no_slot_stays_taken(autojump_clock, service, way):
    data, messages = WAYS[way]
    other = hashlib.sha256(b"another").hexdigest()
    wrong = [bytestream.WriteRequest(resource_name=each.resource_name.replace(hashlib.sha256(data).hexdigest(), other),
                                     data=each.data, write_offset=each.write_offset, finish_write=each.finish_write)
             for each in messages]  # fmt: skip
    with pytest.raises(UploadMismatchError):
        await service.write(Ending(*wrong))
    assert await service.store.has([Digest(other, len(data))]) == [None]
    assert service.statistics()["uploads_open"] == service.statistics()["uploads_unpacking"] == 0


class Ending(Writes):
    """A Write call that half-closes behind its messages."""

    def __init__(self, *messages):
        super().__init__(*messages)
        self.replies = []

    async def send_parts(self, parts):
        self.replies.append(decode(bytestream.WriteResponse, b"".join(parts)).committed_size)

    async def send_message(self, reply):
        self.replies.append(reply.committed_size)


@pytest.mark.parametrize("way", WAYS)
async def test_a_blob_that_is_there_is_not_taken_again(autojump_clock, service, way):
    data, messages = WAYS[way]
    await service.store.put(digest_of(data), data)
    call = Ending(*messages[:1])
    await service.write(call)
    assert call.replies == [-1 if way.startswith("packed") else len(data)]
    assert service.statistics()["uploads_started"] == 0


@pytest.mark.parametrize("data", [DATA, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("offset", [-1, 1])
async def test_a_whole_blob_begins_at_its_beginning(autojump_clock, service, data, offset):
    problem = "is negative" if offset < 0 else "leaves a gap after the 0 bytes received"
    with pytest.raises(InvalidRequestError, match=f"write_offset {offset} {problem}"):
        await service.write(Ending(whole(data, write_offset=offset)))
    assert service.statistics()["uploads_open"] == 0
    assert await service.store.has([digest_of(data)]) == [None]


@pytest.mark.parametrize(("instance", "patience"), [("", 50.0), ("b", 500.0)])
async def test_each_instance_has_its_own_patience_with_silent_clients(autojump_clock, service, instance, patience):
    beginning = whole(LARGE, resource_name=name_of(LARGE, instance=instance), data=LARGE[:9], finish_write=False)
    began = trio.current_time()
    with pytest.raises(DeadlineError, match=f"no progress for {patience:g} s"):
        await service.write(Uploading(beginning))
    assert trio.current_time() - began == patience


async def leave_behind(service, name, size=9, identity=EVERYONE):
    """An upload whose client went away after so many bytes."""
    call = Uploading(bytestream.WriteRequest(resource_name=name, data=LARGE[:size]))
    call.identity = identity
    with trio.move_on_after(1):
        await service.write(call)


@pytest.mark.parametrize(("instance", "persist_s"), [("", 60.0), ("b", 10.0)])
async def test_what_was_broken_off_can_be_gone_on_with_for_as_long_as_the_instance_says(
    autojump_clock, service, instance, persist_s
):
    name = name_of(LARGE, instance=instance)
    await leave_behind(service, name)
    await trio.sleep(persist_s - 1)
    assert await status_of(service, name) == (9, False)
    await trio.sleep(2)
    assert await status_of(service, name) == (0, False)
    assert service.statistics()["uploads_open"] == 0


async def test_an_upload_is_gone_on_with_by_whoever_began_it_under_all_of_its_names(autojump_clock, service):
    me, other = (Identity(name, [Grant(("*",), ALL_RIGHTS)]) for name in ("me", "other"))
    name = name_of(LARGE)
    await leave_behind(service, name, identity=me)
    assert await status_of(service, name, me) == (9, False)
    assert await status_of(service, name, other) == (0, False), "another's upload is nobody's business"
    for another in (name_of(LARGE, uuid="v"), name_of(LARGE, instance="b"), name_of(LARGE[:-1])):
        assert await status_of(service, another, me) == (0, False)
    call = Ending(bytestream.WriteRequest(resource_name=name, write_offset=9, data=LARGE[9:], finish_write=True))
    call.identity = other
    with pytest.raises(InvalidRequestError, match="leaves a gap after the 0 bytes"):
        await service.write(call)
    call = Ending(bytestream.WriteRequest(resource_name=name, write_offset=9, data=LARGE[9:], finish_write=True))
    call.identity = me
    await service.write(call)
    assert call.replies == [len(LARGE)]
    assert await status_of(service, name, other) == (len(LARGE), True)
    found = service.statistics()
    assert (found["uploads_started"], found["uploads_resumed"], found["uploads_parked"]) == (1, 1, 1)
    assert found["uploads_given_up"] == 0


async def test_parked_uploads_beyond_the_bound_are_counted(nursery, autojump_clock):
    service = ByteStreamService({"": ByteStreamInstance(memory_store())}, max_parked=1)
    await nursery.start(service.run)
    for number in range(3):
        await leave_behind(service, name_of(LARGE, uuid=str(number)))
    found = service.statistics()
    assert (found["uploads_started"], found["uploads_parked"], found["uploads_given_up"]) == (3, 3, 2)
    nursery.cancel_scope.cancel()


async def test_how_far_a_packed_upload_is_nobody_is_told_before_it_is_there(autojump_clock, service):
    await leave_behind(service, name_of(LARGE))
    assert await status_of(service, packed_name(LARGE)) == (0, False)
    await service.store.put(digest_of(LARGE), LARGE)
    assert await status_of(service, packed_name(LARGE)) == (len(LARGE), True)
    with pytest.raises(InvalidRequestError, match="compressor 'deflate' is not offered"):
        await status_of(service, packed_name(LARGE).replace("zstd", "deflate"))


@pytest.mark.parametrize("size", [SMALL - 1, SMALL, SMALL + 1])
@pytest.mark.parametrize(("offset", "limit"), [(0, 0), (1, 0), (0, 1), (5, 7), (SMALL - 1, 0), (0, 1 << 40)])
async def test_any_range_of_any_blob_is_read(autojump_clock, service, size, offset, limit):
    data = LARGE[:size]
    await service.store.put(digest_of(data), data)
    call = Reading(bytestream.ReadRequest(
        resource_name=name_of(data).partition("/u/")[2], read_offset=offset, read_limit=limit
    ))  # fmt: skip
    await service.read(call)
    assert b"".join(bytes(each.data) for each in call.replies) == data[offset : offset + limit if limit else None]


@pytest.mark.parametrize(
    ("offset", "limit", "error", "problem"),
    [
        (-1, 0, InvalidRequestError, "read_offset -1 is negative"), (0, -1, InvalidRequestError, "read_limit -1 is"),
        (11, 0, RangeError, "read_offset 11 is beyond the end of"), (-1, -1, InvalidRequestError, "read_offset -1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
async def test_a_range_that_is_none_is_refused(autojump_clock, service, offset, limit, error, problem, packed):
    await service.store.put(digest_of(DATA), DATA)
    name = (packed_name if packed else name_of)(DATA).partition("/u/")[2]
    if packed and limit:
        problem = "a read_limit cannot be given for a compressed blob"
    with pytest.raises(error, match=problem):
        await service.read(Reading(bytestream.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)))


async def test_what_is_surely_there_is_only_what_the_store_is_sure_of(nursery, autojump_clock):
    class Unsure(MemoryStore):
        traits = Traits(authoritative=False)
        writes = 0

        async def put(self, key, data):
            self.writes += 1
            await super().put(key, data)

    store = Unsure(MemoryOptions(), BareContext("CAS"))
    service = ByteStreamService({"": ByteStreamInstance(store)})
    for _ in range(2):
        await service.write(Ending(whole(DATA)))
    assert store.writes == 2
    assert await status_of(service, name_of(DATA)) == (0, False)


async def test_a_write_without_a_message_is_told_what_is_missing(autojump_clock, service):
    with pytest.raises(InvalidRequestError, match="a Write needs at least one message"):
        await service.write(Ending())


class InPieces(Writes):
    """A Write call whose one message arrives a few bytes at a time."""

    def __init__(self, message, count):
        super().__init__()
        encoded = encode(message)
        self.replies, self.size = [], len(encoded)
        self._pieces = [encoded[at : at + count] for at in range(0, len(encoded), count)]
        self._is_taken = False

    def keep(self, count):
        """Of no interest here."""

    async def receive_body(self):
        was_taken, self._is_taken = self._is_taken, True
        return None if was_taken else self

    async def receive_parts(self, max_bytes=1 << 20):
        await trio.lowlevel.checkpoint()
        return [self._pieces.pop(0)] if self._pieces else []

    async def send_parts(self, parts):
        self.replies.append(decode(bytestream.WriteResponse, b"".join(parts)).committed_size)


@pytest.mark.parametrize("count", [1, 3, 100, 1000])
async def test_a_small_blob_is_whole_in_whatever_pieces_it_arrives(autojump_clock, service, count):
    data = LARGE[:300]
    call = InPieces(whole(data), count)
    await service.write(call)
    assert call.replies == [300]
    assert await service.store.get(digest_of(data)) == data
