"""One peer does not harm the others, and what a peer does lawfully costs it nothing."""

import gc
import weakref

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.options import ServerOptions
from nl.rpc.outbox import HIGH_WATER, Socket
from tests.wire.raw_h2 import RawClient, headers, message
from tests.wire.rpc_hosting import serving
from tests.wire.rpc_service import RawService

MIB = 1 << 20


@pytest.fixture
async def service():
    yield RawService()
    RawClient.close_all()


async def finished(client, sids):
    """Reads until every one of these calls has its trailers; the DATA of each."""
    data = dict.fromkeys(sids, b"")
    waiting = set(sids)
    with trio.fail_after(30):
        while waiting:
            kind, flags, sid, payload = await client.frame()
            if kind == fr.DATA and sid in data:
                data[sid] += payload
            if flags & fr.END_STREAM:
                waiting.discard(sid)
    return data


async def test_replies_that_wait_for_room_need_no_task_are_counted_and_arrive_whole_and_in_order(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW})
        await client.send(fr.window_update(0, fr.MAX_WINDOW - fr.DEFAULT_WINDOW))
        await client.settled()
        before = trio.lowlevel.current_statistics().tasks_living
        sids = range(1, 1801, 2)
        payload = bytes(10_000)
        for sid in sids:
            await client.send(headers(sid), message(sid, payload))
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        [connection] = server._connections
        waiting = len(connection.held_back)
        assert waiting > 100
        assert connection.held_bytes() > waiting * len(payload)
        assert connection.outbox.size < HIGH_WATER + 2 * len(payload) + MIB
        assert trio.lowlevel.current_statistics().tasks_living <= before + 3
        replies = await finished(client, sids)
        assert all(len(data) == 5 + len(payload) for data in replies.values())
        assert not connection.held_back


class Pausing(RawService):
    """Pour sends one large message, and then nothing for a while."""

    async def pour(self, stream):
        await stream.recv_message()
        await stream.send_message(bytes(8 * MIB))
        await self.release.wait()


async def test_replies_that_waited_for_room_leave_also_when_nothing_else_happens_on_the_connection(monkeypatch):
    """A payload takes the full queue along: that makes room, and who sent it does not look at the queue again."""
    monkeypatch.setattr("nl.rpc.server._SWEEP_S", 3600)  # which would find them, up to a second later
    service = Pausing()
    async with serving(service) as (server, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW})
        await client.send(fr.window_update(0, fr.MAX_WINDOW - fr.DEFAULT_WINDOW))
        await client.send(headers(1, "Pour"), message(1), headers(3, "Pour"), message(3))
        await wait_all_tasks_blocked()  # one of them in the middle of a piece, the other in line for the socket
        sids = range(5, 1605, 2)  # more than the pieces to come can take along, each up to HIGH_WATER
        await client.send(*(headers(sid, "Big") + message(sid, b"16000") for sid in sids))
        await wait_all_tasks_blocked()
        [connection] = server._connections
        assert connection.outbox.socket is Socket.TAKEN
        assert len(connection.held_back) > 16 * HIGH_WATER // 16_000
        replies = await finished(client, sids)
        assert {len(data) for data in replies.values()} == {5 + 16_000}
        assert not connection.held_back
    RawClient.close_all()


async def test_replies_that_wait_for_credit_go_out_as_it_comes_and_resets_take_theirs_along(service):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        sids = list(range(1, 201, 2))
        for sid in sids:
            await client.send(headers(sid), message(sid, bytes(1000)))
        await wait_all_tasks_blocked()
        [connection] = server._connections
        assert len(connection.held_back) > 30
        reset, kept = sids[-10:], sids[:-10]
        await client.send(*(fr.rst_stream(sid, ErrorCode.CANCEL) for sid in reset))
        await wait_all_tasks_blocked()
        await client.send(fr.window_update(0, 200_000))
        await finished(client, kept)
        await wait_all_tasks_blocked()
        h2 = connection.h2
        assert h2.send_window == fr.DEFAULT_WINDOW + 200_000 - len(kept) * 1005
        assert not h2.streams
        assert h2.winding_down == 0


async def test_a_held_back_reply_ends_with_its_deadline(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 0})
        await client.send(headers(1, extra=[(b"grpc-timeout", b"100m")]), message(1, b"x"))
        block = await client.until(fr.HEADERS, sid=1)
        fields = {name: value for name, value, _, _ in hpack.HeaderDecoder().decode(block)}
        assert fields[b"grpc-status"] == b"4"


async def test_a_thousand_cancelled_calls_that_were_answered_in_part_leave_the_connection_to_others(service):
    async with serving(service, options=ServerOptions(limits=Limits(reset_burst=5, reset_per_s=0))) as (_, port):
        client = await RawClient.connect(port)
        for start in range(1, 2001, 200):
            sids = range(start, start + 200, 2)
            for sid in sids:
                await client.send(headers(sid, "Chat"), message(sid, b"hello", end=False))
                await client.until(fr.DATA, sid=sid)
            await client.send(*(fr.rst_stream(sid, ErrorCode.CANCEL) for sid in sids))
            await wait_all_tasks_blocked()
        await client.send(fr.window_update(0, MIB), headers(5001), message(5001, b"still here"))
        assert (await client.until(fr.DATA, sid=5001)).endswith(b"still here")


async def test_no_data_follows_the_acknowledgement_of_a_window_that_has_none(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings={Setting.INITIAL_WINDOW_SIZE: 60_000})
        await client.send(fr.window_update(0, fr.MAX_WINDOW - fr.DEFAULT_WINDOW))
        for sid in range(1, 400, 2):
            await client.send(headers(sid, "Pour"), message(sid))
        await wait_all_tasks_blocked()
        await client.send(fr.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
        acknowledged = 0
        await client.send(fr.ping(b"the end!"))
        with trio.fail_after(20):
            while True:
                kind, flags, _, payload = await client.frame()
                acknowledged += kind == fr.SETTINGS and flags & fr.ACK
                assert not (kind == fr.DATA and acknowledged == 2)
                if kind == fr.PING and payload == b"the end!":
                    break
        assert acknowledged == 2


@pytest.mark.parametrize("method", ["Hang", "Pour", "Drain", "SlowEcho", "Echo"])
async def test_a_connection_that_is_cut_in_a_call_is_freed_at_once_without_the_collector(service, method):
    async with serving(service) as (server, port):
        client = await RawClient.connect(port)
        await client.send(headers(1, method), message(1, b"x", end=method not in ("Drain", "Echo")))
        await client.send(fr.frame(fr.DATA, 0, 1, bytes(20_000))[:9_000] if method in ("Drain", "Echo") else b"")
        await wait_all_tasks_blocked()
        [connection] = server._connections
        alive = weakref.ref(connection)
        del connection
        gc.collect()
        gc.disable()
        try:
            RawClient.close_all()
            with trio.fail_after(5):
                while server._connections:
                    await trio.sleep(0.01)
            await wait_all_tasks_blocked()
            assert alive() is None
        finally:
            gc.enable()


async def test_trailers_fit_what_the_client_takes_and_keep_the_status(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port, settings={Setting.MAX_HEADER_LIST_SIZE: 1000})
        await client.send(headers(1, "Fail"), message(1, b"unicode"), headers(3, "Fail"), message(3, b"missing"))
        for sid in (1, 3):
            block = await client.until(fr.HEADERS, sid=sid)
            fields = hpack.HeaderDecoder().decode(block)
            assert sum(size for *_, size in fields) <= 1000
            assert b"grpc-status" in {name for name, *_ in fields}


async def test_a_head_request_gets_no_body(service):
    async with serving(service) as (_, port):
        client = await RawClient.connect(port)
        block = hpack.encode([(b":method", b"HEAD")]) + hpack.SCHEME_HTTP + hpack.encode_path(b"/t.S/Echo")
        await client.send(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, block))
        await client.settled()
        assert [frame[:3] for frame in client.seen if frame[2] == 1] == [
            (fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1)
        ]
