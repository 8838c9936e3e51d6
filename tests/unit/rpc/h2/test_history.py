"""Which streams were reset: exact over the span that matters, forgotten beyond it."""

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
