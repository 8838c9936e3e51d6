"""Framing: padding, payloads in pieces, runs of equal frames, header blocks in parts, pauses."""

import pytest

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ConnectionFault, ErrorCode
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.stream import Owner
from tests.unit.rpc.h2.side import BLOCK, Side


def content(stream):
    return b"".join(bytes(view) for view, _ in stream.chunks)


def padded(sid, data, padding, *, end=False):
    flags = fr.PADDED | (fr.END_STREAM if end else 0)
    return fr.frame(fr.DATA, flags, sid, bytes([padding]) + data + bytes(padding))


@pytest.mark.parametrize("cut", [1, 2, 5, 100])
def test_padding_is_no_payload_and_its_credit_comes_back(cut):
    side = Side()
    [stream] = side.open(1)
    data = padded(1, b"abc", 7) + padded(1, b"", 3) + padded(1, b"de", 0, end=True)
    buffer, done = b"", 0
    for start in range(0, len(data), cut):
        buffer += data[start : start + cut]
        done = side.reader.receive(memoryview(buffer), start=done, end=len(buffer))
    assert done == len(data)
    assert content(stream) == b"abcde"
    assert stream.recv_closed
    stream.discard()
    window = side.h2.recv_window
    assert window.left + window.owed == window.size


def test_padding_as_long_as_the_frame_is_an_error():
    side = Side()
    side.open(1)
    with pytest.raises(ConnectionFault, match="padding"):
        side.feed(fr.frame(fr.DATA, fr.PADDED, 1, b"\x05abcd"))
    with pytest.raises(ConnectionFault, match="padding"):
        side.feed(fr.frame(fr.DATA, fr.PADDED, 1, b""))


def test_a_run_of_equal_frames_is_taken_as_far_as_credit_goes():
    limits = Limits(stream_window=100_000, connection_window=100_000)
    side = Side(limits=limits)
    [stream] = side.open(1)
    frame = fr.frame(fr.DATA, 0, 1, bytes(16_384))
    owner, data = Owner(), memoryview(frame * 6)
    assert side.reader.receive(data, start=0, end=len(data), owner=owner) == len(data)
    assert stream.held == owner.held == 6 * 16_384
    with pytest.raises(ConnectionFault, match="FLOW_CONTROL"):
        side.feed(frame)


def test_a_run_beyond_its_streams_own_window_costs_the_stream_and_no_credit_of_the_connection():
    side = Side(limits=Limits(stream_window=100_000, connection_window=1_000_000))
    [stream] = side.open(1)
    owner, data = Owner(), memoryview(fr.frame(fr.DATA, 0, 1, bytes(16_384)) * 9)
    assert side.reader.receive(data, start=0, end=len(data), owner=owner) == len(data)
    assert stream.resets == [ErrorCode.FLOW_CONTROL_ERROR]
    assert owner.held == 0
    window = side.h2.recv_window
    assert window.left + window.owed == window.size


def test_the_rest_of_a_payload_is_dropped_when_its_stream_is_reset_and_the_credit_comes_back():
    side = Side()
    side.open(1)
    frame = fr.frame(fr.DATA, 0, 1, bytes(1000))
    done = side.reader.receive(memoryview(frame[:500]), start=0, end=500)
    side.h2.reset_stream(1, fr.ErrorCode.CANCEL)
    rest = frame[done:] + fr.ping(bytes(8))
    side.reader.receive(memoryview(rest), start=0, end=len(rest))
    window = side.h2.recv_window
    assert window.left + window.owed == window.size


def test_parsing_pauses_after_much_work_and_goes_on_where_it_stopped():
    side = Side(limits=Limits(control_burst=10_000))
    data = memoryview(fr.ping(b"12345678") * 3000)
    pos = side.reader.receive(data, start=0, end=len(data))
    assert side.reader.paused
    assert pos < len(data)
    pauses = 0
    while side.reader.paused:
        pos = side.reader.receive(data, start=pos, end=len(data))
        pauses += 1
    assert pos == len(data)
    assert pauses >= 2
    assert len(side.frames()) == 3000


def test_requests_count_for_more_than_other_frames():
    side = Side()
    block = fr.frame(fr.HEADERS, fr.END_HEADERS, 1, BLOCK)
    data = memoryview(b"".join(block[:5] + fr.U32.pack(2 * i + 1) + block[9:] for i in range(500)))
    side.reader.receive(data, start=0, end=len(data))
    assert side.reader.paused
    assert 50 < len(side.streams) < 200


def test_long_settings_and_header_blocks_count_by_their_length():
    """A receive buffer holds sixteen SETTINGS frames of 2,730 entries, each of which takes a millisecond."""
    side = Side(limits=Limits(control_burst=10_000))
    settings = fr.frame(fr.SETTINGS, 0, 0, fr.SETTING.pack(fr.Setting.INITIAL_WINDOW_SIZE, 70_000) * 2730)
    data = memoryview(settings * 16)
    side.reader.receive(data, start=0, end=len(data))
    assert side.reader.paused
    assert len(side.frames()) <= 4
    side = Side()
    large = fr.frame(fr.HEADERS, fr.END_HEADERS, 1, BLOCK + hpack.encode([(b"x", bytes(12_000))]))
    data = memoryview(b"".join(large[:5] + fr.U32.pack(2 * i + 1) + large[9:] for i in range(20)))
    side.reader.receive(data, start=0, end=len(data))
    assert side.reader.paused
    assert len(side.streams) < 8


def test_a_header_block_that_another_frame_interrupts_ends_the_connection():
    side = Side()
    with pytest.raises(ConnectionFault, match="interrupted"):
        side.feed(fr.frame(fr.HEADERS, 0, 1, BLOCK[:3]), fr.ping(bytes(8)))


def test_a_header_block_is_bounded_in_bytes_and_in_parts():
    for piece in (bytes(16_000), b""):
        side = Side()
        with pytest.raises(ConnectionFault, match="header block too large"):
            side.feed(fr.frame(fr.HEADERS, 0, 1, b""), *[fr.frame(fr.CONTINUATION, 0, 1, piece)] * 70)


def test_at_the_end_no_stream_is_referred_to():
    side = Side()
    side.open(1)
    frame = fr.frame(fr.DATA, 0, 1, bytes(100))
    side.reader.receive(memoryview(frame[:50]), start=0, end=50)
    assert side.reader._stream is not None
    side.reader.end()
    assert side.reader._stream is None


PASS = 1024
"""Frames of a pass; a request counts for nine of them, and 64 bytes that are not DATA for one."""


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_pass_takes_so_many_frames_and_only_what_is_left_makes_it_pause(more):
    side = Side(limits=Limits(control_burst=10_000))
    data = memoryview(fr.ping(b"12345678") * (PASS + more))
    assert side.reader.receive(data, start=0, end=len(data)) == min(PASS + more, PASS) * 17
    assert side.reader.paused == (more > 0)


@pytest.mark.parametrize(("value", "cost"), [(10, 1 + 8), (500, 1 + 8 + 8)])
def test_a_request_costs_as_much_of_a_pass_as_eight_frames_and_its_length(value, cost):
    side = Side(limits=Limits(max_concurrent_streams=5000))
    block = BLOCK + hpack.encode([(b"x", bytes(value))])
    assert len(block) >> 6 == cost - 9
    data = memoryview(b"".join(fr.frame(fr.HEADERS, fr.END_HEADERS, sid, block) for sid in range(1, 401, 2)))
    side.reader.receive(data, start=0, end=len(data))
    assert len(side.streams) == -(-PASS // cost)


def conversation():
    """Frames of all kinds."""
    block = BLOCK + hpack.encode([(b"x-a", b"1"), (b"x-b", b"2")])
    return [
        fr.ping(b"12345678"), fr.frame(fr.HEADERS, 0, 1, block[:3]), fr.frame(fr.CONTINUATION, 0, 1, block[3:9]),
        fr.frame(fr.CONTINUATION, fr.END_HEADERS, 1, block[9:]), fr.window_update(1, 1000),
        fr.frame(0x55, 0, 1, b"?" * 30), fr.frame(fr.DATA, 0, 1, b"some"), padded(1, b"data", 20),
        fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 3, block),
        fr.settings({fr.Setting.INITIAL_WINDOW_SIZE: 77}), fr.frame(fr.DATA, fr.END_STREAM, 1, b"."),
        fr.frame(fr.PRIORITY, 0, 1, bytes(5)), fr.rst_stream(3, ErrorCode.CANCEL),
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [1, 3, 10, 1000])
def test_frames_of_all_kinds_mean_the_same_however_they_arrive(cut):
    side, data = Side(), b"".join(conversation())
    buffer, done = b"", 0
    for start in range(0, len(data), cut):
        buffer += data[start : start + cut]
        done = side.reader.receive(memoryview(buffer), start=done, end=len(buffer))
        assert done <= len(buffer)
    assert done == len(data)
    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/t.S/M"), (b"x-a", b"1"), (b"x-b", b"2")]
    assert side.requests == [(1, head, False), (3, head, True)]
    one, three = side.streams[1], side.streams[3]
    assert content(one) == b"somedata."
    assert (one.recv_closed, one.send_window) == (True, 1077)
    assert three.resets == [ErrorCode.CANCEL]
    assert [kind for kind, _, _ in side.frames()] == [fr.PING, fr.SETTINGS]


def test_the_highest_bit_of_a_streams_number_is_ignored():
    side = Side()
    side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS, 1 | 1 << 31, BLOCK), fr.frame(fr.DATA, 0, 1 | 1 << 31, b"x"))
    assert content(side.streams[1]) == b"x"


@pytest.mark.parametrize("kind", [fr.DATA, fr.HEADERS, 0x55, fr.SETTINGS])
@pytest.mark.parametrize("limit", [16_384, 20_000])
def test_a_frame_may_be_as_large_as_we_said_and_no_larger(kind, limit):
    limits = Limits(max_frame_size=limit, max_header_list_size=50_000)
    block = BLOCK + b"\x00\x01x"
    for length in (limit, limit + 1):
        side = Side(limits=limits)
        if kind == fr.DATA:
            side.open(1)
        value = length - len(block) - len(hpack._length(length))
        payload = block + hpack._length(value) + b"v" * value if kind == fr.HEADERS else bytes(length)
        assert len(payload) == length
        frame = fr.frame(kind, fr.END_HEADERS if kind == fr.HEADERS else 0, 0 if kind == fr.SETTINGS else 1, payload)
        if length > limit:
            with pytest.raises(ConnectionFault, match=f"FRAME_SIZE_ERROR: frame of {length} bytes"):
                side.feed(frame)
        elif kind == fr.SETTINGS:
            with pytest.raises(ConnectionFault, match="multiple of 6"):
                side.feed(frame)
        else:
            side.feed(frame)


def test_a_frame_that_could_be_no_header_block_of_ours_ends_the_connection():
    for length in (400, 401):
        side = Side(limits=Limits(max_header_list_size=200, control_burst=1e6))
        if length == 400:
            side.feed(fr.frame(fr.GOAWAY, 0, 0, bytes(length)))
        else:
            with pytest.raises(ConnectionFault, match="FRAME_SIZE_ERROR: frame of type 7 with 401 bytes"):
                side.feed(fr.frame(fr.GOAWAY, 0, 0, bytes(length)))


@pytest.mark.parametrize("between", [fr.ping(bytes(8)), fr.frame(fr.CONTINUATION, fr.END_HEADERS, 3, b""),
                                     fr.frame(0x55, 0, 1, b""), fr.frame(fr.DATA, 0, 1, b"")])  # fmt: skip
def test_between_the_parts_of_a_header_block_nothing_else_may_come(between):
    side = Side()
    with pytest.raises(ConnectionFault, match="PROTOCOL_ERROR: header block interrupted"):
        side.feed(fr.frame(fr.HEADERS, 0, 1, BLOCK[:3]), between)


@pytest.mark.parametrize("first", [fr.ping(bytes(8)), fr.SETTINGS_ACK, fr.window_update(0, 1000)])
def test_settings_come_first(first):
    side = Side()
    side.h2.got_settings = False
    with pytest.raises(ConnectionFault, match="PROTOCOL_ERROR: first frame is not SETTINGS"):
        side.feed(first)
    side.feed(fr.settings({}), first)


def test_a_part_of_a_header_block_without_its_beginning_ends_the_connection():
    side = Side()
    with pytest.raises(ConnectionFault, match="PROTOCOL_ERROR: CONTINUATION without HEADERS"):
        side.feed(fr.frame(fr.CONTINUATION, fr.END_HEADERS, 1, BLOCK))
    with pytest.raises(ConnectionFault, match="PROTOCOL_ERROR: HEADERS on stream 0"):
        side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS, 0, BLOCK))


@pytest.mark.parametrize("over", [0, 1])
def test_a_header_block_in_parts_may_have_twice_the_limit_in_bytes_and_sixty_four_parts(over):
    side = Side(limits=Limits(max_header_list_size=300))
    frames = [fr.frame(fr.HEADERS, 0, 1, bytes(300)), fr.frame(fr.CONTINUATION, 0, 1, bytes(300 + over))]
    many = [fr.frame(fr.HEADERS, 0, 1, b""), *[fr.frame(fr.CONTINUATION, 0, 1, b"")] * (63 + over)]
    for each in (frames, many):
        side = Side(limits=Limits(max_header_list_size=300))
        if over:
            with pytest.raises(ConnectionFault, match="ENHANCE_YOUR_CALM: header block too large"):
                side.feed(*each)
        else:
            side.feed(*each)


@pytest.mark.parametrize("priority", [b"", b"\0\0\0\x05\x10"])
@pytest.mark.parametrize("padding", [None, 0, 1, 9])
def test_padding_and_priority_around_a_header_block_are_left_out(padding, priority):
    side = Side()
    flags = fr.END_HEADERS | (fr.HAS_PRIORITY if priority else 0) | (fr.PADDED if padding is not None else 0)
    around = (b"", b"") if padding is None else (bytes([padding]), bytes(padding))
    side.feed(fr.frame(fr.HEADERS, flags, 1, around[0] + priority + BLOCK + around[1]))
    assert side.requests == [(1, [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/t.S/M")], False)]


@pytest.mark.parametrize(
    ("flags", "payload", "error"),
    [
        (fr.PADDED, b"", "PROTOCOL_ERROR: padding exceeds the frame"),
        (fr.PADDED, b"\x03ab", "PROTOCOL_ERROR: padding exceeds the frame"),
        (fr.HAS_PRIORITY, bytes(4), "FRAME_SIZE_ERROR: HEADERS too short for its priority"),
        (fr.HAS_PRIORITY | fr.PADDED, b"\x01" + bytes(5), "FRAME_SIZE_ERROR: HEADERS too short for its priority"),
    ],
)
def test_headers_whose_padding_or_priority_does_not_fit_end_the_connection(flags, payload, error):
    side = Side()
    with pytest.raises(ConnectionFault, match=error):
        side.feed(fr.frame(fr.HEADERS, flags | fr.END_HEADERS, 1, payload))
    side.feed(fr.frame(fr.HEADERS, fr.PADDED | fr.END_HEADERS, 1, b"\x02ab"))  # nothing but padding is lawful here
    side.feed(fr.frame(fr.HEADERS, fr.HAS_PRIORITY | fr.END_HEADERS, 3, bytes(5)))
    assert side.requests == [(1, [], False), (3, [], False)]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("itself", [False, True])
def test_a_stream_that_depends_on_itself_is_reset_however_its_headers_come(parts, itself):
    side = Side()
    block = fr.U32.pack(1 << 31 | (1 if itself else 3)) + b"\0" + BLOCK
    if parts == 1:
        side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.HAS_PRIORITY, 1, block))
    else:
        side.feed(fr.frame(fr.HEADERS, fr.HAS_PRIORITY, 1, block[:9]))
        side.feed(fr.frame(fr.CONTINUATION, fr.END_HEADERS, 1, block[9:]))
    code = fr.U32.pack(ErrorCode.PROTOCOL_ERROR)
    assert side.frames() == ([(fr.RST_STREAM, 1, code)] if itself else [])
    assert list(side.streams) == ([] if itself else [1])
    side.open(3)
    assert not side.streams[3].resets


@pytest.mark.parametrize(("frame", "at_once", "in_two"), [
    (fr.frame(fr.DATA, 0, 1, bytes(20)), 1, 2), (fr.frame(fr.DATA, fr.END_STREAM, 1, bytes(20)), 1, 2),
    (fr.frame(fr.DATA, fr.END_STREAM, 1, b""), 1, 1), (padded(1, bytes(9), 9), 1, 2),
    (padded(1, bytes(9), 9, end=True), 1, 2), (padded(1, b"", 9, end=True), 1, 1),
    (fr.frame(fr.DATA, 0, 1, bytes(5000)) * 8, 1, 3),
])  # fmt: skip
def test_a_stream_is_told_of_all_that_comes_for_it_and_at_once_of_what_comes_at_once(frame, at_once, in_two):
    for cut, told in ((0, at_once), (15, in_two)):
        side = Side()
        [stream] = side.open(1)
        done = side.reader.receive(memoryview(frame), start=0, end=min(cut, len(frame)))
        side.reader.receive(memoryview(frame), start=done, end=len(frame))
        assert stream.told == told
        ended = bool(frame[4] & fr.END_STREAM)
        assert stream.recv_closed == ended
        stream.send_closed = True
        side.h2.close_if_done(stream)
        assert (1 in side.h2.streams) is not ended


def test_a_run_ends_with_the_first_frame_that_differs_and_counts_its_bytes():
    side = Side()
    [one, three] = side.open(1, 3)
    equal = fr.frame(fr.DATA, 0, 1, bytes(5000))
    for other in (fr.frame(fr.DATA, 0, 3, bytes(5000)), fr.frame(fr.DATA, 0, 1, bytes(4999)),
                  fr.frame(fr.DATA, fr.END_STREAM, 1, bytes(5000))):  # fmt: skip
        side.feed(equal * 3, other)
    assert (one.held, three.held) == (9 * 5000 + 4999 + 5000, 5000)
    assert one.recv_closed
    assert not three.recv_closed
    one.discard()
    three.discard()
    window = side.h2.recv_window
    assert window.left + window.owed == window.size


@pytest.mark.parametrize("whose", ["stream", "connection"])
def test_a_run_takes_no_more_than_either_window_has(whose):
    side = Side()
    [stream] = side.open(1)
    window = stream.recv_window if whose == "stream" else side.h2.recv_window
    window.left = 4 * 5000
    side.feed(fr.frame(fr.DATA, 0, 1, bytes(5000)) * 4)
    assert (stream.held, window.left, stream.told) == (4 * 5000, 0, 1)
    window.left = 4 * 5000
    five = fr.frame(fr.DATA, 0, 1, bytes(5000)) * 5
    if whose == "connection":
        with pytest.raises(ConnectionFault, match="connection window exceeded"):
            side.feed(five)
        assert stream.held == 8 * 5000
    else:
        side.feed(five)
        assert stream.resets == [ErrorCode.FLOW_CONTROL_ERROR]


@pytest.mark.parametrize("frames", [3, 4])
def test_a_run_of_a_request_that_said_its_length_is_counted_frame_by_frame(frames):
    side = Side()
    [stream] = side.open(1)
    stream.content_left = 3 * 5000
    side.feed(fr.frame(fr.DATA, 0, 1, bytes(5000)) * frames, fr.frame(fr.DATA, fr.END_STREAM, 1))
    assert stream.resets == ([] if frames == 3 else [ErrorCode.PROTOCOL_ERROR])


@pytest.mark.parametrize("cut", [0, 12])
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("frame", [fr.frame(fr.DATA, fr.END_STREAM, 1, b"some"), padded(1, b"some", 3, end=True),
                                   fr.frame(fr.DATA, fr.END_STREAM, 1), padded(1, b"", 3, end=True)])  # fmt: skip
def test_the_end_of_a_request_ends_its_stream_if_it_has_been_answered_and_only_then(frame, answered, cut):
    side = Side()
    [stream] = side.open(1)
    stream.send_closed = answered
    done = side.reader.receive(memoryview(frame), start=0, end=min(cut, len(frame)))
    side.reader.receive(memoryview(frame), start=done, end=len(frame))
    assert stream.recv_closed
    assert (1 in side.h2.streams) is not answered


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_a_request_ends_with_its_last_byte_and_not_with_the_first_piece_of_its_last_frame(padding):
    side = Side()
    [stream] = side.open(1)
    data = fr.frame(fr.DATA, fr.END_STREAM, 1, b"abcde") if padding is None else padded(1, b"abcde", padding, end=True)
    done, ended = 0, []
    for stop in range(1, len(data) + 1):
        done = side.reader.receive(memoryview(data), start=done, end=stop)
        if stream.recv_closed:
            ended.append(content(stream))
    assert ended[0] == b"abcde"
    assert (stream.held, done) == (5, len(data))
