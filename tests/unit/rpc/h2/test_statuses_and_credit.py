"""What a frame does to a connection: statuses of streams, windows, budgets, ends."""

import pytest

from nl.rpc import frames as fr
from nl.rpc import hpack
from nl.rpc.frames import ConnectionFault, ErrorCode, Setting
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole, Status
from nl.rpc.h2.stream import Owner
from tests.unit.rpc.h2.side import BLOCK, Noted, Side

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


# -- what we say first ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("window", [fr.DEFAULT_WINDOW - 1, fr.DEFAULT_WINDOW, fr.DEFAULT_WINDOW + 1, 1 << 20])
def test_the_preface_says_what_we_take_and_opens_the_connections_window_as_far_as_that_is_larger(client, window):
    sent = []
    limits = Limits(
        stream_window=window, connection_window=window, max_frame_size=20_000, max_header_list_size=9_000,
        max_concurrent_streams=7,
    )  # fmt: skip
    h2 = H2Connection(limits, NoRole(), emit=sent.append, client=client)
    h2.preface()
    taken = max(window, fr.DEFAULT_WINDOW)
    own = {Setting.ENABLE_PUSH: 0} if client else {Setting.MAX_CONCURRENT_STREAMS: 7}
    values = {WINDOW: taken, Setting.MAX_FRAME_SIZE: 20_000, Setting.MAX_HEADER_LIST_SIZE: 9_000, **own}
    more = fr.window_update(0, window - fr.DEFAULT_WINDOW) if window > fr.DEFAULT_WINDOW else b""
    assert b"".join(sent) == (fr.PREFACE if client else b"") + fr.settings(values) + more
    assert (h2.recv_window.size, h2.recv_window.left, h2.stream_window) == (taken, taken, taken)


# -- receiving windows ---------------------------------------------------------------------------------------------


def data_of(length, how):
    """A DATA frame of `length` bytes, whatever they are."""
    if how == "padded":
        return fr.frame(fr.DATA, fr.PADDED, 1, b"\x05" + bytes(length - 1))
    return fr.frame(fr.DATA, fr.END_STREAM if how == "ended" else 0, 1, bytes(length))


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("how", ["plain", "padded", "ended", "declared"])
@pytest.mark.parametrize("whose", ["stream", "connection"])
def test_a_window_may_be_used_up_to_its_last_byte_and_no_further(whose, how, over):
    side = Side(limits=Limits(stream_window=1 << 20, connection_window=1 << 20))
    [stream] = side.open(1)
    if how == "declared":
        stream.content_left = 10_000
    window = stream.recv_window if whose == "stream" else side.h2.recv_window
    window.left = 1000
    frame = data_of(1000 + over, how)
    if whose == "connection" and over > 0:
        with pytest.raises(ConnectionFault, match="FLOW_CONTROL_ERROR: connection window exceeded"):
            side.feed(frame)
        return
    side.feed(frame)
    assert stream.resets == ([ErrorCode.FLOW_CONTROL_ERROR] if over > 0 else [])
    if over <= 0:
        assert stream.held == (995 if how == "padded" else 1000) + over - (how == "padded")
        assert window.left + (window.owed if how == "padded" else 0) == -over + (6 if how == "padded" else 0)


def test_credit_is_announced_only_when_enough_of_it_has_come_together():
    side = Side(limits=Limits(connection_window=100_000))
    side.h2.recv_window.left -= 25_000
    side.h2.give_back(24_999)
    assert side.frames() == []
    side.h2.give_back(1)
    assert side.frames() == [(fr.WINDOW_UPDATE, 0, fr.U32.pack(25_000))]


# -- faults that cost a stream, and what they cost its peer ----------------------------------------------------------


def test_streams_that_are_faulty_cost_as_much_as_frames_that_move_nothing():
    side = Side(limits=Limits(control_burst=10, control_per_s=0))
    own = fr.END_HEADERS | fr.HAS_PRIORITY
    faulty = [fr.frame(fr.HEADERS, own, sid, fr.U32.pack(sid) + b"\0" + BLOCK) for sid in range(1, 30, 2)]
    side.feed(*faulty[:9])  # SETTINGS were one
    assert [frame[:2] for frame in side.frames()] == [(fr.RST_STREAM, sid) for sid in range(1, 18, 2)]
    with pytest.raises(ConnectionFault, match="ENHANCE_YOUR_CALM: too many frames that move nothing"):
        side.feed(faulty[9])


@pytest.mark.parametrize(
    ("before", "late"),
    [
        ("reset by us", fr.frame(fr.HEADERS, fr.END_HEADERS, 1, BLOCK)),
        ("closed", fr.rst_stream(1, ErrorCode.CANCEL)),
        ("refused", fr.rst_stream(1, ErrorCode.CANCEL)),
        ("refused", fr.frame(fr.HEADERS, fr.END_HEADERS, 1, BLOCK)),
    ],
)
def test_frames_that_come_too_late_for_their_stream_may_come_so_often(before, late):
    side = Side(limits=Limits(control_burst=10, control_per_s=0))
    if before == "refused":
        side.h2.goaway(ErrorCode.NO_ERROR, last_sid=0)
    else:
        side.open(1)
        side.feed(rst(1)) if before == "closed" else side.h2.reset_stream(1, ErrorCode.CANCEL)
    side.feed(*[late] * 9)
    with pytest.raises(ConnectionFault, match="ENHANCE_YOUR_CALM"):
        side.feed(late)


def test_a_server_may_reset_as_many_calls_as_it_likes():
    side = Side(client=True, limits=Limits(reset_burst=0, reset_per_s=0))
    for _ in range(5):
        sid = side.h2.take_sid()
        stream = side.h2.streams[sid] = Noted(side.h2, sid)
        side.feed(rst(sid))
        assert stream.resets == [ErrorCode.CANCEL]
        assert stream.reset_code == ErrorCode.CANCEL
        assert (stream.recv_closed, stream.send_closed) == (True, True)


@pytest.mark.parametrize(
    ("payload", "code"), [(fr.U32.pack(1) + b"\0", "PROTOCOL_ERROR"), (bytes(4), "FRAME_SIZE_ERROR"),
                          (bytes(6), "FRAME_SIZE_ERROR"), (fr.U32.pack(1 | 1 << 31) + b"\0", "PROTOCOL_ERROR"),
                          (fr.U32.pack(3) + b"\0", None)],
)  # fmt: skip
def test_a_bad_priority_resets_its_stream_and_ends_the_connection_where_there_is_none(payload, code):
    side = Side()
    [stream] = side.open(1)
    side.feed(fr.frame(fr.PRIORITY, 0, 1, payload))
    assert stream.resets == ([ErrorCode[code]] if code else [])
    assert [frame[:2] for frame in side.frames()] == ([(fr.RST_STREAM, 1)] if code else [])
    if code == "FRAME_SIZE_ERROR":
        with pytest.raises(ConnectionFault, match=f"{code}: bad PRIORITY"):
            side.feed(fr.frame(fr.PRIORITY, 0, 5, payload))
    with pytest.raises(ConnectionFault, match="PROTOCOL_ERROR: PRIORITY on stream 0"):
        side.feed(fr.frame(fr.PRIORITY, 0, 0, payload))


@pytest.mark.parametrize(
    ("fields", "by_client", "by_server"),
    [
        ([(b"a", b"b")], True, True),
        ([(b":status", b"200")], False, True),
        ([(b":path", b"/")], False, False),
        ([(b":method", b"POST")], False, False),
        ([(b"Upper", b"x")], False, False),
        ([(b"a", b"b"), (b"connection", b"close")], False, False),
        ([(b"x", bytes(500))], False, False),  # over the limit: nobody has seen what else is in it
    ],
)
def test_headers_behind_the_first_are_judged_by_who_sends_them(fields, by_client, by_server):
    for client, taken in ((False, by_client), (True, by_server)):
        side = Side(client=client, limits=Limits(max_header_list_size=400))
        if client:
            side.h2.take_sid()
            stream = side.h2.streams[1] = Noted(side.h2, 1)
        else:
            [stream] = side.open(1)
        side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, hpack.encode(fields)))
        assert stream.resets == ([] if taken else [ErrorCode.PROTOCOL_ERROR]), (client, fields)
        assert stream.recv_closed


@pytest.mark.parametrize("client", [False, True])
def test_only_a_servers_first_headers_may_leave_the_stream_open(client):
    side = Side(client=client)
    if client:
        side.h2.take_sid()
        stream = side.h2.streams[1] = Noted(side.h2, 1)
    else:
        [stream] = side.open(1)
    side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS, 1, hpack.encode([(b"a", b"b")])))
    assert stream.resets == ([] if client else [ErrorCode.PROTOCOL_ERROR])
    assert stream.recv_closed is not client


def test_headers_behind_the_end_of_the_stream_reset_it():
    side = Side()
    [stream] = side.open(1, end=True)
    side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, hpack.encode([(b"a", b"b")])))
    assert stream.resets == [ErrorCode.STREAM_CLOSED]


def test_a_stream_that_both_sides_have_ended_is_forgotten_whoever_is_last():
    side = Side()
    one, three = side.open(1, 3)
    one.send_closed = three.send_closed = True
    side.h2.close_if_done(one)
    assert sorted(side.h2.streams) == [1, 3]
    side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, hpack.encode([(b"a", b"b")])))
    side.feed(fr.frame(fr.DATA, fr.END_STREAM, 3, b"x"))
    assert not side.h2.streams
    assert one.recv_closed
    assert three.recv_closed


# -- settings, exactly ---------------------------------------------------------------------------------------------


def test_settings_are_acknowledged_once_and_an_acknowledgement_is_not():
    side = Side()
    side.feed(fr.settings({WINDOW: 1}), fr.SETTINGS_ACK)
    assert side.frames() == [(fr.SETTINGS, 0, b"")]
    with pytest.raises(ConnectionFault, match="FRAME_SIZE_ERROR: SETTINGS acknowledgement with a payload"):
        side.feed(fr.frame(fr.SETTINGS, fr.ACK, 0, bytes(6)))


def test_each_setting_goes_where_it_belongs():
    side = Side()
    h2 = side.h2
    assert (h2.peer_max_streams, h2.peer_max_header_list) == (fr.MAX_STREAM_ID, None)
    side.feed(fr.settings({Setting.MAX_FRAME_SIZE: 20_000, Setting.MAX_CONCURRENT_STREAMS: 5,
                           Setting.MAX_HEADER_LIST_SIZE: 700, WINDOW: 90}))  # fmt: skip
    assert (h2.peer_max_frame, h2.peer_max_streams, h2.peer_max_header_list, h2.peer_initial_window) == (
        20_000, 5, 700, 90,
    )  # fmt: skip


@pytest.mark.parametrize(("delta", "settings", "woken"), [(-5, 5, 0), (-5, 6, 1), (-5, 4, 0), (0, 1, 1)])
def test_settings_wake_those_whose_window_they_open_and_no_others(delta, settings, woken):
    side = Side(settings={WINDOW: 0})
    [stream] = side.open(1)
    stream.window_delta = delta
    side.h2.wait_for_credit(stream)
    side.feed(fr.settings({WINDOW: settings}))
    assert stream.woken == woken
    side.feed(fr.settings({WINDOW: settings + 100}))
    assert stream.woken == 1


@pytest.mark.parametrize("window", [-1, 0, 1])
def test_who_has_no_window_of_its_own_does_not_stand_in_line_for_the_connections(window):
    side = Side(settings={WINDOW: 10})
    [stream] = side.open(1)
    side.h2.send_window = 0
    stream.window_delta = window - 10
    side.h2.wait_for_credit(stream)
    side.feed(fr.window_update(0, 1000))
    assert stream.woken == (window > 0)
    side.feed(fr.window_update(1, 1000))
    assert stream.woken == 1


@pytest.mark.parametrize("grant", [4, 5, 6])
def test_an_update_of_its_own_window_wakes_a_stream_once_there_is_some(grant):
    side = Side(settings={WINDOW: 0})
    [stream] = side.open(1)
    stream.window_delta = -5
    side.h2.wait_for_credit(stream)
    side.feed(fr.window_update(1, grant))
    assert stream.woken == (grant > 5)


def test_settings_that_wake_many_cost_by_their_number_and_those_that_wake_none_do_not():
    def left(values):
        side = Side(settings={WINDOW: 0}, limits=Limits(control_burst=1000, control_per_s=0))
        side.open(*range(1, 321, 2))
        for stream in side.streams.values():
            side.h2.wait_for_credit(stream)
        side.feed(fr.settings(values))
        return side.h2._control.left

    assert left({WINDOW: 0}) == 998
    assert left({WINDOW: 1}) == 998 - 160 // 8


@pytest.mark.parametrize(("entries", "cost"), [(0, 1), (31, 1), (32, 1), (33, 2), (63, 2), (64, 3), (96, 4)])
def test_settings_of_more_than_a_few_entries_cost_more(entries, cost):
    side = Side(limits=Limits(control_burst=1000, control_per_s=0))
    side.feed(fr.frame(fr.SETTINGS, 0, 0, fr.SETTING.pack(Setting.MAX_CONCURRENT_STREAMS, 1) * entries))
    assert side.h2._control.left == 999 - cost


# -- window updates, exactly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_windows_may_be_opened_to_the_maximum_and_no_further(over):
    most = fr.MAX_WINDOW - fr.DEFAULT_WINDOW + over
    side = Side()
    [stream] = side.open(1)
    side.feed(fr.window_update(1, most))
    assert stream.resets == ([ErrorCode.FLOW_CONTROL_ERROR] if over > 0 else [])
    if over > 0:
        with pytest.raises(ConnectionFault, match="FLOW_CONTROL_ERROR: connection window overflows"):
            side.feed(fr.window_update(0, most))
    else:
        side.feed(fr.window_update(0, most))
        assert side.h2.send_window == fr.MAX_WINDOW + over


def test_updates_of_nothing_reset_a_stream_and_end_a_connection():
    side = Side()
    [stream] = side.open(1)
    side.feed(fr.window_update(1, 0))
    assert stream.resets == [ErrorCode.PROTOCOL_ERROR]
    with pytest.raises(ConnectionFault, match="PROTOCOL_ERROR: WINDOW_UPDATE of 0"):
        side.feed(fr.window_update(0, 0))


@pytest.mark.parametrize(("increment", "cost"), [(1, 1), (255, 1), (256, 0), (1000, 0)])
@pytest.mark.parametrize("sid", [0, 1])
def test_only_small_updates_count_as_moving_nothing(sid, increment, cost):
    side = Side(limits=Limits(control_burst=1000, control_per_s=0))
    side.open(1)
    side.feed(fr.window_update(sid, increment))
    assert side.h2._control.left == 999 - cost


def test_the_highest_bit_of_an_increment_and_of_a_last_stream_is_ignored():
    side = Side()
    side.feed(fr.frame(fr.WINDOW_UPDATE, 0, 0, fr.U32.pack(300 | 1 << 31)))
    assert side.h2.send_window == fr.DEFAULT_WINDOW + 300
    side.feed(fr.frame(fr.GOAWAY, 0, 0, fr.U32.pack(7 | 1 << 31) + fr.U32.pack(2) + b"because"))
    assert side.told == [("goaway", 7, 2)]
    assert side.h2.peer_goaway == 7


@pytest.mark.parametrize(
    ("kind", "right", "sid", "error"),
    [
        (fr.RST_STREAM, 4, 1, "FRAME_SIZE_ERROR: RST_STREAM length"),
        (fr.WINDOW_UPDATE, 4, 1, "FRAME_SIZE_ERROR: WINDOW_UPDATE length"),
        (fr.PING, 8, 0, "FRAME_SIZE_ERROR: PING length"),
        (fr.GOAWAY, 8, 0, "FRAME_SIZE_ERROR: GOAWAY length"),
        (fr.SETTINGS, 6, 0, "FRAME_SIZE_ERROR: SETTINGS length is no multiple of 6"),
    ],
)
def test_a_frame_of_a_wrong_length_ends_the_connection_and_says_which(kind, right, sid, error):
    for length in (right - 1, right + 1):
        side = Side()
        side.open(1)
        if kind == fr.GOAWAY and length > right:
            side.feed(fr.frame(kind, 0, sid, bytes(length)))
            continue
        with pytest.raises(ConnectionFault, match=error):
            side.feed(fr.frame(kind, 0, sid, bytes(length)))


@pytest.mark.parametrize(("kind", "length"), [(fr.PING, 8), (fr.GOAWAY, 8), (fr.SETTINGS, 0)])
def test_a_frame_of_the_connection_on_a_stream_ends_the_connection_and_says_where(kind, length):
    side = Side()
    side.open(1)
    with pytest.raises(ConnectionFault, match=r"PROTOCOL_ERROR: [A-Z]+ on stream 1"):
        side.feed(fr.frame(kind, 0, 1, bytes(length)))
    with pytest.raises(ConnectionFault, match="PROTOCOL_ERROR: PUSH_PROMISE"):
        side.feed(fr.frame(fr.PUSH_PROMISE, fr.END_HEADERS, 1, bytes(4)))


def test_a_ping_is_answered_with_its_own_bytes_and_an_answer_is_reported():
    side = Side()
    side.feed(fr.ping(b"12345678"))
    data = b"".join(side.sent)
    assert data == fr.ping(b"12345678", ack=True)
    side.sent.clear()
    side.feed(fr.ping(b"87654321", ack=True))
    assert (side.sent, side.told) == ([], [("ping", b"87654321")])


# -- who is let in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("winding_down", [0, 1, 2])
def test_as_many_streams_as_were_promised_are_taken_and_one_more_is_refused(winding_down):
    side = Side(limits=Limits(max_concurrent_streams=4))
    side.h2.winding_down = winding_down
    side.open(*range(1, 15, 2))
    assert len(side.h2.streams) == 4 - winding_down
    refused = [sid for kind, sid, payload in side.frames() if payload == fr.U32.pack(ErrorCode.REFUSED_STREAM)]
    assert refused == list(range(9 - 2 * winding_down, 15, 2))


def test_only_so_many_gaps_are_remembered_the_newest_ones():
    """A client that skips streams gains nothing: what is forgotten counts as closed, not as idle."""
    side = Side()
    side.open(*range(5, 5 + 4 * 17, 4))
    assert len(side.h2._gaps) == 16
    assert side.h2.status_of(3) is Status.CLOSED
    assert [side.h2.status_of(sid) for sid in (7, 67)] == [Status.IDLE] * 2


def test_without_gaps_every_earlier_stream_is_closed():
    side = Side()
    side.open(1, 3, 5)
    side.feed(rst(1), rst(3), rst(5))
    assert side.h2._gaps is None
    assert [side.h2.status_of(sid) for sid in (1, 3, 5, 7)] == [Status.CLOSED] * 3 + [Status.IDLE]


def test_a_header_list_over_the_limit_costs_its_request_and_no_more():
    side = Side(limits=Limits(max_header_list_size=200))
    side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS, 1, BLOCK + hpack.encode([(b"x", bytes(200))])))
    assert side.told == [("oversized", 1)]
    side.open(3)
    assert sorted(side.h2.streams) == [3]
    assert side.h2.last_sid == 3


def test_a_request_that_ends_at_once_says_so_to_its_stream():
    side = Side()
    [one] = side.open(1)
    [three] = side.open(3, end=True)
    assert (one.recv_closed, three.recv_closed) == (False, True)
    assert (one.told, three.told) == (0, 1)


# -- the budgets, exactly --------------------------------------------------------------------------------------------


def test_prepaid_frames_are_taken_before_the_allowance_and_are_bounded():
    side = Side(limits=Limits(control_burst=100, control_per_s=0))
    h2 = side.h2
    h2.prepaid_frames = 3
    h2.spend_control(3)
    assert (h2.prepaid_frames, h2._control.left) == (0, 99)
    h2.prepaid_frames = 3
    h2.spend_control(4)
    assert (h2.prepaid_frames, h2._control.left) == (3, 95)
    for _ in range(5000):
        h2.call_answered()
    h2.spend_control()
    assert h2.prepaid_frames == 4000 - 1


@pytest.mark.parametrize("answered", [0, 1, 2, 9])
def test_an_answered_call_gives_back_one_reset_and_never_more_than_there_were(answered):
    side = Side(limits=Limits(reset_burst=3, reset_per_s=0))
    for sid in (1, 3):
        side.open(sid)
        side.feed(rst(sid))
    for _ in range(answered):
        side.h2.call_answered()
    assert side.h2.resets.left == min(3, 1 + answered)


def test_a_reset_after_the_whole_response_takes_nothing_of_it_back():
    side = Side(client=True)
    for sid, ended in ((1, True), (3, False)):
        assert side.h2.take_sid() == sid
        stream = side.h2.streams[sid] = Noted(side.h2, sid)
        side.feed(fr.frame(fr.DATA, fr.END_STREAM if ended else 0, sid, b"answer"))
        side.feed(fr.rst_stream(sid, ErrorCode.NO_ERROR))
        assert (stream.held, len(stream.chunks)) == ((6, 1) if ended else (0, 0))


def test_at_the_end_the_receive_buffers_are_let_go_of_and_nobody_is_woken():
    side = Side(settings={WINDOW: 0})
    one, three = side.open(1, 3)
    owner = Owner()
    data = fr.frame(fr.DATA, 0, 1, bytes(5000))
    side.reader.receive(memoryview(data), start=0, end=len(data), owner=owner)
    assert owner.held == 5000
    side.h2.wait_for_credit(three)
    side.h2.end()
    assert owner.held == 0
    assert not (side.h2.blocked or side.h2._starved or one.chunks)


# -- the second way to the same end ----------------------------------------------------------------------------------


def test_a_stream_that_waits_for_its_own_window_and_is_reset_waits_no_more():
    side = Side(settings={WINDOW: 0})
    one, three = side.open(1, 3)
    side.h2.wait_for_credit(one)
    side.h2.wait_for_credit(three)
    side.feed(rst(1), fr.settings({WINDOW: 100}))
    assert (one.woken, three.woken) == (0, 1)
    side.h2.wait_for_credit(three)
    side.h2.stop_waiting(three)
    side.h2.wake_next()
    assert three.woken == 1


def test_a_stream_that_goaway_has_promised_is_no_refused_one():
    side = Side()
    side.open(1, 3)
    side.feed(rst(3))
    side.h2.goaway(ErrorCode.NO_ERROR)
    assert [side.h2.status_of(sid) for sid in (1, 3, 5)] == [Status.LIVE, Status.CLOSED, Status.REFUSED]
    side = Side()
    side.h2.goaway(ErrorCode.NO_ERROR, last_sid=3)
    side.open(1, 3, 5)
    assert sorted(side.streams) == [1, 3]


def test_the_end_of_a_request_moves_something_also_where_it_is_empty():
    side = Side(limits=Limits(control_burst=100, control_per_s=0))
    for sid in range(1, 99, 2):
        side.open(sid)
        side.feed(fr.frame(fr.DATA, fr.END_STREAM, sid))
    assert side.h2._control.left == 99


@pytest.mark.parametrize("ended", [False, True])
def test_credit_of_padding_goes_back_to_a_stream_that_may_still_use_it(ended):
    side = Side(limits=Limits(stream_window=fr.DEFAULT_WINDOW, connection_window=1 << 20))
    side.open(1)
    frames = [fr.frame(fr.DATA, fr.PADDED, 1, b"\xff" + b"x" + bytes(255))] * 127  # of 256 bytes that nobody reads each
    last = fr.frame(fr.DATA, fr.PADDED | (fr.END_STREAM if ended else 0), 1, b"\xff" + b"x" + bytes(255))
    side.feed(*frames)
    assert [frame for frame in side.frames() if frame[:2] == (fr.WINDOW_UPDATE, 1)] == []
    side.feed(last)
    found = [frame for frame in side.frames() if frame[:2] == (fr.WINDOW_UPDATE, 1)]
    assert found == ([] if ended else [(fr.WINDOW_UPDATE, 1, fr.U32.pack(128 * 256))])


def test_trailers_that_depend_on_their_own_stream_reset_it():
    side = Side()
    [stream] = side.open(1)
    flags = fr.END_HEADERS | fr.END_STREAM | fr.HAS_PRIORITY
    side.feed(fr.frame(fr.HEADERS, flags, 1, fr.U32.pack(1) + b"\0" + hpack.encode([(b"a", b"b")])))
    assert stream.resets == [ErrorCode.PROTOCOL_ERROR]
    assert stream.headers == []


def test_a_client_takes_no_requests():
    side = Side(client=True)
    for sid in (1, 2):
        with pytest.raises(ConnectionFault, match="PROTOCOL_ERROR: frame of type 1 on IDLE stream"):
            side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS, sid, BLOCK))
    assert side.requests == []


def test_trailers_are_told_once_with_the_end_of_the_stream_and_never_after_it():
    side = Side()
    [stream] = side.open(1)
    trailers = fr.frame(fr.HEADERS, fr.END_HEADERS | fr.END_STREAM, 1, hpack.encode([(b"a", b"b")]))
    side.feed(trailers)
    assert (stream.headers, stream.told, stream.recv_closed) == ([[(b"a", b"b")]], 1, True)
    side.feed(trailers)
    assert (len(stream.headers), stream.resets) == (1, [ErrorCode.STREAM_CLOSED])


def test_a_clients_response_headers_are_told_without_the_end():
    side = Side(client=True)
    side.h2.take_sid()
    stream = side.h2.streams[1] = Noted(side.h2, 1)
    side.feed(fr.frame(fr.HEADERS, fr.END_HEADERS, 1, hpack.RESPONSE))
    assert (len(stream.headers), stream.told, stream.recv_closed) == (1, 0, False)


def test_data_behind_the_end_of_the_stream_resets_it_whatever_its_window():
    side = Side()
    [stream] = side.open(1, end=True)
    side.feed(fr.frame(fr.DATA, 0, 1, b"more"))
    assert stream.resets == [ErrorCode.STREAM_CLOSED]


@pytest.mark.parametrize("ended", [False, True])
def test_a_request_that_its_client_resets_gives_all_its_credit_back(ended):
    side = Side()
    [stream] = side.open(1)
    side.feed(fr.frame(fr.DATA, fr.END_STREAM if ended else 0, 1, bytes(1000)), rst(1))
    window = side.h2.recv_window
    assert (stream.held, window.left + window.owed) == (0, window.size)


def test_the_size_of_a_header_table_is_no_limit_of_a_header_list():
    side = Side()
    side.feed(fr.settings({Setting.HEADER_TABLE_SIZE: 5, Setting.ENABLE_PUSH: 1}))
    assert side.h2.peer_max_header_list is None


@pytest.mark.parametrize("order", [(1, 3), (3, 1)])
def test_settings_overflow_the_largest_of_several_windows(order):
    side = Side()
    side.open(1, 3)
    for sid in order:
        side.feed(fr.window_update(sid, 1000 * sid))
    with pytest.raises(ConnectionFault, match="INITIAL_WINDOW_SIZE overflows a window"):
        side.feed(fr.settings({WINDOW: fr.MAX_WINDOW - 2999}))
    side = Side()
    side.open(1, 3)
    for sid in order:
        side.feed(fr.window_update(sid, 1000 * sid))
    side.feed(fr.settings({WINDOW: fr.MAX_WINDOW - 3000}), rst(3), fr.settings({WINDOW: fr.MAX_WINDOW - 1000}))
    with pytest.raises(ConnectionFault, match="INITIAL_WINDOW_SIZE overflows a window"):
        side.feed(fr.settings({WINDOW: fr.MAX_WINDOW - 999}))
