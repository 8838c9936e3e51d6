"""What a frame does to a connection: statuses of streams, windows, budgets, ends."""

import pytest

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ConnectionFault, ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole, Status
from tests.unit.rpc.h2.side import BLOCK, Side

WINDOW = Setting.INITIAL_WINDOW_SIZE


def rst(sid):
    return fr.rst_stream(sid, ErrorCode.CANCEL)


# -- what is stream N? ---------------------------------------------------------------------------------------------


def statuses():
    """A server's side on which every status occurs: stream -> status."""
    side = Side()
    side.open(1, 3, 5, 9)  # 7 is skipped
    side.h2.reset_stream(3, ErrorCode.NO_ERROR)
    side.feed(rst(5))
    side.h2.goaway(ErrorCode.NO_ERROR, last_sid=9)
    side.frames()
    return side, {1: Status.LIVE, 3: Status.RESET_BY_US, 5: Status.CLOSED, 7: Status.IDLE, 2: Status.IDLE,
                  11: Status.REFUSED, 9: Status.LIVE}  # fmt: skip


def test_each_stream_has_the_status_that_its_history_gives_it():
    side, expected = statuses()
    assert {sid: side.h2.status_of(sid) for sid in expected} == expected


@pytest.mark.parametrize(
    ("kind", "payload", "outcomes"),
    [
        (fr.DATA, b"x", {3: None, 5: "reset", 7: "PROTOCOL_ERROR", 2: "PROTOCOL_ERROR", 11: None}),
        (fr.HEADERS, BLOCK, {3: None, 5: "STREAM_CLOSED", 7: "PROTOCOL_ERROR", 2: "PROTOCOL_ERROR", 11: None}),
        (fr.RST_STREAM, b"\0\0\0\x08", {3: None, 5: None, 7: "PROTOCOL_ERROR", 2: "PROTOCOL_ERROR", 11: None}),
        (fr.WINDOW_UPDATE, b"\0\0\1\0", {3: None, 5: None, 7: "PROTOCOL_ERROR", 2: "PROTOCOL_ERROR", 11: None}),
    ],
)
def test_a_frame_on_a_stream_that_is_not_live_is_judged_by_its_status(kind, payload, outcomes):
    for sid, outcome in outcomes.items():
        side, _ = statuses()
        flags = fr.END_HEADERS if kind == fr.HEADERS else 0
        if outcome not in (None, "reset"):
            with pytest.raises(ConnectionFault, match=outcome):
                side.feed(fr.frame(kind, flags, sid, payload))
            continue
        side.feed(fr.frame(kind, flags, sid, payload))
        resets = [frame for frame in side.frames() if frame[0] == fr.RST_STREAM]
        assert [sid] * (outcome == "reset") == [frame[1] for frame in resets], (kind, sid)


def test_a_stream_that_both_sides_have_reset_is_closed():
    side = Side()
    side.open(1)
    side.h2.reset_stream(1, ErrorCode.NO_ERROR)
    side.feed(rst(1))
    assert side.h2.status_of(1) is Status.CLOSED


def test_goaway_never_promises_more_than_before():
    side = Side()
    side.open(1)
    side.h2.goaway(ErrorCode.NO_ERROR, last_sid=fr.MAX_STREAM_ID)
    side.h2.goaway(ErrorCode.NO_ERROR)
    side.open(3, 5)
    side.h2.goaway(ErrorCode.NO_ERROR)
    side.h2.goaway(ErrorCode.PROTOCOL_ERROR, last_sid=99)
    said = [fr.U32.unpack_from(payload)[0] for kind, _, payload in side.frames() if kind == fr.GOAWAY]
    assert said == [fr.MAX_STREAM_ID, 1, 1, 1]
    assert 3 not in side.streams


def test_streams_whose_handlers_still_run_count_as_concurrent():
    side = Side(limits=Limits(max_concurrent_streams=3))
    side.open(1, 3)
    side.feed(rst(1), rst(3))
    side.h2.winding_down = 2
    side.open(5, 7)
    assert sorted(side.h2.streams) == [5]
    assert [(kind, sid) for kind, sid, _ in side.frames()] == [(fr.RST_STREAM, 7)]


# -- sending windows -----------------------------------------------------------------------------------------------


def test_settings_move_the_windows_of_all_streams_at_once_also_below_zero():
    side = Side(settings={WINDOW: 1000})
    one, three = side.open(1, 3)
    one.charge(700)
    side.feed(fr.window_update(3, 50))
    side.feed(fr.settings({WINDOW: 200}))
    assert (one.send_window, three.send_window) == (-500, 250)
    side.feed(fr.settings({WINDOW: 1000}))
    assert (one.send_window, three.send_window) == (300, 1050)


def test_only_the_last_of_equal_settings_in_a_frame_counts_and_entries_cost():
    side = Side()
    [stream] = side.open(1)
    entries = b"".join(fr.SETTING.pack(WINDOW, value) for value in (1, 2, fr.MAX_WINDOW, 77))
    side.feed(fr.frame(fr.SETTINGS, 0, 0, entries))
    assert stream.send_window == 77
    flood = fr.frame(fr.SETTINGS, 0, 0, fr.SETTING.pack(WINDOW, 1) * 2700)
    with pytest.raises(ConnectionFault, match="ENHANCE_YOUR_CALM"):
        side.feed(flood * 20)


def test_a_window_that_settings_push_over_the_maximum_ends_the_connection():
    side = Side()
    side.open(1)
    side.feed(fr.window_update(1, fr.MAX_WINDOW - fr.DEFAULT_WINDOW))
    with pytest.raises(ConnectionFault, match="FLOW_CONTROL_ERROR"):
        side.feed(fr.settings({WINDOW: fr.DEFAULT_WINDOW + 1}))


def test_streams_that_are_gone_do_not_make_settings_overflow():
    side = Side()
    side.open(1)
    side.feed(fr.window_update(1, fr.MAX_WINDOW - fr.DEFAULT_WINDOW), rst(1))
    side.feed(fr.settings({WINDOW: fr.MAX_WINDOW}))
    assert side.h2.peer_initial_window == fr.MAX_WINDOW


def test_a_connection_window_update_wakes_one_and_each_passes_on_what_it_leaves():
    side = Side(settings={WINDOW: 1 << 20})
    streams = side.open(1, 3, 5)
    side.h2.send_window = 0
    for stream in streams:
        side.h2.wait_for_credit(stream)
    side.feed(fr.window_update(0, 1000))
    assert [stream.woken for stream in streams] == [1, 0, 0]
    streams[0].charge(400)
    side.h2.wake_next()
    assert [stream.woken for stream in streams] == [1, 1, 0]
    streams[1].charge(600)
    side.h2.wake_next()
    assert [stream.woken for stream in streams] == [1, 1, 0]


def test_thousands_that_need_no_credit_any_more_are_passed_over_without_recursion():
    side = Side(settings={WINDOW: 1 << 20}, limits=Limits(max_concurrent_streams=5000))
    streams = side.open(*range(1, 9001, 2))
    side.h2.send_window = 0
    served = []
    for stream in streams:
        side.h2.wait_for_credit(stream)
        stream.on_window = lambda stream=stream: (served.append(stream.sid), side.h2.wake_next())
    side.feed(fr.window_update(0, 1))
    assert served == [stream.sid for stream in streams]


def test_who_waits_for_its_own_window_is_woken_by_its_own_update_or_by_settings():
    side = Side(settings={WINDOW: 0})
    one, three = side.open(1, 3)
    side.h2.wait_for_credit(one)
    side.h2.wait_for_credit(three)
    side.feed(fr.window_update(0, 1000))
    assert (one.woken, three.woken) == (0, 0)
    side.feed(fr.window_update(3, 1000))
    assert (one.woken, three.woken) == (0, 1)
    side.feed(fr.settings({WINDOW: 10}))
    assert (one.woken, three.woken) == (1, 1)


def test_a_refund_goes_to_the_next_in_line():
    side = Side(settings={WINDOW: 1 << 20})
    one, three = side.open(1, 3)
    one.charge(fr.DEFAULT_WINDOW)
    side.h2.wait_for_credit(three)
    one.refund(100)
    assert three.woken == 1
    assert side.h2.send_window == 100


def test_a_stream_that_is_reset_waits_no_more():
    side = Side(settings={WINDOW: 1 << 20})
    one, three = side.open(1, 3)
    side.h2.send_window = 0
    side.h2.wait_for_credit(one)
    side.h2.wait_for_credit(three)
    side.feed(rst(1), fr.window_update(0, 1000))
    assert (one.woken, three.woken) == (0, 1)


# -- budgets -------------------------------------------------------------------------------------------------------


def test_resets_before_an_answer_are_bounded_and_answered_calls_pay_for_more():
    side = Side(limits=Limits(reset_burst=3, reset_per_s=0))
    for sid in (1, 3, 5):
        side.open(sid)
        side.feed(rst(sid))
    side.h2.call_answered()
    side.open(7)
    side.feed(rst(7))
    side.open(9)
    with pytest.raises(ConnectionFault, match="too many resets"):
        side.feed(rst(9))


def test_resets_of_calls_that_are_answered_in_part_cost_nothing():
    side = Side(limits=Limits(reset_burst=1, reset_per_s=0))
    for sid in range(1, 40, 2):
        [stream] = side.open(sid)
        stream.headers_sent = True
        side.feed(rst(sid))
    assert not side.h2.streams


def test_late_data_of_a_thousand_streams_that_were_answered_early_is_no_fault_and_loses_no_credit():
    side = Side(limits=Limits(control_burst=10, control_per_s=0))
    sids = range(1, 2001, 2)
    side.open(*sids)
    for sid in sids:
        side.h2.reset_stream(sid, ErrorCode.NO_ERROR)
    for sid in sids:
        side.feed(fr.frame(fr.DATA, 0, sid, bytes(1000)))
    window = side.h2.recv_window
    assert window.left + window.owed == window.size


def test_frames_that_move_nothing_are_bounded_and_messages_pay_for_some():
    side = Side(limits=Limits(control_burst=5, control_per_s=0))
    side.h2.call_answered()
    side.feed(*[fr.ping(bytes(8))] * 8)  # four that the answer pays for, four of the five (SETTINGS was one)
    with pytest.raises(ConnectionFault, match="ENHANCE_YOUR_CALM"):
        side.feed(fr.ping(bytes(8)))


# -- the end -------------------------------------------------------------------------------------------------------


def test_at_the_end_nothing_refers_to_streams_or_role_any_more():
    side = Side()
    [stream] = side.open(1)
    side.feed(fr.frame(fr.DATA, 0, 1, bytes(10)))
    side.h2.wait_for_credit(stream)
    side.h2.end()
    assert not side.h2.streams
    assert type(side.h2.role) is NoRole
    assert not stream.chunks


def test_a_client_knows_its_own_streams():
    sent = []
    h2 = H2Connection(Limits(), NoRole(), emit=sent.append, client=True)
    assert h2.status_of(1) is Status.IDLE
    assert (h2.take_sid(), h2.take_sid()) == (1, 3)
    assert h2.status_of(3) is Status.CLOSED
    assert h2.status_of(5) is Status.IDLE
    assert h2.status_of(2) is Status.IDLE


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ((b"12345",), None),
        ((b"12", b"345"), None),
        ((b"1234",), ErrorCode.PROTOCOL_ERROR),
        ((b"123456",), ErrorCode.PROTOCOL_ERROR),
        ((), ErrorCode.PROTOCOL_ERROR),
    ],
)
@pytest.mark.parametrize("by", ["data", "trailers"])
def test_a_message_that_is_not_as_long_as_it_said_is_malformed_however_it_ends(by, what, fault):
    side = Side()
    [stream] = side.open(1)
    stream.content_left = 5
    frames = [fr.frame(fr.DATA, 0, 1, part) for part in what]
    if by == "trailers":
        frames.append(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, hpack.encode([(b"a", b"b")])))
    else:
        frames.append(fr.frame(fr.DATA, fr.END_STREAM, 1, b""))
    side.feed(*frames)
    assert stream.resets == ([] if fault is None else [fault])
    assert stream.recv_closed


def test_late_data_with_padding_on_a_stream_that_we_have_reset_loses_no_credit_either():
    side = Side()
    side.open(1)
    side.h2.reset_stream(1, ErrorCode.NO_ERROR)
    for _ in range(10):
        side.feed(fr.frame(fr.DATA, fr.PADDED, 1, b"\x64" + b"payload" + bytes(100)))
    window = side.h2.recv_window
    assert window.left + window.owed == window.size


@pytest.mark.parametrize("left", [0, -1])
def test_the_end_of_a_request_needs_no_window_also_where_ours_has_become_smaller_meanwhile(left):
    side = Side()
    [stream, other] = side.open(1, 3)
    stream.recv_window.left = other.recv_window.left = left
    side.feed(fr.frame(fr.DATA, fr.END_STREAM, 1), fr.frame(fr.DATA, fr.END_STREAM, 3, b"x"))
    assert [frame for frame in side.frames() if frame[0] == fr.RST_STREAM] == [
        (fr.RST_STREAM, 3, fr.U32.pack(ErrorCode.FLOW_CONTROL_ERROR))
    ]
    assert stream.recv_closed
    assert stream.reset_code is None
