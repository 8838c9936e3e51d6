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
