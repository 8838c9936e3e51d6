"""The small pure parts: settings, windows, cutting and packing messages, what a cancelled sender leaves."""

import pytest

from nl.errors import ExhaustedError, InvalidRequestError
from nl.rpc import frames as fr
from nl.rpc import messages
from nl.rpc.flow import ReceiveWindow
from nl.rpc.frames import ConnectionFault
from nl.rpc.h2.limits import Budget
from nl.rpc.outbox import _advance


def parse(data):
    out, pos = [], 0
    while pos < len(data):
        length = int.from_bytes(data[pos : pos + 3], "big")
        out.append((data[pos + 3], data[pos + 4], data[pos + 9 : pos + 9 + length]))
        pos += 9 + length
    return out


def test_long_header_blocks_continue():
    frames = parse(fr.header_frames(b"abcdefgh", 1, end_stream=True, max_frame=3))
    assert frames == [(fr.HEADERS, fr.END_STREAM, b"abc"), (fr.CONTINUATION, 0, b"def"),
                      (fr.CONTINUATION, fr.END_HEADERS, b"gh")]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        (2, 2, "PROTOCOL_ERROR"),
        (4, 1 << 31, "FLOW_CONTROL_ERROR"),
        (5, 100, "PROTOCOL_ERROR"),
        (5, 1 << 24, "PROTOCOL_ERROR"),
    ],
)
def test_settings_out_of_range_are_errors(key, value, code):
    with pytest.raises(ConnectionFault, match=code):
        fr.parse_settings(fr.SETTING.pack(key, value))


def test_unknown_settings_are_ignored():
    assert fr.parse_settings(fr.SETTING.pack(99, 1) + fr.SETTING.pack(3, 7)) == [(3, 7)]


def test_credit_returns_in_portions_and_none_is_lost():
    window = ReceiveWindow(1000)
    announced = 0
    for _ in range(50):
        assert window.take(10)
        announced += window.give_back(10)
        assert window.left + window.owed == 1000
    assert announced + window.owed == 500
    assert not window.take(1001)


def test_a_streams_own_window_is_announced_by_halves():
    window = ReceiveWindow(1000, parts=2)
    assert window.take(600)
    assert [window.give_back(100) for _ in range(6)] == [0, 0, 0, 0, 500, 0]
    assert (window.left, window.owed) == (900, 100)


def test_a_budget_is_spent_and_grows_back():
    budget = Budget(3, 1.0)
    assert [budget.spend(0.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.spend(0.5)
    assert budget.spend(10.0)


@pytest.mark.parametrize("sizes", [[5, 40], [5, 1, 0, 100, 33], [5], [64], [5, 32, 27]])
@pytest.mark.parametrize("step", [1, 7, 32, 1000])
@pytest.mark.parametrize("end", [False, True])
def test_a_message_is_cut_into_frames_without_losing_or_copying(sizes, step, end):
    parts = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    cutter = messages.Cutter(parts)
    wire = b""
    while cutter.left:
        frames = cutter.cut(step, sid=3, max_frame=32, end_stream=end).parts
        wire += b"".join(frames)
        assert all(memoryview(each).obj in parts for each in frames if isinstance(each, memoryview))
    cut = parse(wire)
    assert b"".join(payload for _, _, payload in cut) == b"".join(parts)
    assert all(0 < len(payload) <= 32 for _, _, payload in cut)
    assert [flags for _, flags, _ in cut] == [0] * (len(cut) - 1) + [int(end)]


@pytest.mark.parametrize("sent", range(120))
def test_a_cancelled_sender_completes_the_frame_it_began_and_drops_the_rest(sent):
    frames = messages.Cutter([b"p" * 5, b"x" * 70]).cut(75, sid=1, max_frame=32)
    wire = b"".join(frames.parts)
    sent = min(sent, len(wire))
    rest, dropped = frames.split(sent)
    kept = parse(wire[:sent] + rest)
    assert sum(len(payload) for _, _, payload in kept) + dropped == 75
    assert (wire[:sent] + rest) == wire[: sent + len(rest)]


def test_advancing_skips_what_was_sent():
    parts = [b"abc", b"", b"defg", b"h"]
    index = _advance(parts, 0, 5)
    assert b"".join(parts[index:]) == b"fgh"
    assert _advance([b"a", b"b"], 0, 2) == 2


def test_gzip_round_trip_and_its_bounds():
    packed = messages.compress([bytes(50_000), bytes(50_000)])
    assert len(packed) < 1000
    assert messages.decompress(packed, max_bytes=100_000) == bytes(100_000)
    with pytest.raises(ExhaustedError):
        messages.decompress(packed, max_bytes=99_999)
    for broken in (b"nonsense", packed[:-5], packed + b"x"):
        with pytest.raises(InvalidRequestError):
            messages.decompress(broken, max_bytes=100_000)


def test_a_budget_gets_back_what_is_refunded_and_no_more_than_it_had():
    budget = Budget(2, 0.0)
    assert budget.spend(0.0) and budget.spend(0.0) and not budget.spend(0.0)
    for _ in range(10):
        budget.refund()
    assert [budget.spend(0.0) for _ in range(3)] == [True, True, False]
