"""Receive buffers: none for an idle connection, one kept long only for much, back in the pool in the end."""

import pytest

from nl.rpc import arena
from nl.rpc.arena import ARENA_SIZE, COMPACT_AFTER_S, COPY_OUT_BELOW, MAX_POOLED, MIN_ROOM, Inbox
from nl.rpc.h2.limits import Limits
from nl.rpc.h2.protocol import H2Connection, NoRole
from nl.rpc.h2.stream import Stream


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    found = []
    monkeypatch.setattr(arena, "_pool", found)
    return found


@pytest.fixture
def stream():
    return Stream(H2Connection(Limits(), NoRole(), emit=lambda data: None), 1)


def receive(inbox, stream, count, *, held=0, now=0.0, parsed=None):
    """`count` bytes arrive, the first `held` of them stay with the stream; how many have been parsed."""
    buffer = inbox.for_reading(now, [stream])
    start = buffer.fill
    assert ARENA_SIZE - start >= min(count, MIN_ROOM)
    buffer.view[start : start + count] = bytes([start % 251]) * count
    buffer.fill += count
    if held:
        stream.add(buffer.view[start : start + held], buffer)
    inbox.parsed = buffer.fill if parsed is None else start + parsed
    return buffer


def test_a_connection_that_holds_nothing_keeps_no_buffer(stream, pool):
    inbox = Inbox()
    buffer = receive(inbox, stream, 5000)
    inbox.rest([stream])
    assert (inbox.current, inbox.kept_bytes(), pool) == (None, 0, [buffer])
    assert inbox.for_reading(0.0, [stream]) is buffer
    assert buffer.fill == 0


@pytest.mark.parametrize("left", [1, 9, 5000])
def test_a_frame_in_part_goes_on_in_the_next_buffer(stream, left):
    inbox = Inbox()
    buffer = receive(inbox, stream, 6000, parsed=6000 - left)
    rest = bytes(buffer.view[6000 - left : 6000])
    inbox.rest([stream])
    assert inbox.current is None
    again = inbox.for_reading(0.0, [stream])
    assert (bytes(again.view[: again.fill]), inbox.parsed) == (rest, 0)


@pytest.mark.parametrize("held", [COPY_OUT_BELOW, COPY_OUT_BELOW + 1])
def test_a_few_unread_bytes_are_copied_and_many_keep_their_buffer(stream, held):
    inbox = Inbox()
    receive(inbox, stream, 10_000, held=held)
    inbox.rest([stream])
    if held == COPY_OUT_BELOW:
        assert (inbox.current, inbox.kept_bytes()) == (None, 0)
    else:
        assert inbox.current is not None
        assert inbox.kept_bytes() == ARENA_SIZE - held
    assert bytes(stream.chunks[0][0]) == bytes(held)


def test_a_full_buffer_is_kept_for_its_views_and_pooled_with_the_last_of_them(stream, pool):
    inbox = Inbox()
    full = receive(inbox, stream, ARENA_SIZE - 100, held=ARENA_SIZE - 100)
    other = receive(inbox, stream, 10)
    assert other is not full
    assert inbox.retired == {full}
    assert inbox.kept_bytes() == 100 + ARENA_SIZE
    stream.discard()
    assert (inbox.retired, pool) == (set(), [full])


def test_a_full_buffer_of_which_little_is_held_is_free_at_once(stream, pool):
    inbox = Inbox()
    full = receive(inbox, stream, ARENA_SIZE - 100, held=10_000)
    receive(inbox, stream, 10)
    assert inbox.retired == set()
    assert inbox.current is full or pool == [full]
    assert bytes(stream.chunks[0][0]) == bytes(10_000)


def test_what_a_few_bytes_keep_is_freed_after_a_while_and_not_before(stream):
    inbox = Inbox()
    receive(inbox, stream, 20_000, held=10_000)
    inbox.rest([stream])
    inbox.compact(COMPACT_AFTER_S - 0.01, [stream])
    assert inbox.kept_bytes() > 0
    inbox.compact(COMPACT_AFTER_S, [stream])
    assert (inbox.kept_bytes(), inbox.current) == (0, None)
    assert bytes(stream.chunks[0][0]) == bytes(10_000)


def test_a_buffer_of_which_most_is_held_is_not_copied(stream):
    inbox = Inbox()
    buffer = receive(inbox, stream, ARENA_SIZE, held=ARENA_SIZE // 2)
    inbox.compact(100.0, [stream])
    assert stream.chunks[0][1] is buffer


def test_the_pool_is_bounded(stream, pool):
    inboxes = [Inbox() for _ in range(MAX_POOLED + 10)]
    for inbox in inboxes:
        receive(inbox, stream, 10)
    for inbox in inboxes:
        inbox.close()
    assert len(pool) == MAX_POOLED


def test_a_buffer_that_is_still_looked_at_when_its_connection_ends_is_not_given_to_another(stream, pool):
    inbox = Inbox()
    receive(inbox, stream, 100_000, held=50_000)
    inbox.close()
    assert (pool, inbox.kept_bytes()) == ([], 0)
    stream.discard()
    assert pool == []
