"""One client's connection: however a call ends, it is counted once, answered once, and nothing of it is left."""

import logging

import pytest
import trio
from grpclib.const import Cardinality
from trio.testing import wait_all_tasks_blocked

from nl.errors import NotFoundError
from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.options import ServerOptions
from nl.rpc.server_connection import CALL_COST, TASK_COST
from tests.unit.rpc.served import Handlers, nothing_is_left_of, served
from tests.wire.raw_h2 import GRPC, headers, message

WINDOW = Setting.INITIAL_WINDOW_SIZE
STREAMING = Cardinality.STREAM_STREAM


class Service(Handlers):
    """A method for each way in which a handler may end, or not."""

    def __init__(self):
        self.release = trio.Event()
        self.waiting = 0
        names = ("Echo", "Slow", "Fail", "SlowFail", "Hang", "Trailers", "Early", "Unread", "Body")
        handlers = {name: getattr(self, name.lower()) for name in names}
        streams = {name: (getattr(self, name.lower()), STREAMING) for name in ("Chat", "Pour", "Half")}
        super().__init__(**handlers, **streams)

    async def echo(self, call):
        await call.send_message(await call.recv_message())

    async def slow(self, call):
        text = await call.recv_message()
        await trio.lowlevel.checkpoint()
        await call.send_message(text)

    async def fail(self, call):
        await call.recv_message()
        raise NotFoundError("not here")

    async def slowfail(self, call):
        await call.recv_message()
        await trio.lowlevel.checkpoint()
        raise NotFoundError("not here")

    async def hang(self, call):
        await call.recv_message()
        self.waiting += 1
        await self.release.wait()
        await call.send_message(b"released")

    async def trailers(self, call):
        await call.send_message(await call.recv_message())
        await call.send_trailing_metadata(metadata={"x-last": "1"})

    async def early(self, call):
        await call.send_message(b"that will do")

    async def unread(self, call):
        """Looks at a part of its request only."""
        body = await call.receive_body()
        await body.receive_parts(10)
        await call.send_message(b"enough")

    async def body(self, call):
        body = await call.receive_body()
        count = 0
        while parts := await body.receive_parts(1000):
            count += sum(map(len, parts))
        await call.send_message(b"%d" % count)

    async def chat(self, call):
        async for text in call:
            await call.send_message(text)

    async def half(self, call):
        await call.send_message(b"one")
        raise NotFoundError("no more")

    async def pour(self, call):
        while True:
            await call.send_message(bytes(10_000))


@pytest.fixture
def service():
    return Service()


BIG = b"x" * 10_000
ENDS = {
    "answered at once": ("Echo", b"a", 0), "answered later": ("Slow", b"a", 0), "a large one": ("Echo", BIG, 0),
    "failed at once": ("Fail", b"a", 5), "failed later": ("SlowFail", b"a", 5), "with metadata": ("Trailers", b"a", 0),
    "unread": ("Early", BIG, 0), "read in part": ("Unread", BIG, 0), "read in pieces": ("Body", BIG, 0),
    "streamed": ("Chat", b"a", 0), "failed halfway": ("Half", b"a", 5), "no such method": ("None", b"a", 12),
}  # fmt: skip


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("how", ENDS)
async def test_a_call_that_its_handler_ends_is_counted_once_and_nothing_of_it_is_left(service, how, ended):
    method, text, status = ENDS[how]
    ended = ended or how == "streamed"
    async with served(service) as (connection, client):
        for sid in (1, 3):
            await client.send(headers(sid, method), message(sid, text, end=ended))
            assert (await client.status(sid))[0] == status
        await client.settled()
        assert connection.outcomes == {status: 2}
        connection.rest()
        nothing_is_left_of(connection)
        assert connection.h2.resets.left == connection.h2.resets.burst


async def hanging(client, service, *, shut=False):
    """A call that waits: its handler, or its reply for a window."""
    await client.send(headers(1, "Echo" if shut else "Hang"), message(1, b"a"))
    await client.settled()
    await wait_all_tasks_blocked()
    assert service.waiting == (0 if shut else 1)


@pytest.mark.parametrize("shut", [False, True], ids=["its handler waits", "its reply waits"])
@pytest.mark.parametrize(
    ("how", "status", "text"),
    [
        ("reset", 1, None),
        ("deadline", 4, "the deadline has passed"),
        ("shutdown", 14, "the server is shutting down"),
        ("left", 1, None),
        ("fault", 1, None),
        ("closed", 1, None),
        ("granted", 0, ""),
    ],
)
async def test_a_call_that_waits_is_counted_once_however_it_ends_and_nothing_of_it_is_left(
    service, mock_clock, how, status, text, shut
):
    async with served(service, settings={WINDOW: 0 if shut else 1000}) as (connection, client):
        extra = [(b"grpc-timeout", b"5S")] if how == "deadline" else []
        await client.send(headers(1, "Echo" if shut else "Hang", extra=extra), message(1, b"a"))
        await client.settled()
        await wait_all_tasks_blocked()
        assert bool(connection.held_back) is shut
        assert bool(connection._running) is not shut
        if how == "reset":
            await client.send(fr.rst_stream(1, ErrorCode.CANCEL))
            await client.settled()
        elif how == "deadline":
            mock_clock.jump(5)
            connection.sweep(trio.current_time())
        elif how == "shutdown":
            connection.cancel_calls()
        elif how == "granted":
            service.release.set()
            await client.send(fr.window_update(1, 1000))
        elif how == "fault":
            await client.send(fr.frame(fr.PING, 0, 0, b"short"))
        elif how == "closed":
            connection.close_soon()
        else:
            client.stream.socket.close()
        if text is not None:
            assert await client.status(1) == (status, text)
        else:
            await wait_all_tasks_blocked()
        if how in ("left", "fault", "closed"):
            if how == "fault":
                assert await client.goaway_code() is ErrorCode.FRAME_SIZE_ERROR
                client.stream.socket.close()
            await connection.over.wait()
            assert connection._held.total == 0
            assert not (connection.held_back or connection._running or connection.h2.streams)
        else:
            await wait_all_tasks_blocked()
            connection.rest()
            nothing_is_left_of(connection)
        assert connection.outcomes == {status: 1}


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("what", ["its message", "its reply"])
async def test_a_window_may_stay_shut_for_so_long_and_no_longer(service, mock_clock, what, over):
    options = ServerOptions(window_timeout=100, keepalive_interval=None)
    async with served(service, settings={WINDOW: 0}, options=options) as (connection, client):
        await client.send(headers(1, "Pour" if what == "its message" else "Echo"), message(1, b"a"))
        await client.settled()
        await wait_all_tasks_blocked()
        mock_clock.jump(100 + over)
        connection.sweep(trio.current_time())
        await wait_all_tasks_blocked()
        if over > 0:
            assert await client.status(1) == (14, "the client opens no flow-control window")
            assert connection.outcomes == {14: 1}
        else:
            assert connection.outcomes == {}
            assert 1 in connection.h2.streams


async def test_how_long_a_reply_waits_for_its_window_counts_from_when_it_is_there(service, mock_clock):
    options = ServerOptions(window_timeout=100, keepalive_interval=None)
    async with served(service, settings={WINDOW: 0}, options=options) as (connection, client):
        await hanging(client, service)
        mock_clock.jump(500)
        service.release.set()
        await wait_all_tasks_blocked()
        assert connection.held_back
        connection.sweep(trio.current_time())
        mock_clock.jump(100)
        connection.sweep(trio.current_time())
        await client.send(fr.window_update(1, 1000))
        assert (await client.status(1))[0] == 0


@pytest.mark.parametrize("what", ["Pour", "Echo"])
async def test_a_window_that_opens_now_and_then_is_not_shut(service, mock_clock, what):
    options = ServerOptions(window_timeout=100, keepalive_interval=None)
    async with served(service, settings={WINDOW: 0}, options=options) as (connection, client):
        await client.send(headers(1, what), message(1, bytes(1000)))
        await client.settled()
        for _ in range(5):
            mock_clock.jump(60)
            await client.send(fr.window_update(1, 100))
            await client.settled()
            await wait_all_tasks_blocked()
            connection.sweep(trio.current_time())
            await wait_all_tasks_blocked()
        assert 1 in connection.h2.streams
        assert connection.outcomes == {}


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_a_reply_that_waits_ends_at_its_deadline_and_not_before(service, mock_clock, over):
    async with served(service, settings={WINDOW: 0}) as (connection, client):
        await client.send(headers(1, extra=[(b"grpc-timeout", b"50S")]), message(1, b"a"))
        await client.settled()
        mock_clock.jump(50 + over)
        connection.sweep(trio.current_time())
        await wait_all_tasks_blocked()
        assert connection.outcomes == ({4: 1} if over >= 0 else {})


@pytest.mark.parametrize("timeout", [b"0n", b"1n"])
async def test_a_call_whose_deadline_is_here_does_not_begin(service, mock_clock, timeout):
    async with served(service) as (connection, client):
        await client.send(headers(1, "Hang", extra=[(b"grpc-timeout", timeout)]), message(1, b"a"))
        if timeout == b"0n":
            assert await client.status(1) == (4, "the deadline has passed")
            assert service.waiting == 0
        else:
            await client.settled()
            assert service.waiting == 1


# -- what is held ----------------------------------------------------------------------------------------------------


async def test_what_a_connection_holds_is_what_its_calls_hold(service):
    async with served(service, settings={WINDOW: 0}) as (connection, client):
        for sid, method, text in ((1, "Hang", b"a"), (3, "Echo", b"b" * 500)):
            await client.send(headers(sid, method), message(sid, text))
        await client.settled()
        await wait_all_tasks_blocked()
        reply = 500 + 5
        assert connection.pinned == reply
        assert connection.held_bytes() == 2 * CALL_COST + TASK_COST + reply
        assert connection._held.total == connection.held_bytes(), "and it has been counted as it grew"


async def test_a_message_that_has_arrived_in_part_is_pinned_and_counted_at_once(service):
    async with served(service) as (connection, client):
        await client.send(headers(1, "Slow"), fr.frame(fr.DATA, 0, 1, fr.PREFIX.pack(0, 9000) + bytes(5000)))
        await client.settled()
        await wait_all_tasks_blocked()
        assert connection.pinned == 5000
        assert connection._held.total == connection.held_bytes() == CALL_COST + TASK_COST + 5000
        await client.send(fr.frame(fr.DATA, fr.END_STREAM, 1, bytes(4000)))
        assert (await client.status(1))[0] == 0
        assert connection.pinned == 0


@pytest.mark.parametrize("unread", [False, True])
async def test_who_costs_too_much_is_told_and_its_calls_go_with_it(service, caplog, unread):
    caplog.set_level(logging.INFO)
    async with served(service, settings={WINDOW: 0}) as (connection, client):
        await client.send(headers(1, "Hang"), message(1, b"a"), headers(3), message(3, BIG))
        await client.settled()
        await wait_all_tasks_blocked()
        [waiting] = connection.held_back
        if unread:
            connection.outbox.size += 40_000
        connection.give_up("too much")
        connection.give_up("too much")
        assert connection.pinned == 0
        assert waiting._reply is None
        assert not connection.held_back
        assert connection.lost is unread
        if not unread:
            assert await client.until(fr.GOAWAY) == fr.goaway(3, ErrorCode.ENHANCE_YOUR_CALM, "too much")[9:]
        client.stream.socket.close()
        await connection.over.wait()
        assert connection.outcomes == {1: 2}
        assert [record.getMessage() for record in caplog.records] == [f"{connection.transport.peer}: too much"]


# -- leaving ---------------------------------------------------------------------------------------------------------


async def test_a_lame_duck_says_so_twice_and_leaves_with_its_last_call(service):
    async with served(service) as (connection, client):
        await hanging(client, service)
        connection.drain()
        connection.drain()
        with trio.fail_after(20):
            while (frame := await client.frame())[0] != fr.PING:
                assert frame[0] == fr.GOAWAY
                assert frame[3] == fr.goaway(fr.MAX_STREAM_ID, 0, "draining")[9:]
        assert [kind for kind, *_ in client.seen].count(fr.GOAWAY) == 1
        await client.send(headers(3), message(3, b"on its way"), fr.ping(frame[3], ack=True))
        assert (await client.status(3))[0] == 0
        said = [fr.U32.unpack_from(payload)[0] for kind, _, _, payload in client.seen if kind == fr.GOAWAY]
        assert said == [fr.MAX_STREAM_ID, 3]
        await client.send(headers(5), message(5, b"too late"))
        await client.settled()
        assert 5 not in connection.h2.streams
        assert not connection.over.is_set()
        service.release.set()
        assert (await client.status(1))[0] == 0
        await client.until(fr.GOAWAY)
        await client.closed()
        assert connection.outcomes == {0: 2}


async def test_an_answered_ping_of_somebody_elses_ends_nothing(service):
    async with served(service) as (connection, client):
        await hanging(client, service)
        await client.send(fr.ping(b"nl-drain", ack=True))
        await client.settled()
        connection.drain()
        await client.send(fr.ping(b"nl-other", ack=True), headers(3), message(3, b"a"))
        assert (await client.status(3))[0] == 0


@pytest.mark.parametrize("over", [0, 1])
async def test_a_connection_is_asked_to_leave_when_it_has_been_idle_for_longer_than_it_may(service, mock_clock, over):
    options = ServerOptions(idle_timeout=100, keepalive_interval=None)
    async with served(service, options=options) as (connection, client):
        mock_clock.jump(50)
        await client.send(headers(1, "Hang"), message(1, b"a"))
        await client.settled()
        await wait_all_tasks_blocked()
        mock_clock.jump(500)
        assert connection.idle_time(trio.current_time()) == 0
        connection.sweep(trio.current_time())
        assert not connection.draining
        service.release.set()
        assert (await client.status(1))[0] == 0
        await wait_all_tasks_blocked()
        mock_clock.jump(100 + over)
        assert connection.idle_time(trio.current_time()) == 100 + over
        connection.sweep(trio.current_time())
        assert connection.draining is bool(over)
        assert connection.idle_time(trio.current_time()) == (0 if over else 100)


@pytest.mark.parametrize("over", [0, 1])
async def test_who_sends_no_settings_is_let_go_after_a_while(service, mock_clock, caplog, over):
    caplog.set_level(logging.INFO)
    async with served(service, options=ServerOptions(handshake_timeout=7), hello=False) as (connection, client):
        await wait_all_tasks_blocked()
        mock_clock.jump(7 + over)
        connection.sweep(trio.current_time())
        await wait_all_tasks_blocked()
        assert connection.over.is_set() is bool(over)
        texts = [record.getMessage() for record in caplog.records]
        assert texts == ([f"{connection.transport.peer}: no SETTINGS"] if over else [])


async def test_who_has_sent_settings_may_be_silent(service, mock_clock):
    options = ServerOptions(handshake_timeout=7, keepalive_interval=None)
    async with served(service, options=options) as (connection, client):
        mock_clock.jump(1000)
        connection.sweep(trio.current_time())
        await client.settled()
        assert not connection.lost


async def test_keepalive_is_as_the_options_say(service, mock_clock, caplog):
    caplog.set_level(logging.INFO)
    options = ServerOptions(keepalive_interval=30, keepalive_timeout=10)
    async with served(service, options=options) as (connection, client):
        mock_clock.jump(29)
        connection.sweep(trio.current_time())
        assert connection.ping_sent is None
        mock_clock.jump(1)
        connection.sweep(trio.current_time())
        assert await client.until(fr.PING) == b"nl-alive"
        mock_clock.jump(10)
        connection.sweep(trio.current_time())
        await wait_all_tasks_blocked()
        assert not connection.over.is_set()
        mock_clock.jump(1)
        connection.sweep(trio.current_time())
        await wait_all_tasks_blocked()
        assert connection.over.is_set()
        assert "no answer to a keepalive PING within 10 s" in caplog.text


# -- requests --------------------------------------------------------------------------------------------------------


def request(sid, *fields, verb=hpack.METHOD_POST, path=b"/t.S/Echo"):
    block = verb + hpack.SCHEME_HTTP + hpack.encode_path(path) + hpack.encode(fields)
    return fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, sid, block)


@pytest.mark.parametrize(
    ("content_type", "taken"),
    [
        (b"application/grpc", True), (b"application/grpc+proto", True), (b"application/grpc;charset=utf-8", True),
        (b"application/grpc+proto;x", True), (b"application/grpcx", False), (b"application/grpc+json", False),
        (b"text/plain", False), (b"", False), (None, False),
    ],
)  # fmt: skip
async def test_a_content_type_is_grpcs_or_the_answer_is_http_415(service, content_type, taken):
    async with served(service) as (connection, client):
        await client.send(request(1, *([] if content_type is None else [(b"content-type", content_type)])))
        fields, data, reset = await client.ending(1)
        if taken:
            assert (fields[":status"], fields["grpc-status"]) == (b"200", b"3"), "it has no message"
        else:
            text = b"content-type must be application/grpc (pages and metrics are served over HTTP/1.1)\n"
            assert (data, reset) == (text, None)
            assert fields == {":status": b"415", "content-type": b"text/plain; charset=utf-8",
                              "content-length": b"%d" % len(text)}  # fmt: skip
        await client.settled()
        nothing_is_left_of(connection)


@pytest.mark.parametrize(("verb", "sent"), [(b"\x82", True), (hpack.encode([(b":method", b"HEAD")]), False)])
async def test_another_verb_is_answered_with_http_405_and_head_without_a_body(service, verb, sent):
    async with served(service) as (connection, client):
        await client.send(request(1, verb=verb))
        fields, data, reset = await client.ending(1)
        text = b"this is gRPC: POST only (pages and metrics are served over HTTP/1.1)\n"
        assert (data, reset) == (text if sent else b"", None)
        assert (fields[":status"], fields["allow"], fields["content-length"]) == (b"405", b"POST", b"%d" % len(text))
        await client.settled()
        nothing_is_left_of(connection)


async def test_a_request_that_is_not_grpc_ends_an_idle_time_too(service, mock_clock):
    async with served(service) as (connection, client):
        mock_clock.jump(100)
        await client.send(request(1, verb=b"\x82"))
        await client.ending(1)
        await client.settled()
        assert connection.idle_time(trio.current_time()) == 0


@pytest.mark.parametrize(
    ("encoding", "accepted", "status"),
    [(None, (), 0), (b"identity", (), 0), (b"gzip", ("gzip",), 0), (b"gzip", (), 12), (b"br", ("gzip",), 12)],
)
async def test_encodings_of_requests_are_taken_as_the_options_say(service, encoding, accepted, status):
    async with served(service, options=ServerOptions(accepted_compression=accepted)) as (connection, client):
        extra = [] if encoding is None else [(b"grpc-encoding", encoding)]
        await client.send(headers(1, extra=extra), message(1, b"a"))
        fields, _, _ = await client.ending(1)
        assert fields["grpc-status"] == b"%d" % status
        if status:
            assert fields["grpc-message"] == b"grpc-encoding %b is not supported" % encoding
            assert fields["grpc-accept-encoding"] == ",".join(("identity", *accepted)).encode()
        assert connection.outcomes == {status: 1}


@pytest.mark.parametrize("ended", [True, False])
async def test_a_request_that_becomes_no_call_is_answered_counted_and_reset_where_it_goes_on(service, ended):
    limits = Limits(max_header_list_size=500)
    async with served(service, options=ServerOptions(limits=limits)) as (connection, client):
        flags = fr.END_HEADERS | (fr.END_STREAM if ended else 0)
        large = hpack.METHOD_POST + hpack.SCHEME_HTTP + hpack.encode_path(b"/t.S/Echo") + GRPC
        large += hpack.encode([(b"x", bytes(500))])
        await client.send(headers(1, "None", end=ended), fr.frame(fr.HEADERS, flags, 3, large))
        await client.send(headers(5, extra=[(b"grpc-timeout", b"soon")], end=ended))
        assert await client.status(1) == (12, "unknown method /t.S/None")
        assert await client.status(3) == (8, "metadata is over 500 bytes")
        assert await client.status(5) == (3, "grpc-timeout is 'soon'")
        await client.settled()
        resets = [sid for kind, _, sid, payload in client.seen if kind == fr.RST_STREAM and payload == bytes(4)]
        assert resets == ([] if ended else [1, 3, 5])
        assert connection.outcomes == {12: 1, 8: 1, 3: 1}
        nothing_is_left_of(connection)


@pytest.mark.parametrize("extra", [[(b"te", b"gzip")], [(b"content-length", b"x")], [(b"connection", b"close")]])
async def test_a_malformed_request_is_reset_and_is_no_call(service, extra):
    async with served(service) as (connection, client):
        await client.send(headers(1, extra=extra))
        assert await client.reset_code(1) is ErrorCode.PROTOCOL_ERROR
        await client.send(headers(3), message(3, b"a"))
        assert (await client.status(3))[0] == 0
        assert connection.outcomes == {0: 1}


@pytest.mark.parametrize(("length", "reset"), [(6, None), (5, ErrorCode.PROTOCOL_ERROR), (7, ErrorCode.PROTOCOL_ERROR)])
async def test_a_request_is_as_long_as_it_says_or_is_reset(service, length, reset):
    async with served(service) as (_, client):
        await client.send(headers(1, extra=[(b"content-length", b"%d" % length)]), message(1, b"a"))
        assert (await client.ending(1))[2] is reset


async def test_a_lame_duck_leaves_when_the_last_reply_that_waits_is_given_up(service, mock_clock):
    async with served(service, settings={WINDOW: 0}) as (connection, client):
        await client.send(headers(1, extra=[(b"grpc-timeout", b"5S")]), message(1, b"a"))
        await client.settled()
        connection.drain()
        await client.send(fr.ping(b"nl-drain", ack=True))
        await client.settled()
        assert not connection.over.is_set()
        mock_clock.jump(5)
        connection.sweep(trio.current_time())
        assert (await client.status(1))[0] == 4
        client.stream.socket.close()
        await connection.over.wait()
        assert connection.outcomes == {4: 1}


async def test_a_connection_that_is_given_up_for_its_silence_has_no_last_words(service, mock_clock):
    options = ServerOptions(keepalive_interval=30, keepalive_timeout=10)
    async with served(service, options=options) as (connection, client):
        connection.drain()
        mock_clock.jump(30)
        connection.sweep(trio.current_time())
        mock_clock.jump(11)
        connection.sweep(trio.current_time())
        assert connection.lost
        await connection.over.wait()


async def test_a_call_that_has_not_begun_when_all_are_cancelled_ends_with_its_first_wait(service):
    async def cancels(call):
        await call.recv_message()
        call.connection.cancel_calls()
        await call.send_message(b"done")

    service.handlers["Cancels"] = cancels
    async with served(service) as (connection, client):
        await client.send(headers(1, "Cancels"), message(1, b""), headers(3, "Hang"), message(3, b""),
                          headers(5, "Echo"), message(5, b"a"))  # fmt: skip
        await client.settled()
        await wait_all_tasks_blocked()
        assert connection.outcomes == {0: 2, 14: 1}, "Echo does not wait"
        assert service.waiting == 1
        nothing_is_left_of(connection)


async def test_a_handler_that_gives_up_on_a_message_in_part_leaves_nothing_of_it(service, mock_clock):
    async def impatient(call):
        with trio.move_on_after(5):
            await call.recv_message()
        raise NotFoundError("too slow")

    service.handlers["Impatient"] = impatient
    async with served(service) as (connection, client):
        await client.send(headers(1, "Impatient"), fr.frame(fr.DATA, 0, 1, fr.PREFIX.pack(0, 9000) + bytes(5000)))
        await client.settled()
        await wait_all_tasks_blocked()
        assert connection.pinned == 5000
        mock_clock.jump(5)
        assert await client.status(1) == (5, "too slow")
        await client.settled()
        connection.rest()
        nothing_is_left_of(connection)
