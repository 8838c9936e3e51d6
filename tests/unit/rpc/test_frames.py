"""Frames as bytes: read back by the `hyperframe` package, which h2 is built on."""

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from nl.rpc import frames as fr
from nl.rpc.frames import ConnectionFault, ErrorCode, Setting


def parse(data):
    """The frames in `data`, all of them whole."""
    found, view = [], memoryview(data)
    while view:
        frame, length = Frame.parse_frame_header(view[:9])
        assert length <= len(view) - 9
        frame.parse_body(view[9 : 9 + length])
        view = view[9 + length :]
        found.append(frame)
    return found


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536, fr.MAX_FRAME_SIZE])
def test_a_header_says_length_type_flags_and_stream(length):
    frame, found = Frame.parse_frame_header(memoryview(fr.header(length, fr.DATA, fr.END_STREAM, fr.MAX_STREAM_ID)))
    assert (found, frame.type, set(frame.flags), frame.stream_id) == (length, 0, {"END_STREAM"}, fr.MAX_STREAM_ID)
    assert fr.HEADER.size == fr.HEADER_SIZE == 9


def test_settings_keep_their_order_and_their_values():
    values = {Setting.MAX_FRAME_SIZE: 16_384, Setting.INITIAL_WINDOW_SIZE: fr.MAX_WINDOW, Setting.ENABLE_PUSH: 0}
    [frame] = parse(fr.settings(values))
    assert isinstance(frame, SettingsFrame)
    assert list(frame.settings.items()) == [(5, 16_384), (4, fr.MAX_WINDOW), (2, 0)]
    [ack] = parse(fr.SETTINGS_ACK)
    assert (set(ack.flags), ack.settings) == ({"ACK"}, {})


def test_small_frames_say_what_they_are_told():
    update, reset, ping, pong = parse(
        fr.window_update(7, fr.MAX_WINDOW) + fr.rst_stream(9, 8) + fr.ping(b"12345678") + fr.ping(b"87654321", ack=True)
    )
    assert isinstance(update, WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (7, fr.MAX_WINDOW)
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (9, ErrorCode.CANCEL)
    for bare in (fr.window_update(7, 1), fr.rst_stream(9, 8), fr.goaway(0, 0), fr.settings({})):
        assert bare[4] == 0, "no flags"
        assert fr.goaway(0, 0)[5:9] == fr.settings({})[5:9] == fr.ping(bytes(8))[5:9] == bytes(4), "of no stream"
    assert isinstance(ping, PingFrame)
    assert (ping.opaque_data, set(ping.flags)) == (b"12345678", set())
    assert (pong.opaque_data, set(pong.flags)) == (b"87654321", {"ACK"})


def test_goaway_says_why_in_words_of_bounded_length():
    short, long = parse(fr.goaway(5, 11, "za\u017elehni") + fr.goaway(fr.MAX_STREAM_ID, 0, "\u00fc" * 5000))
    assert isinstance(short, GoAwayFrame)
    assert (short.last_stream_id, short.error_code, short.additional_data) == (5, 11, "za\u017elehni".encode())
    assert (long.last_stream_id, len(long.additional_data)) == (fr.MAX_STREAM_ID, 256)


@pytest.mark.parametrize("end_stream", [False, True])
@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 21, 29])
def test_a_block_is_cut_into_as_few_frames_as_fit_and_only_the_last_ends_it(size, end_stream):
    block = bytes(range(size))
    first, *others = parse(fr.header_frames(block, 3, end_stream=end_stream, max_frame=10))
    assert isinstance(first, HeadersFrame)
    assert all(isinstance(each, ContinuationFrame) for each in others)
    assert b"".join(each.data for each in (first, *others)) == block
    assert 1 + len(others) == max(1, -(-size // 10))
    assert [("END_HEADERS" in each.flags) for each in (first, *others)] == [False] * len(others) + [True]
    assert ("END_STREAM" in first.flags) == end_stream
    at, flags = 0, []
    data = fr.header_frames(block, 3, end_stream=end_stream, max_frame=10)
    while at < len(data):
        flags.append(data[at + 4])
        at += 9 + int.from_bytes(data[at : at + 3], "big")
    assert flags[0] & ~(fr.END_HEADERS | fr.END_STREAM) == 0
    assert all(each in (0, fr.END_HEADERS) for each in flags[1:])
    assert {each.stream_id for each in (first, *others)} == {3}


@pytest.mark.parametrize(("key", "value"), [
    (Setting.HEADER_TABLE_SIZE, 0), (Setting.HEADER_TABLE_SIZE, 2**32 - 1), (Setting.ENABLE_PUSH, 0),
    (Setting.ENABLE_PUSH, 1), (Setting.MAX_CONCURRENT_STREAMS, 0), (Setting.INITIAL_WINDOW_SIZE, 0),
    (Setting.INITIAL_WINDOW_SIZE, fr.MAX_WINDOW), (Setting.MAX_FRAME_SIZE, 16_384),
    (Setting.MAX_FRAME_SIZE, 2**24 - 1), (Setting.MAX_HEADER_LIST_SIZE, 2**32 - 1),
])  # fmt: skip
def test_settings_at_the_edge_of_what_is_lawful_are_taken(key, value):
    assert fr.parse_settings(fr.SETTING.pack(key, value)) == [(key, value)]


@pytest.mark.parametrize(("key", "value", "code"), [
    (Setting.ENABLE_PUSH, 2, ErrorCode.PROTOCOL_ERROR),
    (Setting.INITIAL_WINDOW_SIZE, fr.MAX_WINDOW + 1, ErrorCode.FLOW_CONTROL_ERROR),
    (Setting.MAX_FRAME_SIZE, 16_383, ErrorCode.PROTOCOL_ERROR),
    (Setting.MAX_FRAME_SIZE, 2**24, ErrorCode.PROTOCOL_ERROR),
])  # fmt: skip
def test_settings_beyond_it_are_errors_with_the_code_that_the_rfc_names(key, value, code):
    with pytest.raises(ConnectionFault, match=str(value)) as caught:
        fr.parse_settings(fr.SETTING.pack(Setting.HEADER_TABLE_SIZE, 1) + fr.SETTING.pack(key, value))
    assert caught.value.code is code


@pytest.mark.parametrize("length", [1, 5, 7])
def test_settings_of_a_wrong_length_are_errors(length):
    with pytest.raises(ConnectionFault) as caught:
        fr.parse_settings(bytes(length))
    assert caught.value.code is ErrorCode.FRAME_SIZE_ERROR


def test_a_setting_that_comes_twice_is_told_twice_and_unknown_ones_never():
    pairs = [(4, 1), (0, 9), (7, 9), (0xFFFF, 9), (4, 2)]
    assert fr.parse_settings(b"".join(fr.SETTING.pack(*pair) for pair in pairs)) == [(4, 1), (4, 2)]
