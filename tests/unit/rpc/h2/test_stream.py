"""One stream's DATA: pieces are kept as views, small ones merged, their buffer counted, their credit returned once."""

import pytest

from nl.rpc import frames as fr
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole
from nl.rpc.h2.stream import Owner, Stream

WINDOW = 100_000


@pytest.fixture
def sent():
    return []


@pytest.fixture
def stream(sent):
    h2 = H2Connection(Limits(stream_window=WINDOW, connection_window=WINDOW), NoRole(), emit=sent.append)
    stream = Stream(h2, 1)
    h2.streams[1] = stream
    return stream


def arrive(stream, data, owner=None):
    stream.h2.recv_window.left -= len(data)
    stream.recv_window.left -= len(data)
    stream.add(memoryview(data), owner)


def content(stream):
    return b"".join(bytes(view) for view, _ in stream.chunks)


def test_large_pieces_are_views_of_the_buffer_and_counted_as_such(stream):
    owner, data = Owner(), bytes(5000)
    arrive(stream, data, owner)
    assert stream.chunks[0][0].obj is data
    assert (owner.held, stream.held) == (5000, 5000)
    stream.discard()
    assert (owner.held, stream.held, len(stream.chunks)) == (0, 0, 0)


def test_many_small_pieces_become_few_that_hold_no_buffer(stream):
    owner = Owner()
    sent = [bytes([number % 256]) * (number % 40) for number in range(1, 2000)]
    for each in sent:
        arrive(stream, each, owner)
    assert content(stream) == b"".join(sent)
    assert stream.held == len(b"".join(sent))
    assert len(stream.chunks) <= 1 + stream.held // 16_000
    assert owner.held == sum(len(view) for view, whose in stream.chunks if whose is owner) <= 1024


def test_a_small_piece_behind_a_large_one_of_the_buffer_does_not_copy_the_large_one(stream):
    owner, data = Owner(), bytes(5000)
    arrive(stream, data, owner)
    arrive(stream, b"x", owner)
    assert stream.chunks[0][0].obj is data
    assert content(stream) == data + b"x"


def test_copying_out_frees_that_buffer_and_no_other(stream):
    one, other = Owner(), Owner()
    arrive(stream, b"a" * 3000, one)
    arrive(stream, b"b" * 3000, other)
    stream.copy_out(one)
    assert (one.held, other.held) == (0, 3000)
    assert content(stream) == b"a" * 3000 + b"b" * 3000


def updates(sent):
    return [fr.HEADER.unpack_from(each)[4:] + fr.U32.unpack_from(each, 9) for each in sent]


def test_credit_returns_when_it_is_consumed_to_the_stream_and_to_the_connection(stream, sent):
    arrive(stream, bytes(60_000))
    stream.consumed(24_999)
    assert updates(sent) == []
    stream.consumed(1)
    assert updates(sent) == [(0, 25_000)]
    stream.consumed(35_000)
    assert updates(sent) == [(0, 25_000), (0, 35_000), (1, 60_000)]


@pytest.mark.parametrize("over", ["ended", "reset"])
def test_a_stream_that_is_over_needs_no_credit_and_the_connection_does(stream, sent, over):
    arrive(stream, bytes(60_000))
    if over == "ended":
        stream.recv_closed = True
    else:
        stream.reset_code = 8
    stream.consumed(60_000)
    assert updates(sent) == [(0, 60_000)]


def test_credit_is_not_returned_twice(stream, sent):
    arrive(stream, bytes(60_000))
    stream.discard()
    stream.consumed(60_000)
    assert updates(sent) == [(0, 60_000)]


def test_what_is_charged_and_refunded_is_what_it_was(stream):
    h2 = stream.h2
    before = (stream.send_window, h2.send_window, stream.send_credit)
    stream.charge(1000)
    assert (stream.send_window, h2.send_window) == (before[0] - 1000, before[1] - 1000)
    stream.refund(1000)
    assert (stream.send_window, h2.send_window, stream.send_credit) == before


def test_credit_is_the_smaller_of_both_windows(stream):
    h2 = stream.h2
    h2.send_window, h2.peer_initial_window = 500, 1000
    assert stream.send_credit == 500
    h2.peer_initial_window = 400
    assert stream.send_credit == 400
    stream.window_delta = -900
    assert stream.send_credit == -500


def test_a_streams_own_window_is_announced_by_halves_and_the_connections_by_quarters(stream, sent):
    for at_once, expected in ((24_999, []), (1, [(0, 25_000)]), (24_999, []), (1, [(0, 25_000), (1, 50_000)])):
        sent.clear()
        arrive(stream, bytes(at_once))
        stream.consumed(at_once)
        assert updates(sent) == expected
        assert stream.held == 0


def test_no_more_is_given_back_than_is_held(stream, sent):
    arrive(stream, bytes(30_000))
    stream.consumed(10_000)
    assert stream.held == 20_000
    stream.consumed(50_000)
    assert stream.held == 0
    window = stream.h2.recv_window
    assert window.left + window.owed == window.size
    stream.consumed(1)
    assert window.left + window.owed == window.size


@pytest.mark.parametrize(("first", "second", "merged"), [
    (10, 1023, True), (10, 1024, False), (1023, 10, True), (1024, 10, False), (5000, 1, False),
])  # fmt: skip
def test_only_small_pieces_behind_small_ones_are_copied_together(stream, first, second, merged):
    owner = Owner()
    arrive(stream, b"a" * first, owner)
    arrive(stream, b"b" * second, owner)
    assert len(stream.chunks) == (1 if merged else 2)
    assert owner.held == (0 if merged else first + second)
    assert content(stream) == b"a" * first + b"b" * second


@pytest.mark.parametrize("size", [16_383, 16_384])
def test_what_was_copied_together_takes_more_until_it_is_large(stream, size):
    arrive(stream, bytes(size))  # of no buffer
    arrive(stream, b"x")
    assert len(stream.chunks) == (1 if size < 16_384 else 2)


def test_what_is_copied_out_no_longer_refers_to_the_buffer(stream):
    one, other = Owner(), Owner()
    buffers = [bytearray(b"a" * 3000), bytearray(b"b" * 3000)]
    for buffer, owner in zip(buffers, (one, other), strict=True):
        arrive(stream, buffer, owner)
    stream.copy_out(one)
    buffers[0][:] = bytes(3000)
    assert content(stream) == b"a" * 3000 + b"b" * 3000
    assert [view.obj is buffer for (view, _), buffer in zip(stream.chunks, buffers, strict=True)] == [False, True]
    stream.discard()
    assert (one.held, other.held) == (0, 0)
