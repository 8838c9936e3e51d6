import time

from hypothesis import given
from hypothesis import strategies as st

from nl.config.types import EvictionPolicy
from nl.storage.eviction import LruIndex


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def make_index(**policy):
    clock = Clock()
    return LruIndex(EvictionPolicy(**policy), clock=clock), clock


def test_an_expired_entry_is_never_returned():
    index, clock = make_index(max_seconds=10)
    index.insert("a", 1, size=1)
    clock.now = 10
    assert index.get("a") == 1
    clock.now = 20.5
    assert index.get("a") is None
    assert index.peek("a") is None
    assert index.evict() == [("a", 1)]


def test_using_an_entry_makes_it_young_again_and_peeking_does_not():
    index, clock = make_index(max_seconds=10)
    for key in "ab":
        index.insert(key, key, size=1)
    clock.now = 9
    index.get("a")
    index.peek("b")
    clock.now = 15
    assert index.evict() == [("b", "b")]


def test_what_was_evicted_is_counted_and_what_was_taken_out_or_replaced_is_not():
    index, _ = make_index(max_bytes=10)
    assert (index.evicted_count, index.evicted_bytes) == (0, 0)
    index.insert("a", 1, size=3)
    index.insert("a", 2, size=4)
    index.insert("b", 3, size=5)
    assert index.discard("b") == 3
    assert (index.evicted_count, index.evicted_bytes, index.total_bytes) == (0, 0, 4)
    assert index.insert("c", 4, size=5) == []
    assert index.insert("d", 5, size=10) == [("a", 2), ("c", 4)]
    assert (index.evicted_count, index.evicted_bytes, index.total_bytes) == (2, 9, 10)


def test_what_could_never_stay_is_known_beforehand():
    index, _ = make_index(max_bytes=10)
    assert [index.fits(size) for size in (0, 10, 11)] == [True, True, False]
    index.insert("a", 1, size=10)
    assert index.fits(10), "were it alone"
    unbounded, _ = make_index(max_count=1)
    assert unbounded.fits(1 << 60)


def test_an_entry_that_could_never_stay_does_not():
    index, _ = make_index(max_bytes=10)
    index.insert("a", 1, size=3)
    assert index.insert("b", 2, size=11) == [("a", 1), ("b", 2)]
    assert (len(index), index.total_bytes) == (0, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(0, 9), st.integers(0, 40)),
        st.tuples(st.sampled_from(["get", "peek", "discard"]), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 9), st.just(0)),
    ),
    max_size=60,
)
POLICIES = st.builds(
    dict, max_bytes=st.sampled_from([0, 50, 100]), evict_bytes=st.sampled_from([0, 20, 50]),
    max_seconds=st.sampled_from([0, 12]), max_count=st.sampled_from([0, 3]),
)


@given(policy=POLICIES, steps=STEPS)
def test_it_agrees_with_a_plain_list_kept_in_order_of_use(policy, steps):
    """The model: a list of (key, size, used_at), oldest first, and the policy applied from its front."""
    index, clock = make_index(**policy)
    model = []

    def expired(entry):
        return policy["max_seconds"] and clock.now - entry[2] > policy["max_seconds"]

    for verb, key, size in steps:
        known = next((entry for entry in model if entry[0] == key), None)
        if verb == "wait":
            clock.now += key
        elif verb == "insert":
            model = [entry for entry in model if entry[0] != key] + [(key, size, clock.now)]
            gone = []
            if policy["max_bytes"] and sum(entry[1] for entry in model) > policy["max_bytes"]:
                low = policy["max_bytes"] - policy["evict_bytes"]
                while model and (total := sum(entry[1] for entry in model)) > low:
                    if len(model) == 1 and total <= policy["max_bytes"]:
                        break
                    gone.append(model.pop(0)[0])
            while policy["max_count"] and len(model) > policy["max_count"]:
                gone.append(model.pop(0)[0])
            while model and expired(model[0]):
                gone.append(model.pop(0)[0])
            assert [pair[0] for pair in index.insert(key, key, size=size)] == gone
        elif verb == "discard":
            assert index.discard(key) == (known and key)
            model = [entry for entry in model if entry[0] != key]
        else:
            alive = known if known and not expired(known) else None
            assert getattr(index, verb)(key) == (alive and key)
            if verb == "get" and alive:
                model = [entry for entry in model if entry[0] != key] + [(key, known[1], clock.now)]
        assert list(index) == [entry[0] for entry in model]
        assert index.total_bytes == sum(entry[1] for entry in model)


def test_ages_are_counted_on_the_monotonic_clock():
    """A wall clock that is set would empty it, or keep what has expired."""
    index = LruIndex(EvictionPolicy(max_seconds=1))
    assert abs(index._clock() - time.monotonic()) < 600


def test_eviction_comes_in_batches_but_for_a_last_entry_that_fits():
    index, _ = make_index(max_bytes=10, evict_bytes=4)
    for key in "abcde":
        assert index.insert(key, key, size=2) == []
    assert [key for key, _ in index.insert("f", "f", size=1)] == ["a", "b", "c"], "down to six"
    assert [key for key, _ in index.insert("g", "g", size=9)] == ["d", "e", "f"]
    assert list(index) == ["g"] and index.total_bytes == 9


def test_all_that_has_expired_goes_whatever_else_the_policy_says():
    index, clock = make_index(max_seconds=10, max_count=100, max_bytes=100)
    for key in "abc":
        index.insert(key, key, size=1)
    clock.now = 20
    assert index.insert("d", "d", size=1) == [("a", "a"), ("b", "b"), ("c", "c")]
    assert list(index) == ["d"] and index.total_bytes == 1
