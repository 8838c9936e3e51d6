"""A caller's end of a call: which order is a mistake, what a server's oddities become, and what is left of a call."""

import logging

import pytest
import trio
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.channel import Channel
from nl.rpc.errors import NotProcessed
from nl.rpc.frames import ErrorCode
from nl.rpc.options import ChannelOptions
from nl.rpc.retry import RetryPolicy
from tests.wire.raw_server import RawConnection, only_trailers, trailers

UNARY, UP, DOWN, BOTH = (
    Cardinality.UNARY_UNARY, Cardinality.STREAM_UNARY, Cardinality.UNARY_STREAM, Cardinality.STREAM_STREAM,
)  # fmt: skip


class Script:
    """A server that does what the test says for each connection; `seen` are the frames that it has got."""

    def __init__(self, nursery, *does):
        self.nursery = nursery
        self.does = list(does)
        self.seen = []
        self.blocks = []
        self.over = 0

    async def __call__(self):
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self._run, RawConnection(theirs, 1), self.does.pop(0))
        return ours

    async def _run(self, connection, does):
        frame = connection.frame

        async def noted():
            got = await frame()
            if got is not None and got[0] in (fr.HEADERS, fr.DATA, fr.RST_STREAM, fr.GOAWAY):
                self.seen.append(got)
            return got

        connection.frame = noted
        try:
            await connection.greet()
            await does(connection)
            await connection.to_the_end()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.over += 1
        await trio.aclose_forcefully(connection.stream)

    def kinds(self, sid=1):
        return [kind for kind, _, of, _ in self.seen if of == sid]

    def resets(self):
        return [(sid, ErrorCode(fr.U32.unpack(payload)[0])) for kind, _, sid, payload in self.seen if kind == 3]


def block(*fields, end=False):
    return fr.header_frames(hpack.encode(fields), 1, end_stream=end, max_frame=16384)


def message(text, sid=1):
    return fr.frame(fr.DATA, 0, sid, fr.PREFIX.pack(0, len(text)) + text)


async def answering(connection, *frames):
    """Answers the first request, once it is complete, with these."""
    await connection.request()
    await connection.send(*frames)


def script(*frames):
    async def does(connection):
        await answering(connection, *frames)

    return does


OK = (fr.header_frames(hpack.RESPONSE, 1, end_stream=False, max_frame=16384),)


async def unary(channel, **kwargs):
    async with channel.request("/t.S/M", UNARY, bytes, bytes, **kwargs) as stream:
        await stream.send_message(b"request", end=True)
        return await stream.recv_message()


async def failure(nursery, *frames, **kwargs):
    """The error that such an answer becomes."""
    async with Channel(Script(nursery, script(*frames))) as channel:
        with pytest.raises(GRPCError) as caught:
            await unary(channel, **kwargs)
    return caught.value.status, caught.value.message


# -- what a server may answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected", "shown"),
    [
        (b"404", Status.UNIMPLEMENTED, "404"), (b"503", Status.UNAVAILABLE, "503"), (b"418", Status.UNKNOWN, "418"),
        (b"2000", Status.UNKNOWN, "2000"), (b"abc", Status.UNKNOWN, "abc"), (b"", Status.UNKNOWN, ""),
    ],
)  # fmt: skip
async def test_an_http_status_means_what_grpc_says(autojump_clock, nursery, status, expected, shown):
    found = await failure(nursery, block((b":status", status), (b"content-type", b"text/html"), end=True))
    assert found == (expected, f"HTTP status {shown}")


async def test_a_status_that_means_to_go_on_is_passed_over_unless_it_is_the_end(autojump_clock, nursery):
    answer = (block((b":status", b"100")), *OK, message(b"reply"), trailers(1, 0))
    async with Channel(Script(nursery, script(*answer))) as channel:
        assert await unary(channel) == b"reply"
    found = await failure(nursery, block((b":status", b"100"), end=True))
    assert found == (Status.UNKNOWN, "HTTP status 100")


@pytest.mark.parametrize("length", [100, 101])
async def test_what_a_server_says_is_shown_up_to_a_hundred_characters(autojump_clock, nursery, length):
    found = await failure(nursery, block((b":status", b"200"), (b"content-type", b"x" * length), end=True))
    assert found == (Status.UNKNOWN, "content-type " + "x" * 100 + ("..." if length > 100 else ""))


async def test_the_first_that_is_wrong_is_told(autojump_clock, nursery):
    answer = block((b":status", b"404"), (b"content-type", b"text/html"), (b"grpc-status", b"5"), end=True)
    assert await failure(nursery, answer) == (Status.UNIMPLEMENTED, "HTTP status 404")


@pytest.mark.parametrize(
    ("code", "status", "kind", "text"),
    [
        (ErrorCode.NO_ERROR, Status.INTERNAL, GRPCError, "NO_ERROR"),
        (ErrorCode.REFUSED_STREAM, Status.UNAVAILABLE, NotProcessed, "REFUSED_STREAM"),
        (ErrorCode.CANCEL, Status.CANCELLED, GRPCError, "CANCEL"),
        (ErrorCode.ENHANCE_YOUR_CALM, Status.RESOURCE_EXHAUSTED, GRPCError, "ENHANCE_YOUR_CALM"),
        (ErrorCode.CONNECT_ERROR, Status.UNKNOWN, GRPCError, "CONNECT_ERROR"),
        (99, Status.UNKNOWN, GRPCError, "99"),
    ],
)
async def test_a_reset_is_a_status_that_names_its_code(autojump_clock, nursery, code, status, kind, text):
    async with Channel(Script(nursery, script(fr.rst_stream(1, code)))) as channel:
        with pytest.raises(GRPCError) as caught:
            await unary(channel)
    assert (caught.value.status, caught.value.message) == (status, f"the server reset the stream: {text}")
    assert type(caught.value) is kind


async def test_a_reset_behind_the_status_changes_nothing(autojump_clock, nursery):
    answer = (*OK, message(b"reply"), trailers(1, 0), fr.rst_stream(1, ErrorCode.NO_ERROR))
    async with Channel(Script(nursery, script(*answer))) as channel:
        assert await unary(channel) == b"reply"


async def test_of_an_error_and_the_connections_end_the_first_is_told(autojump_clock, nursery):
    async def does(connection):
        await answering(connection, only_trailers(1, 5, (b"grpc-message", b"not here")))
        await connection.stream.aclose()

    channel = Channel(Script(nursery, does))
    with pytest.raises(GRPCError, match="not here"):
        async with channel, channel.request("/t.S/M", BOTH, bytes, bytes) as stream:
            await stream.send_message(b"x")
            await wait_all_tasks_blocked()
            await trio.sleep(1)
            for _ in range(2):
                with pytest.raises(GRPCError, match="not here"):
                    await stream.recv_message()
                with pytest.raises(GRPCError, match="not here"):
                    await stream.recv_trailing_metadata()


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ((fr.frame(fr.DATA, fr.END_STREAM, 1, b""),), "the server ended the stream without headers"),
        ((*OK, fr.frame(fr.DATA, fr.END_STREAM, 1, b"")), "the server ended the stream without a status"),
        ((*OK, trailers(1, 0)), "the server sent no reply"),
    ],
)
async def test_an_answer_that_lacks_something_says_what(autojump_clock, nursery, frames, text):
    status, said = await failure(nursery, *frames)
    assert said == text
    assert status is (Status.UNKNOWN if "status" in text else Status.INTERNAL)


async def test_a_stream_of_replies_may_be_empty(autojump_clock, nursery):
    for receive in ("recv_message", "receive_body"):
        channel = Channel(Script(nursery, script(*OK, trailers(1, 0))))
        async with channel, channel.request("/t.S/M", DOWN, bytes, bytes) as stream:
            await stream.send_message(b"x", end=True)
            assert await getattr(stream, receive)() is None
            assert stream.trailing_metadata is not None


async def test_a_status_says_more_than_what_is_wrong_with_the_metadata_beside_it(autojump_clock, nursery):
    answer = only_trailers(1, 5, (b"grpc-message", b"not here"), (b"x-bin", b"!"))
    assert await failure(nursery, answer) == (Status.NOT_FOUND, "not here")
    status, text = await failure(nursery, *OK, message(b"x"), trailers(1, 0, (b"x-bin", b"!")))
    assert (status, text) == (Status.INTERNAL, "reply of /t.S/M: binary metadata is not base64")


# -- what a caller may do --------------------------------------------------------------------------------------------


async def test_a_wrong_order_is_the_callers_mistake_and_says_which(autojump_clock, nursery):
    channel = Channel(Script(nursery, script(*OK, message(b"reply"), trailers(1, 0))))
    async with channel, channel.request("/t.S/M", UNARY, bytes, bytes) as stream:
        assert (stream.peer, stream.is_answered) == ("", False)
        for action in (stream.recv_message(), stream.recv_initial_metadata(), stream.end(), stream.cancel()):
            with pytest.raises(ProtocolError, match="the request was not sent"):
                await action
        with pytest.raises(ProtocolError, match="a unary request needs its message"):
            await stream.send_request(end=True)
        await stream.send_request()
        assert stream.peer == "the server"
        with pytest.raises(ProtocolError, match="the request was sent already"):
            await stream.send_request()
        with pytest.raises(ProtocolError, match="a unary request needs its message"):
            await stream.end()
        await stream.send_message(b"x")
        await stream.end()
        with pytest.raises(ProtocolError, match="the request has ended"):
            await stream.send_message(b"y")
        assert await stream.recv_message() == b"reply"
        assert await stream.recv_message() is None
        assert stream.is_answered


async def test_a_stream_of_requests_ends_once(autojump_clock, nursery):
    async def does(connection):
        await connection.request()

    server = Script(nursery, does)
    channel = Channel(server)
    async with channel, channel.request("/t.S/M", BOTH, bytes, bytes) as stream:
        await stream.send_message(b"a")
        await stream.end()
        for action in (stream.end(), stream.send_message(b"b")):
            with pytest.raises(ProtocolError, match="the request has ended"):
                await action
        await wait_all_tasks_blocked()
        assert [(kind, flags) for kind, flags, _, _ in server.seen] == [
            (fr.HEADERS, fr.END_HEADERS), (fr.DATA, 0), (fr.DATA, fr.END_STREAM),
        ]  # fmt: skip
        await stream.cancel()


async def test_after_the_answer_sending_does_nothing_and_is_no_mistake(autojump_clock, nursery):
    server = Script(nursery, script(*OK, trailers(1, 0)))
    async with Channel(server) as channel:
        async with channel.request("/t.S/M", BOTH, bytes, bytes) as stream:
            await stream.send_request()
            await stream.recv_trailing_metadata()
            assert stream.is_answered
            await stream.send_message(b"a")
            assert await stream.wait_send_credit() == 0
            await stream.end()
            await stream.end()
        await wait_all_tasks_blocked()
        assert server.kinds() == [fr.HEADERS, fr.RST_STREAM]


@pytest.mark.parametrize(
    ("cardinality", "frames", "reset"),
    [
        (UNARY, (*OK, message(b"r"), trailers(1, 0)), False),
        (UNARY, (only_trailers(1, 5),), False),
        (UNARY, (fr.rst_stream(1, ErrorCode.CANCEL),), False),
        (BOTH, (only_trailers(1, 5),), True),
        (DOWN, (*OK, message(b"r")), True),
    ],
)
async def test_a_call_that_is_left_is_reset_unless_both_sides_have_ended_it(
    autojump_clock, nursery, cardinality, frames, reset
):
    server = Script(nursery, script(*frames))
    async with Channel(server) as channel:
        try:
            async with channel.request("/t.S/M", cardinality, bytes, bytes) as stream:
                await stream.send_message(b"x", end=cardinality is not BOTH)
                await stream.recv_message()
        except GRPCError:
            pass
        await trio.sleep(3)  # for the channel to look after what a reader that came late has left
        assert server.resets() == ([(1, ErrorCode.CANCEL)] if reset else [])
        [connection] = channel._pool.connections
        window = connection.h2.recv_window
        assert (connection.h2.streams, connection.taken, window.left + window.owed) == ({}, 0, window.size)
        assert connection.inbox.kept_bytes() == 0


async def test_what_is_left_unread_gives_its_credit_back(autojump_clock, nursery):
    async with Channel(Script(nursery, script(*OK, message(bytes(9000)), message(bytes(9000))))) as channel:
        async with channel.request("/t.S/M", DOWN, bytes, bytes) as stream:
            await stream.send_message(b"x", end=True)
            body = await stream.receive_body()
            await body.receive_parts(10)
        await trio.sleep(3)
        [connection] = channel._pool.connections
        window = connection.h2.recv_window
        assert window.left + window.owed == window.size
        assert connection.inbox.kept_bytes() == 0


@pytest.mark.parametrize("before", ["nothing", "a reset", "the end"])
async def test_a_cancelled_call_is_reset_once_and_not_where_it_is_over(autojump_clock, nursery, before):
    async def does(connection):
        await connection.request()
        if before == "a reset":
            await connection.send(fr.rst_stream(1, ErrorCode.NO_ERROR))
        elif before == "the end":
            await connection.stream.aclose()

    server = Script(nursery, does)
    async with Channel(server) as channel:
        async with channel.request("/t.S/M", BOTH, bytes, bytes) as stream:
            await stream.send_message(b"x")
            await wait_all_tasks_blocked()
            await trio.sleep(1)
            await stream.cancel()
            await stream.cancel()
            with pytest.raises(GRPCError) as caught:
                await stream.recv_message()
            expected = {"nothing": Status.CANCELLED, "a reset": Status.INTERNAL, "the end": Status.UNAVAILABLE}
            assert caught.value.status is expected[before]
        await wait_all_tasks_blocked()
    assert server.resets() == ([(1, ErrorCode.CANCEL)] if before == "nothing" else [])


@pytest.mark.parametrize("what", ["connection", "headers", "message", "status", "credit", "body"])
async def test_a_deadline_ends_every_wait(autojump_clock, nursery, what):
    async def does(connection):
        await connection.request()
        if what == "message":
            await connection.send(*OK)
        elif what == "status":
            await connection.send(*OK, message(b"r"))
        elif what == "body":
            await connection.send(*OK, message(b"r" * 100)[:50])

    async def never(connection):
        await trio.sleep_forever()

    class Silent(Script):
        async def __call__(self):
            await trio.sleep_forever()

    server = (Silent if what == "connection" else Script)(nursery, does)
    async with Channel(server) as channel:
        began = trio.current_time()
        with pytest.raises(GRPCError, match="the deadline has passed") as caught:
            async with channel.request("/t.S/M", BOTH, bytes, bytes, timeout=5) as stream:
                await stream.send_message(b"x")
                if what == "credit":
                    stream._call.h2.send_window = 0
                    await stream.wait_send_credit()
                elif what == "body":
                    body = await stream.receive_body()
                    while await body.receive_parts():
                        pass
                else:
                    await stream.recv_message()
                    await stream.recv_message()
        assert caught.value.status is Status.DEADLINE_EXCEEDED
        assert trio.current_time() - began == pytest.approx(5)


# -- sent again ------------------------------------------------------------------------------------------------------


POLICY = RetryPolicy(max_retries=2, delay=1, jitter=0, codes=frozenset({Status.UNAVAILABLE}),
                     methods=frozenset({"/t.S/M"}))  # fmt: skip


async def test_a_call_that_is_sent_again_says_so_and_is_counted(autojump_clock, nursery):
    tried = []

    async def does(connection):
        for status in (14, 14, 0):
            sid = await connection.request()
            tried.append(trio.current_time())
            if status:
                await connection.send(only_trailers(sid, status))
            else:
                await connection.reply(sid, b"at last")

    server = Script(nursery, does)
    async with Channel(server, options=ChannelOptions(retry=POLICY)) as channel:
        assert await unary(channel) == b"at last"
        assert channel.statistics().retries == 2
        channel.count_retry()
        assert channel.statistics().retries == 3
        [counts] = channel.statistics().addresses.values()
        assert (counts.attempts, counts.failures, counts.connections, counts.calls) == (1, 0, 1, 3)
    channel.count_retry()
    assert channel.statistics().retries == 0
    assert [flags for kind, flags, _, _ in server.seen if kind == fr.DATA] == [fr.END_STREAM] * 3
    decoder = hpack.HeaderDecoder()
    said = []
    for kind, _, _, payload in server.seen:
        if kind == fr.HEADERS:
            found = {name: value for name, value, _, _ in decoder.decode(payload)}
            said.append(found.get(b"grpc-previous-rpc-attempts"))
    assert said == [None, b"1", b"2"]
    assert [later - earlier for earlier, later in zip(tried, tried[1:], strict=False)] == [1, 2]


async def test_a_call_is_not_sent_again_where_its_deadline_would_have_passed(autojump_clock, nursery):
    for timeout, tries in ((3.5, 3), (3.0, 2), (1.0, 1)):
        count = 0

        async def does(connection):
            nonlocal count
            while (sid := await connection.request()) is not None:
                count += 1
                await connection.send(only_trailers(sid, 14))

        async with Channel(Script(nursery, does), options=ChannelOptions(retry=POLICY)) as channel:
            with pytest.raises(GRPCError) as caught:
                await unary(channel, timeout=timeout)
            assert caught.value.status is Status.UNAVAILABLE
        assert count == tries


async def test_a_call_that_is_cancelled_between_two_attempts_is_not_sent_again(autojump_clock, nursery):
    async def does(connection):
        await connection.send(only_trailers(await connection.request(), 14))

    server = Script(nursery, does)
    channel = Channel(server, options=ChannelOptions(retry=POLICY))
    async with channel, channel.request("/t.S/M", UNARY, bytes, bytes) as stream:

        async def cancel():
            await trio.sleep(0.5)
            await stream.cancel()

        nursery.start_soon(cancel)
        await stream.send_message(b"x")
        with pytest.raises(GRPCError) as caught:
            await stream.recv_message()
        assert caught.value.status is Status.CANCELLED
    assert server.kinds(3) == []


async def test_what_the_caller_may_have_seen_of_an_answer_ends_the_attempts(autojump_clock, nursery):
    async def does(connection):
        await answering(connection, *OK, trailers(1, 14))

    async with Channel(Script(nursery, does), options=ChannelOptions(retry=POLICY)) as channel:
        with pytest.raises(GRPCError):
            await unary(channel)
        assert channel.statistics().retries == 0


# -- the channel -----------------------------------------------------------------------------------------------------


async def test_an_error_in_the_block_comes_out_as_it_is(autojump_clock, nursery):
    with pytest.raises(KeyError, match="mine"):
        async with Channel(Script(nursery)):
            raise KeyError("mine")


async def test_a_channel_that_is_not_open_says_so_and_is_opened_once(autojump_clock, nursery):
    channel = Channel(Script(nursery))
    with pytest.raises(NotProcessed, match="the channel is not open"):
        await unary(channel)
    async with channel:
        with pytest.raises(RuntimeError, match="opened once"):
            await channel.__aenter__()
    assert channel.statistics().connections == 0
    with pytest.raises(ValueError, match="at least one endpoint"):
        Channel([])


async def test_a_server_that_breaks_the_protocol_is_told_so_and_the_log_too(autojump_clock, nursery, caplog):
    caplog.set_level(logging.WARNING)
    server = Script(nursery, script(fr.frame(fr.PING, 0, 0, b"short")))
    async with Channel(server) as channel:
        with pytest.raises(GRPCError, match="the server: FRAME_SIZE_ERROR: PING length") as caught:
            await unary(channel)
        assert caught.value.status is Status.UNAVAILABLE
        await wait_all_tasks_blocked()
    goaways = [payload for kind, _, _, payload in server.seen if kind == fr.GOAWAY]
    assert goaways == [fr.goaway(0, ErrorCode.FRAME_SIZE_ERROR, "PING length")[9:]]
    assert [record.getMessage() for record in caplog.records] == ["the server: FRAME_SIZE_ERROR: PING length"]


async def test_silent_servers_are_asked_and_let_go_by_the_channels_own_clock(autojump_clock, nursery):
    asked = []

    async def does(connection):
        await connection.request()
        while (frame := await connection.frame()) is not None:
            if frame[0] == fr.PING:
                asked.append(trio.current_time())

    options = ChannelOptions(keepalive_interval=30, keepalive_timeout=10)
    async with Channel(Script(nursery, does), options=options) as channel:
        began = trio.current_time()
        with pytest.raises(GRPCError, match="no answer to a keepalive PING within 10 s"):
            await unary(channel)
    assert [29.9 < each - began <= 31.1 for each in asked] == [True]


@pytest.mark.parametrize(("code", "said"), [(0, "the server is going away"),
                                            (11, "the server is going away: ENHANCE_YOUR_CALM")])  # fmt: skip
async def test_a_call_that_the_server_will_not_look_at_was_not_processed(autojump_clock, nursery, code, said):
    async with Channel(Script(nursery, script(fr.goaway(0, code)))) as channel:
        with pytest.raises(NotProcessed) as caught:
            await unary(channel)
        assert (caught.value.status, caught.value.message) == (Status.UNAVAILABLE, said)


@pytest.mark.parametrize(("cardinality", "leaves"), [(BOTH, True), (UP, True), (UNARY, False), (DOWN, False)])
async def test_a_streams_headers_leave_at_once_and_a_single_requests_with_it(
    autojump_clock, nursery, cardinality, leaves
):
    async def does(connection):
        await connection.request()

    server = Script(nursery, does)
    channel = Channel(server)
    async with channel, channel.request("/t.S/M", cardinality, bytes, bytes) as stream:
        await stream.send_request()
        await wait_all_tasks_blocked()
        assert server.kinds() == ([fr.HEADERS] if leaves else [])
        await stream.send_message(b"x", end=True)
        await wait_all_tasks_blocked()
        assert server.kinds() == [fr.HEADERS, fr.DATA]
        await stream.cancel()


async def test_an_answer_that_is_here_is_read_also_when_the_connection_is_gone(autojump_clock, nursery):
    async def does(connection):
        await answering(connection, *OK, message(b"a"), message(b"b"), trailers(1, 0))
        await connection.stream.aclose()

    channel = Channel(Script(nursery, does))
    async with channel, channel.request("/t.S/M", DOWN, bytes, bytes) as stream:
        await stream.send_message(b"x", end=True)
        await trio.sleep(5)
        assert stream._call.connection.lost
        assert [text async for text in stream] == [b"a", b"b"]


async def test_who_waits_for_a_reply_finds_out_that_another_task_has_cancelled_the_call(autojump_clock, nursery):
    async def does(connection):
        await connection.request()

    ended = []

    async def receive(stream):
        with pytest.raises(GRPCError) as caught:
            await stream.recv_message()
        ended.append(caught.value.status)

    channel = Channel(Script(nursery, does))
    async with channel, channel.request("/t.S/M", BOTH, bytes, bytes) as stream:
        await stream.send_message(b"x")
        nursery.start_soon(receive, stream)
        await wait_all_tasks_blocked()
        await stream.cancel()
        await wait_all_tasks_blocked()
        assert ended == [Status.CANCELLED]
