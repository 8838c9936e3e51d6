"""Uploads over a real socket: resumed after a cut, and refused with one right status when they are wrong."""

import os
import queue

import grpc
import pytest
import trio

from tests.support.foreign import BYTES, BYTESTREAM, chunks, connect, digest, read_name, upload_name
from tests.support.serving import Serving, memory_store, serving
from tests.support.stores import filesystem_store

MIB = 1024 * 1024
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(params=["memory", "filesystem"])
def store(request, tmp_path):
    return memory_store() if request.param == "memory" else filesystem_store(tmp_path / "cas")


@pytest.fixture
async def served(store):
    async with serving(store=store) as running:
        yield running


class SlowUpload:
    """A Write on a connection of its own whose messages are sent when the test says so."""

    def __init__(self, client) -> None:
        self._messages = queue.SimpleQueue()
        call = client.channel.stream_unary(BYTES + "Write", lambda m: m.SerializeToString(),
                                           BYTESTREAM.WriteResponse.FromString)
        self.future = call.future(iter(self._messages.get, None), timeout=60)

    def send(self, *messages) -> None:
        for message in messages:
            self._messages.put(message)

    def half_close(self) -> None:
        self._messages.put(None)

    def cut(self) -> None:
        self.future.cancel()
        self.half_close()

    async def result(self):
        return await trio.to_thread.run_sync(self.future.result)


async def reaches(client, name, size):
    """Until the server says that it has taken so much."""
    with trio.fail_after(30):
        while (await client.status(name))[0] != size:
            await trio.sleep(0.005)


async def fails(code, call):
    with pytest.raises(grpc.RpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return caught.value.details()


async def settles(served: Serving, parked: int):
    with trio.fail_after(30):
        while served.bytestream.statistics()["uploads_parked"] < parked:
            await trio.sleep(0.005)


async def test_a_cut_upload_is_resumed_where_it_was(served: Serving):
    client, data = served.client, os.urandom(5 * MIB)
    name = upload_name(digest(data))
    messages = chunks(name, data, size=MIB)
    upload = SlowUpload(client)
    upload.send(*messages[:3])
    await reaches(client, name, 3 * MIB)
    upload.cut()
    await settles(served, 1)
    assert await client.status(name) == (3 * MIB, False)
    assert await client.missing([digest(data)]) == [digest(data)]
    assert await client.write(chunks(name, data, size=MIB, start=3 * MIB)) == 5 * MIB
    assert await client.status(name) == (5 * MIB, True)
    assert b"".join(await client.read(read_name(digest(data)))) == data
    assert served.bytestream.statistics()["uploads_resumed"] == 1


async def test_a_resumed_upload_may_start_over_or_overlap(served: Serving):
    client, data = served.client, os.urandom(3 * MIB)
    for start in (0, MIB // 2 + 1, MIB):
        data = os.urandom(3 * MIB)
        name = upload_name(digest(data))
        upload = SlowUpload(client)
        upload.send(*chunks(name, data, size=MIB)[:1])
        await reaches(client, name, MIB)
        upload.cut()
        assert await client.write(chunks(name, data, size=MIB - 7, start=start)) == 3 * MIB
        assert b"".join(await client.read(read_name(digest(data)))) == data


async def test_a_call_that_begins_beyond_what_is_here_takes_nothing_away(served: Serving):
    client, data = served.client, os.urandom(3 * MIB)
    name = upload_name(digest(data))
    upload = SlowUpload(client)
    upload.send(*chunks(name, data, size=MIB)[:1])
    await reaches(client, name, MIB)
    upload.cut()
    assert "gap" in await fails(INVALID, client.write(chunks(name, data, size=MIB, start=2 * MIB)))
    assert await client.status(name) == (MIB, False)
    assert await client.write(chunks(name, data, size=MIB, start=MIB)) == 3 * MIB


async def test_a_client_that_gave_up_its_connection_resumes_before_the_server_has_noticed(served: Serving):
    data = os.urandom(4 * MIB)
    name = upload_name(digest(data))
    upload = SlowUpload(served.client)
    upload.send(*chunks(name, data, size=MIB)[:2])
    await reaches(served.client, name, 2 * MIB)
    async with connect(served.port) as other:
        assert await other.write(chunks(name, data, size=MIB, start=2 * MIB)) == 4 * MIB
    await fails(grpc.StatusCode.ABORTED, upload.result())
    upload.half_close()
    assert b"".join(await served.client.read(read_name(digest(data)))) == data


async def test_an_upload_id_in_use_twice_at_once_is_two_uploads(served: Serving):
    data = os.urandom(3 * MIB)
    name = upload_name(digest(data))
    messages = chunks(name, data, size=MIB)
    first = SlowUpload(served.client)
    first.send(messages[0])
    await reaches(served.client, name, MIB)
    async with connect(served.port) as other:
        assert await other.write(messages) == 3 * MIB
    first.send(*messages[1:])
    first.half_close()
    assert (await first.result()).committed_size == 3 * MIB
    assert b"".join(await served.client.read(read_name(digest(data)))) == data


async def test_an_upload_that_is_not_resumed_in_time_is_dropped(store):
    async with serving(store=store, persist_s=0.01) as served:
        data = os.urandom(2 * MIB)
        name = upload_name(digest(data))
        upload = SlowUpload(served.client)
        upload.send(chunks(name, data, size=MIB)[0])
        await reaches(served.client, name, MIB)
        upload.cut()
        await reaches(served.client, name, 0)
        assert "gap" in await fails(INVALID, served.client.write(chunks(name, data, size=MIB, start=MIB)))
        assert await served.client.write(chunks(name, data, size=MIB)) == 2 * MIB


async def test_parked_uploads_are_bounded_and_the_longest_parked_go_first(store):
    async with serving(store=store, max_parked=2) as served:
        names = []
        for count in range(1, 4):
            data = os.urandom(MIB + count)
            names.append(upload_name(digest(data)))
            upload = SlowUpload(served.client)
            upload.send(chunks(names[-1], data, size=MIB)[0])
            await reaches(served.client, names[-1], MIB)
            upload.cut()
            await settles(served, count)
        assert [(await served.client.status(name))[0] for name in names] == [0, MIB, MIB]
        assert served.bytestream.statistics()["uploads_given_up"] == 1


async def test_parked_bytes_are_bounded(store):
    async with serving(store=store, max_parked_bytes=3 * MIB) as served:
        names = []
        for count in range(1, 3):
            data = os.urandom(2 * MIB + count)
            names.append(upload_name(digest(data)))
            upload = SlowUpload(served.client)
            upload.send(*chunks(names[-1], data, size=MIB)[:2])
            await reaches(served.client, names[-1], 2 * MIB)
            upload.cut()
            await settles(served, count)
        assert [(await served.client.status(name))[0] for name in names] == [0, 2 * MIB]


async def test_a_write_that_ends_early_is_refused_and_can_be_resumed(served: Serving):
    client, data = served.client, os.urandom(2 * MIB + 5)
    name = upload_name(digest(data))
    details = await fails(INVALID, client.write(chunks(name, data[: 2 * MIB], size=MIB, finish=False)))
    assert f"ended after {2 * MIB} of {2 * MIB + 5} bytes" in details
    assert await client.missing([digest(data)]) == [digest(data)]
    assert await client.write(chunks(name, data, size=MIB, start=2 * MIB)) == len(data)


async def test_the_last_bytes_without_finish_write_complete_the_upload(served: Serving):
    client, data = served.client, os.urandom(MIB)
    assert await client.write(chunks(upload_name(digest(data)), data, size=MIB // 3, finish=False)) == MIB
    assert await client.missing([digest(data)]) == []


async def test_an_empty_last_message_finishes_the_upload(served: Serving):
    client, data = served.client, os.urandom(MIB)
    messages = chunks(upload_name(digest(data)), data, size=MIB, finish=False)
    messages.append(BYTESTREAM.WriteRequest(write_offset=MIB, finish_write=True))
    assert await client.write(messages) == MIB


@pytest.mark.parametrize("size", [40, 300_000, 3 * MIB])
@pytest.mark.parametrize("pieces", [1, 2, 7])
async def test_any_blob_in_any_pieces_is_stored(served: Serving, size, pieces):
    client, data = served.client, os.urandom(size)
    assert await client.write(chunks(upload_name(digest(data)), data, size=-(-size // pieces))) == size
    assert b"".join(await client.read(read_name(digest(data)))) == data


async def test_a_message_whose_fields_come_in_another_order_means_the_same(served: Serving):
    data = os.urandom(100_000)
    name = upload_name(digest(data)).encode()
    payload = b"\x52" + _varint(len(data)) + data
    backwards = payload + b"\x18\x01" + b"\x0a" + _varint(len(name)) + name
    call = served.client.channel.stream_unary(BYTES + "Write", bytes, BYTESTREAM.WriteResponse.FromString)
    reply = await trio.to_thread.run_sync(lambda: call(iter([backwards]), timeout=30))
    assert reply.committed_size == len(data)
    assert b"".join(await served.client.read(read_name(digest(data)))) == data


def wrong_uploads():
    data = b"0123456789" * 1000
    name = upload_name(digest(data))
    other = upload_name(digest(b"other"))
    message = BYTESTREAM.WriteRequest

    yield "no message", [], "at least one message"
    yield "no resource name", [message(data=data, finish_write=True)], "must carry a resource_name"
    yield "too much data", chunks(name, data + b"x", size=99_999), "1000"
    yield "too much data in a second message", [*chunks(name, data, size=9_999, finish=False),
                                                message(write_offset=10_000, data=b"x")], "more bytes"
    yield "too little data", chunks(name, data[:-1], size=99_999), "9999"
    yield "too little data in pieces", chunks(name, data[:-1], size=1_000), "finish_write came after 9999"
    yield "a gap", [message(resource_name=name, data=data[:10]), message(write_offset=11, data=data[11:])], "gap"
    yield "a gap at the start", [message(resource_name=name, write_offset=1, data=data[1:], finish_write=True)], "gap"
    yield "a negative offset", [message(resource_name=name, write_offset=-1, data=data)], "negative"
    yield "another name", [message(resource_name=name, data=data[:10]),
                           message(resource_name=other, write_offset=10, data=data[10:])], "cannot change"
    yield "bytes that are no message", [b"\x0a\xff\xff"], "not a WriteRequest"
    yield "bytes that are no message later", [message(resource_name=name, data=data[:10]), b"\x52\xff\x01ab"], \
        "not a WriteRequest"
    yield "a read name", [message(resource_name=read_name(digest(data)), data=data, finish_write=True)], "uploads"
    yield "a name that climbs", [message(resource_name="../" + name, data=data, finish_write=True)], "'..'"


@pytest.mark.parametrize(("messages", "reason"), [pytest.param(m, r, id=i) for i, m, r in wrong_uploads()])
async def test_a_wrong_upload_is_an_invalid_argument_that_says_what_was_wrong(served: Serving, messages, reason):
    data = b"0123456789" * 1000
    assert reason in await fails(INVALID, served.client.write(messages))
    assert await served.client.missing([digest(data)]) == [digest(data)]
    assert await served.client.write(chunks(upload_name(digest(data)), data, size=999)) == len(data)


async def test_an_upload_that_failed_its_check_is_forgotten(served: Serving):
    client, data = served.client, os.urandom(2 * MIB)
    name = upload_name(digest(data))
    broken = data[:-1] + bytes([data[-1] ^ 1])
    await fails(INVALID, client.write(chunks(name, broken, size=MIB)))
    assert await client.status(name) == (0, False)
    assert await client.write(chunks(name, data, size=MIB)) == 2 * MIB


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
