"""Which streams were reset: exact over the span that matters, forgotten beyond it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.rpc.h2.history import SPAN, ResetHistory

SIDS = st.one_of(st.integers(0, 3 * SPAN), st.integers(0, 2**30)).map(lambda number: 2 * number + 1)


@given(st.lists(SIDS, max_size=30))
def test_it_knows_every_reset_stream_of_the_newest_span_and_no_other(sids):
    history, added = ResetHistory(), set()
    for sid in sids:
        history.add(sid)
        added.add(sid)
        newest = max(added)
        for known in added:
            assert (known in history) == (newest - known < 2 * SPAN), (known, newest)
        for near in (sid - 2, sid + 2, newest + 2, newest - 2 * SPAN, newest - 2 * SPAN + 2):
            assert near in added or near not in history, (near, newest)


def test_an_empty_one_knows_none():
    assert 1 not in ResetHistory()
    assert 2 * SPAN + 1 not in ResetHistory()


@pytest.mark.parametrize("start", [0, 1, SPAN - 1, 5 * SPAN + 17])
@pytest.mark.parametrize("step", [1, 2, SPAN // 2, SPAN - 2, SPAN - 1, SPAN, SPAN + 1, 3 * SPAN])
def test_each_step_forgets_what_falls_out_of_the_span_and_nothing_else(start, step):
    history, numbers = ResetHistory(), range(start, start + SPAN)
    for number in numbers:
        history.add(2 * number + 1)
    newest = start + SPAN - 1 + step
    history.add(2 * newest + 1)
    known = {number for number in range(start, newest + SPAN) if 2 * number + 1 in history}
    assert known == {number for number in (*numbers, newest) if newest - number < SPAN}


@pytest.mark.parametrize("back", [SPAN - 1, SPAN, SPAN + 1, 2 * SPAN])
def test_one_that_is_too_old_is_neither_remembered_nor_taken_for_another(back):
    history, newest = ResetHistory(), 10 * SPAN
    history.add(2 * newest + 1)
    old = newest - back
    history.add(2 * old + 1)
    assert (2 * old + 1 in history) == (back < SPAN)
    same_place = {old + times * SPAN for times in range(4)} - {old, newest}
    assert not any(2 * number + 1 in history for number in same_place)
    history.discard(2 * (newest - SPAN) + 1)  # which has the same place in the ring
    assert 2 * newest + 1 in history
    history.discard(2 * newest + 1)
    assert 2 * newest + 1 not in history
