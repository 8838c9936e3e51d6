"""What a handler holds: what it may read and send in which order, and how a reply shares windows with others."""

from contextlib import AsyncExitStack

import pytest
import trio
from grpclib.const import Cardinality, Handler, Status
from trio.testing import wait_all_tasks_blocked

from nl.blob.off_loop import THREADS, threads
from nl.errors import InternalError, InvalidRequestError, NotFoundError
from nl.pb import health
from nl.pb.codec import varint
from nl.rpc import frames as fr
from nl.rpc.contract import TransportLost
from nl.rpc.frames import ErrorCode, Setting
from nl.rpc.options import ServerOptions
from nl.rpc.server_call import DECODED_IN_PLACE
from tests.unit.rpc.served import Handlers, nothing_is_left_of, served
from tests.wire.raw_h2 import headers, message

WINDOW = Setting.INITIAL_WINDOW_SIZE
KINDS = {"unary": Cardinality.UNARY_UNARY, "streaming": Cardinality.STREAM_STREAM, "replies": Cardinality.UNARY_STREAM}


async def answer(func, *sent, kind="unary", options=None, settings=None, extra=()):
    """(fields, DATA, reset) of a call whose handler is `func`."""
    async with served(Handlers(M=(func, KINDS[kind])), options=options, settings=settings) as (connection, client):
        await client.send(headers(1, "M", extra=extra), *(sent or (message(1, b"hello"),)))
        found = await client.ending(1)
        await client.settled()
        connection.rest()
        nothing_is_left_of(connection)
        return found


def status(found):
    return int(found[0]["grpc-status"]), found[0].get("grpc-message", b"").decode()


def framed(*texts):
    return b"".join(fr.PREFIX.pack(0, len(text)) + text for text in texts)


# -- what is read ----------------------------------------------------------------------------------------------------


async def test_a_handler_sees_its_own_headers_and_nothing_else():
    seen = {}

    async def handler(call):
        await call.recv_message()
        for name in ("x-own", "x-own-bin", "x-missing", "te", "authorization", ":path", "x-twice"):
            seen[name] = call.header(name)
        with pytest.raises(InvalidRequestError, match="base64"):
            call.header("x-bad-bin")
        seen["method"], seen["deadline"], seen["peer"] = call.method, call.deadline, call.peer
        await call.send_message(b"")

    extra = [(b"x-own", b"1"), (b"x-own-bin", b"AP8"), (b"x-bad-bin", b"!"), (b"authorization", b"secret"),
             (b"x-twice", b"1"), (b"x-twice", b"2")]  # fmt: skip
    await answer(handler, extra=extra)
    peer = seen.pop("peer")
    assert peer.startswith("unix:uid=")
    assert seen == {
        "x-own": "1", "x-own-bin": b"\x00\xff", "x-missing": None, "te": None, "authorization": None, ":path": None,
        "x-twice": "1", "method": "/t.S/M", "deadline": None,
    }  # fmt: skip


async def test_headers_that_may_be_shown_are_those_that_could_be_sent_again():
    seen = []

    async def handler(call):
        await call.recv_message()
        seen.extend(call.shown_headers(frozenset({"x-a", "x-b-bin", "authorization", "x-odd", "x-bad-bin", "te"})))
        await call.send_message(b"")

    extra = [(b"x-a", b"1"), (b"x-b-bin", b"AP8"), (b"x-c", b"2"), (b"authorization", b"secret"),
             (b"x-odd", b"\xff"), (b"x-bad-bin", b"!"), (b"x-a", b"3")]  # fmt: skip
    await answer(handler, extra=extra)
    assert seen == [("x-a", "1"), ("x-b-bin", b"\x00\xff"), ("authorization", "secret"), ("x-a", "3")]


async def test_a_deadline_is_what_is_left_of_the_clients(mock_clock):
    left = []

    async def handler(call):
        await call.recv_message()
        mock_clock.jump(3)
        left.append(call.expires - trio.current_time())
        assert call.deadline is not None
        await call.send_message(b"")

    await answer(handler, extra=[(b"grpc-timeout", b"10S")])
    assert left == [7]


@pytest.mark.parametrize("how", ["message", "body"])
@pytest.mark.parametrize("kind", ["unary", "replies", "streaming"])
@pytest.mark.parametrize("count", [0, 1, 2])
async def test_a_unary_request_is_one_message_and_a_stream_any_number(how, kind, count):
    async def handler(call):
        got = 0
        while True:
            if how == "message":
                one = await call.recv_message()
            elif (one := await call.receive_body()) is not None:
                while await one.receive_parts():
                    pass
            if one is None:
                break
            got += 1
        await call.send_message(b"%d" % got)

    sent = [message(1, b"m", end=False)] * count + [fr.frame(fr.DATA, fr.END_STREAM, 1)]
    found = await answer(handler, *sent, kind=kind)
    if kind == "streaming" or count == 1:
        assert status(found) == (0, "")
        assert found[1] == framed(b"%d" % count)
    else:
        text = "no request message" if not count else "more than one request message"
        assert status(found) == (3, f"/t.S/M: the call has {text}")


async def test_requests_can_be_looped_over_to_the_end():
    async def handler(call):
        await call.send_message(b"".join([text async for text in call]))

    sent = [message(1, b"a", end=False), message(1, b"b", end=False), message(1, b"c")]
    assert (await answer(handler, *sent, kind="streaming"))[1] == framed(b"abc")


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize(("own", "of_method"), [(100, 0), (100, 90), (50, 100)])
async def test_a_message_may_be_as_large_as_the_server_or_its_method_allows(own, of_method, over):
    async def handler(call):
        await call.send_message(b"%d" % len(await call.recv_message()))

    service = Handlers(M=handler)
    options = ServerOptions(max_message_size=own)
    async with served(service, options=options) as (connection, client):
        connection.methods[b"/t.S/M"].max_message_size = of_method
        await client.send(headers(1, "M"), message(1, bytes(100 + over)))
        found = await client.ending(1)
    if over:
        text = "message of 101 bytes; the limit is 100, the option max_decoding_message_size of the listener"
        assert status(found) == (8, text)
    else:
        assert found[1] == framed(b"100")


# -- in which order --------------------------------------------------------------------------------------------------


async def refused(call, action, *args, **kwargs):
    with pytest.raises(InternalError) as caught:
        await action(*args, **kwargs)
    return str(caught.value.message)


async def test_headers_go_once_and_before_the_first_message():
    texts = []

    async def handler(call):
        await call.send_initial_metadata(metadata={"x-first": "1"})
        texts.append(await refused(call, call.send_initial_metadata))
        await call.send_message(b"one")
        texts.append(await refused(call, call.send_initial_metadata))

    fields, data, _ = await answer(handler, kind="streaming")
    assert (fields[":status"], fields["x-first"], fields["grpc-status"], data) == (b"200", b"1", b"0", framed(b"one"))
    assert texts == ["response headers were sent already"] * 2


@pytest.mark.parametrize("size", [1, 30_000])
async def test_a_unary_call_has_one_reply_and_no_second_one(size):
    texts = []

    async def handler(call):
        await call.send_message(bytes(size))
        texts.append(await refused(call, call.send_message, b"again"))

    found = await answer(handler)
    assert (status(found), len(found[1])) == ((0, ""), size + 5)
    assert texts == ["a unary call has one reply"]


@pytest.mark.parametrize("size", [None, 1, 30_000])
async def test_a_handler_without_a_reply_is_wrong_for_a_unary_call_only(size):
    async def handler(call):
        if size is not None:
            await call.send_message(bytes(size))

    assert status(await answer(handler)) == ((0, "") if size else (13, "/t.S/M: the handler returned without a reply"))
    assert status(await answer(handler, kind="replies")) == (0, "")


async def test_a_call_is_answered_once():
    texts = []

    async def handler(call):
        await call.send_message(b"one")
        await call.send_trailing_metadata(status=Status.ABORTED, status_message="so be it", metadata={"x-last": "1"})
        texts.append(await refused(call, call.send_message, b"again"))
        texts.append(await refused(call, call.send_trailing_metadata))
        raise NotFoundError("nobody hears this")

    fields, data, _ = await answer(handler, kind="streaming")
    assert (fields["grpc-status"], fields["grpc-message"], fields["x-last"]) == (b"10", b"so be it", b"1")
    assert data == framed(b"one")
    assert texts == ["the call has been answered already", "trailers were sent already"]


@pytest.mark.parametrize("kind", ["unary", "streaming"])
async def test_an_error_says_nothing_of_a_reply_that_was_not_sent_yet(kind):
    async def handler(call):
        await call.send_message(b"early")
        raise NotFoundError("after all")

    found = await answer(handler, kind=kind)
    assert status(found) == (5, "after all")
    assert found[1] == (b"" if kind == "unary" else framed(b"early"))


async def test_metadata_that_cannot_be_sent_does_not_hide_the_status(caplog):
    async def handler(call):
        await call.send_message(b"one")
        how = await call.recv_message()
        code, text = (Status.ABORTED, "so be it") if how == b"fails" else (Status.OK, None)
        await call.send_trailing_metadata(status=code, status_message=text, metadata={"x-bad": "\n"})

    assert status(await answer(handler, message(1, b"fails"))) == (10, "so be it")
    assert "the status of /t.S/M cannot be sent" in caplog.text
    assert status(await answer(handler, message(1, b"works"))) == (13, "the trailing metadata cannot be sent")


async def test_a_handler_that_goes_on_after_a_reset_can_neither_receive_nor_send():
    ends = []

    async def handler(call):
        await call.recv_message()
        with trio.CancelScope(shield=True):
            try:
                await call.recv_message()
            except TransportLost as exc:
                ends.append(str(exc))
            for action in (call.send_message(b"x"), call.send_initial_metadata(), call.send_trailing_metadata(),
                           call.wait_send_credit()):  # fmt: skip
                try:
                    await action
                except TransportLost as exc:
                    ends.append(str(exc))

    async with served(Handlers(M=(handler, Cardinality.STREAM_STREAM))) as (connection, client):
        await client.send(headers(1, "M"), message(1, b"a", end=False))
        await client.settled()
        await wait_all_tasks_blocked()
        await client.send(fr.rst_stream(1, ErrorCode.CANCEL))
        await client.settled()
        await wait_all_tasks_blocked()
        assert ends == ["the call is over"] * 5
        assert connection.outcomes == {1: 1}
        nothing_is_left_of(connection)


# -- replies and windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("whose", ["stream", "connection"])
@pytest.mark.parametrize("plain", [True, False])
async def test_a_reply_leaves_at_once_if_its_windows_have_room_for_the_last_byte(whose, over, plain):
    async def handler(call):
        if not plain:
            await call.send_initial_metadata(metadata={"x-first": "1"})
        await call.send_message(bytes(95))

    room = 100 - over
    settings = {WINDOW: room if whose == "stream" else 1000}
    async with served(Handlers(M=handler), settings=settings) as (connection, client):
        if whose == "connection":
            connection.h2.send_window = room
        await client.send(headers(1, "M"), message(1, b""))
        await client.settled()
        sent = [(kind, len(payload)) for kind, _, sid, payload in client.seen if sid == 1 and kind == fr.DATA]
        if over <= 0:
            assert sent == [(fr.DATA, 100)]
            assert not connection.held_back
            assert connection.h2.send_window == (room - 100 if whose == "connection" else fr.DEFAULT_WINDOW - 100)
        else:
            assert sent == [(fr.DATA, 99)], "its beginning, so that the client opens its window"
            assert connection.pinned == 1
            await client.send(fr.window_update(1 if whose == "stream" else 0, 1))
            fields, data, _ = await client.ending(1)
            assert (fields["grpc-status"], data) == (b"0", b"\0")
        await client.settled()
        nothing_is_left_of(connection)
        assert connection.outcomes == {0: 1}


@pytest.mark.parametrize("window", [0, -10])
async def test_a_reply_without_any_window_leaves_as_it_opens_and_its_headers_with_it(window):
    async def handler(call):
        await call.recv_message()
        await call.send_message(bytes(95))

    async with served(Handlers(M=handler), settings={WINDOW: 1000}) as (connection, client):
        await client.send(headers(1, "M"))
        await client.settled()
        connection.h2.streams[1].window_delta = window - 1000
        await client.send(message(1, b""))
        await client.settled()
        assert not [frame for frame in client.seen if frame[2] == 1]
        await client.send(fr.window_update(1, 50 - window))
        await client.settled()
        assert [(kind, len(payload)) for kind, _, sid, payload in client.seen if sid == 1][1:] == [(fr.DATA, 50)]
        await client.send(fr.window_update(1, 50))
        assert (await client.ending(1))[0]["grpc-status"] == b"0"


async def test_what_the_first_of_two_waiting_replies_leaves_of_the_window_goes_to_the_second():
    async def handler(call):
        await call.send_message(bytes(95))

    async with served(Handlers(M=handler), settings={WINDOW: 1000}) as (connection, client):
        connection.h2.send_window = 0
        for sid in (1, 3, 5):
            await client.send(headers(sid, "M"), message(sid, b""))
        await client.settled()
        assert len(connection.held_back) == 3
        await client.send(fr.window_update(0, 250))
        await client.settled()
        sent = [(sid, len(payload)) for kind, _, sid, payload in client.seen if kind == fr.DATA]
        assert sent == [(1, 100), (3, 100), (5, 50)]
        await client.send(fr.rst_stream(5, ErrorCode.CANCEL), fr.window_update(0, 50))
        await client.settled()
        assert connection.h2.send_window == 50
        nothing_is_left_of(connection)


async def test_a_reset_of_the_first_that_waits_lets_the_second_have_the_window():
    async def handler(call):
        await call.send_message(bytes(95))

    async with served(Handlers(M=handler), settings={WINDOW: 1000}) as (connection, client):
        connection.h2.send_window = 0
        for sid in (1, 3):
            await client.send(headers(sid, "M"), message(sid, b""))
        await client.settled()
        await client.send(fr.rst_stream(1, ErrorCode.CANCEL), fr.window_update(0, 100))
        assert (await client.status(3))[0] == 0
        assert connection.outcomes == {1: 1, 0: 1}


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("accepts", [b"gzip", b"identity, gzip", b"gzip,br", b"identity", None])
async def test_replies_are_packed_from_a_size_on_for_who_takes_that(accepts, over):
    async def handler(call):
        await call.send_message(bytes(100 - over))

    extra = [] if accepts is None else [(b"grpc-accept-encoding", accepts)]
    options = ServerOptions(send_compression="gzip", compress_from=100)
    fields, data, _ = await answer(handler, options=options, extra=extra)
    takes = accepts is not None and b"gzip" in accepts
    assert (data[0], fields.get("grpc-encoding")) == (int(takes and not over), b"gzip" if takes else None)
    assert fields["grpc-status"] == b"0"


@pytest.mark.parametrize("size", [16 * 1024 - 6, 16 * 1024 - 5, 16 * 1024 - 4])
async def test_a_reply_arrives_whole_whether_it_leaves_with_its_trailers_or_before_them(size):
    async def handler(call):
        await call.recv_message()
        await call.send_message(b"r" * size)
        joined.append(call.headers_sent)

    joined = []
    fields, data, _ = await answer(handler)
    assert (fields["grpc-status"], data) == (b"0", framed(b"r" * size))
    assert joined == [size + 5 > 16 * 1024]


async def test_a_handler_that_works_on_after_its_answer_counts_as_concurrent_until_it_is_done():
    release = trio.Event()

    async def handler(call):
        await call.recv_message()
        await trio.lowlevel.checkpoint()
        await call.send_message(b"x")
        await call.send_trailing_metadata()
        await release.wait()

    async with served(Handlers(M=handler)) as (connection, client):
        await client.send(headers(1, "M"), message(1, b""))
        assert (await client.status(1))[0] == 0
        await client.settled()
        assert (connection.h2.winding_down, len(connection.h2.streams)) == (1, 0)
        release.set()
        await wait_all_tasks_blocked()
        nothing_is_left_of(connection)
        assert connection.outcomes == {0: 1}


@pytest.mark.parametrize("kind", ["unary", "streaming"])
async def test_a_reply_may_encode_itself(kind):
    class Own:
        def encode_parts(self):
            return [b"own ", memoryview(b"parts")]

    async def handler(call):
        await call.send_message(Own())

    assert (await answer(handler, kind=kind))[1] == framed(b"own parts")


@pytest.mark.parametrize("ends", ["well", "badly", "with trailers"])
async def test_trailers_behind_messages_are_no_second_response(ends):
    """`Client.ending` looks for `:status` in them."""

    async def handler(call):
        await call.send_message(b"one")
        if ends == "badly":
            raise NotFoundError("no more")
        if ends == "with trailers":
            await call.send_trailing_metadata(metadata={"x-last": "1"})

    fields, data, _ = await answer(handler, kind="streaming")
    assert (fields["grpc-status"], data) == (b"5" if ends == "badly" else b"0", framed(b"one"))


@pytest.mark.parametrize(("at_hand", "most", "taken"), [(100, 100, True), (100, 99, False), (99, 100, False)])
async def test_a_message_is_taken_if_it_is_here_and_small_enough(at_hand, most, taken):
    """100 bytes, of which so many are here when the handler asks; what is not taken can be received."""
    found = []

    async def handler(call):
        found.append(call.take_body(most))
        if found[0] is None:
            found.append(await call.recv_message())
        found.append(call.received)
        await call.send_message(b"")

    whole = fr.PREFIX.pack(0, 100) + bytes(range(100))
    async with served(Handlers(M=(handler, Cardinality.STREAM_STREAM))) as (connection, client):
        await client.send(headers(1, "M"), fr.frame(fr.DATA, 0, 1, whole[: at_hand + 5]))
        if at_hand < 100:
            await client.settled()
            await client.send(fr.frame(fr.DATA, 0, 1, whole[at_hand + 5 :]))
        assert (await client.status(1))[0] == 0
    assert found == ([bytes(range(100)), 1] if taken else [None, bytes(range(100)), 1])


async def test_taking_counts_as_receiving():
    texts = []

    async def handler(call):
        for _ in range(2):
            try:
                call.take_body(100)
            except InvalidRequestError as exc:
                texts.append(exc.message)
        await call.send_message(b"")

    sent = [message(1, b"a", end=False) + message(1, b"b")]
    async with served(Handlers(M=handler)) as (_, client):
        await client.send(headers(1, "M") + sent[0])
        assert (await client.status(1))[0] == 0
    assert texts == ["/t.S/M: the call has more than one request message"]


async def test_headers_that_a_handler_sends_itself_leave_at_once():
    release = trio.Event()

    async def handler(call):
        await call.recv_message()
        await trio.lowlevel.checkpoint()
        await call.send_initial_metadata(metadata={"x-first": "1"})
        await release.wait()
        await call.send_message(b"x")

    async with served(Handlers(M=handler)) as (_, client):
        await client.send(headers(1, "M"), message(1, b""))
        with trio.fail_after(60):
            while (frame := await client.frame())[2] != 1:
                pass
        assert frame[0] == fr.HEADERS
        release.set()
        _, data, _ = await client.ending(1)
        assert data == framed(b"x")


class Generated:
    """A service whose requests are messages of generated code."""

    def __init__(self, handler, request_type):
        self.handler = Handler(handler, Cardinality.UNARY_UNARY, request_type, bytes)

    def __mapping__(self):
        return {"/t.S/M": self.handler}


class Own:
    """A request that decodes itself."""

    @classmethod
    def decode(cls, data):
        return data


@pytest.mark.parametrize(("kind", "beyond", "waits"), [
    (health.HealthCheckRequest, 0, False), (health.HealthCheckRequest, 1, True), (Own, 1, False), (bytes, 1, False),
])  # fmt: skip
async def test_a_large_request_is_decoded_beside_the_loop_and_held_meanwhile(kind, beyond, waits):
    """Three bytes can be a field: a megabyte of them would stop the loop for a quarter of a second."""
    calls = []

    async def handler(call):
        calls.append(call)
        await call.recv_message()
        await call.send_message(b"")

    size = DECODED_IN_PLACE + beyond
    encoded = b"\x0a" + varint(size - 3) + bytes(size - 3)
    async with served(Generated(handler, kind)) as (connection, client):
        async with AsyncExitStack() as others:
            for number in range(THREADS):
                await threads().acquire_on_behalf_of(number)
                others.callback(threads().release_on_behalf_of, number)
            whole = fr.PREFIX.pack(0, size) + encoded
            await client.send(headers(1, "M"), fr.frame(fr.DATA, 0, 1, whole[:9000]))
            await client.send(fr.frame(fr.DATA, fr.END_STREAM, 1, whole[9000:]))
            await client.settled()
            await wait_all_tasks_blocked()
            assert (calls[0].outcome is None, connection.pinned) == ((True, size) if waits else (False, 0))
        if waits:
            await client.ending(1)
        assert calls[0].outcome.code == 0
        await client.settled()
        nothing_is_left_of(connection)


@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_request_that_is_larger_than_it_need_be_is_held_until_its_handler_is_done(beyond):
    """A name of megabytes, and a call that goes on for hours."""
    done = trio.Event()

    async def handler(call):
        request = await call.recv_message()
        await done.wait()
        await call.send_message(request.service.encode()[:1])

    size = DECODED_IN_PLACE + beyond
    whole = fr.PREFIX.pack(0, size) + b"\x0a" + varint(size - 3) + b"x" * (size - 3)
    async with served(Generated(handler, health.HealthCheckRequest)) as (connection, client):
        await client.send(headers(1, "M"), fr.frame(fr.DATA, 0, 1, whole[:9000]))
        await client.send(fr.frame(fr.DATA, fr.END_STREAM, 1, whole[9000:]))
        await client.settled()
        await wait_all_tasks_blocked()
        assert connection.pinned == beyond * size
        done.set()
        assert (await client.ending(1))[1] == framed(b"x")
        await client.settled()
        nothing_is_left_of(connection)
