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


@pytest.mark.parametrize("left", [MIN_ROOM - 1, MIN_ROOM, MIN_ROOM + 1])
def test_a_buffer_is_read_into_as_long_as_it_has_room(stream, left):
    inbox = Inbox()
    buffer = receive(inbox, stream, ARENA_SIZE - left, held=ARENA_SIZE - left)
    again = inbox.for_reading(0.0, [stream])
    assert (again is buffer) == (left >= MIN_ROOM)
    assert again.fill == (buffer.fill if again is buffer else 0)


@pytest.mark.parametrize("held", [ARENA_SIZE // 2 - 1, ARENA_SIZE // 2])
def test_a_full_buffer_is_kept_for_half_of_it_and_not_for_less(stream, held):
    inbox = Inbox()
    buffer = receive(inbox, stream, ARENA_SIZE - 100, held=held)
    inbox.for_reading(0.0, [stream])
    assert (buffer in inbox.retired) == (held >= ARENA_SIZE // 2)
    assert bytes(stream.chunks[0][0]) == bytes(held)


def test_at_rest_a_connection_without_a_buffer_has_nothing_to_put_away(stream):
    inbox = Inbox()
    inbox.rest([stream])
    receive(inbox, stream, 100)
    inbox.rest([stream])
    inbox.rest([stream])
    assert inbox.current is None


@pytest.mark.parametrize("unparsed", [0, 10])
@pytest.mark.parametrize("left", [MIN_ROOM - 1, MIN_ROOM])
def test_a_buffer_that_is_as_good_as_full_is_retired_at_rest(stream, left, unparsed):
    """What comes next would need another one in any case; what is not parsed yet stays where it is."""
    inbox = Inbox()
    size = ARENA_SIZE - left
    buffer = receive(inbox, stream, size, held=size - 100, parsed=size - unparsed)
    inbox.rest([stream])
    retired = left < MIN_ROOM and not unparsed
    assert (buffer in inbox.retired, inbox.current is buffer) == (retired, not retired)


def test_how_long_a_buffer_has_been_kept_counts_from_when_it_was_taken(stream, pool):
    inbox = Inbox()
    receive(inbox, stream, 100, now=1.0)
    inbox.rest([stream])  # into the pool, and out of it again
    receive(inbox, stream, 20_000, held=10_000, now=50.0)
    inbox.compact(50.0 + COMPACT_AFTER_S - 0.01, [stream])
    assert inbox.kept_bytes() > 0
    inbox.compact(50.0 + COMPACT_AFTER_S, [stream])
    assert inbox.kept_bytes() == 0


@pytest.mark.parametrize("unparsed", [MIN_ROOM - 1, MIN_ROOM])
def test_much_that_is_not_parsed_yet_stays_where_it_is(stream, unparsed):
    inbox = Inbox()
    buffer = receive(inbox, stream, 100_000, held=5000, parsed=100_000 - unparsed)
    inbox.compact(COMPACT_AFTER_S, [stream])
    assert buffer.held == 0
    assert (inbox.current is buffer) == (unparsed >= MIN_ROOM)
    again = inbox.for_reading(2.0, [stream])
    assert again.fill - inbox.parsed == unparsed
    assert bytes(stream.chunks[0][0]) == bytes(5000)


@pytest.mark.parametrize("held", [ARENA_SIZE // 2 - 1, ARENA_SIZE // 2])
def test_a_retired_buffer_of_which_less_than_half_is_held_is_freed_after_a_while(stream, pool, held):
    inbox = Inbox()
    full = receive(inbox, stream, ARENA_SIZE - 10, held=ARENA_SIZE - 10)
    current = receive(inbox, stream, 100)
    view, _ = stream.chunks.pop()
    stream.chunks.append((view[:held], full))
    full.release(len(view) - held)
    inbox.compact(COMPACT_AFTER_S, [stream])
    assert (full in inbox.retired) == (held >= ARENA_SIZE // 2)
    assert inbox.current is current or current in pool


def test_at_the_end_a_buffer_that_nobody_looks_at_is_for_the_next_connection(stream, pool):
    inbox = Inbox()
    buffer = receive(inbox, stream, 100)
    inbox.close()
    inbox.close()
    assert pool == [buffer]
    arena.drop_pool()
    assert pool == []
