"""The receiving half of flow control: no credit is lost, none is made, and it comes in portions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.rpc.flow import ReceiveWindow


@given(st.integers(1, 10_000), st.sampled_from([1, 2, 4]), st.lists(st.tuples(st.booleans(), st.integers(0, 5000))))
def test_what_the_peer_may_send_and_what_is_held_and_what_is_owed_is_always_the_window(size, parts, steps):
    window, held, announced, arrived = ReceiveWindow(size, parts=parts), 0, 0, 0
    for arrives, count in steps:
        if arrives:
            count = min(count, window.left)
            window.left -= count
            held += count
            arrived += count
        else:
            count = min(count, held)
            increment = window.give_back(count)
            held -= count
            announced += increment
            assert not increment or increment >= size // parts
        assert window.left + held + window.owed == size
        assert window.left == size - arrived + announced
        assert window.owed < max(1, size // parts)


@pytest.mark.parametrize(("parts", "announced"), [(4, [250] * 4), (2, [500] * 2), (1, [1000])])
def test_a_whole_window_comes_back_in_as_many_portions_as_it_is_told(parts, announced):
    window = ReceiveWindow(1000, parts=parts)
    window.left -= 1000
    assert [increment for increment in (window.give_back(10) for _ in range(100)) if increment] == announced
    assert (window.left, window.owed) == (1000, 0)
