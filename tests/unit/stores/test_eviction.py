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


def test_age_found_at_start_up_counts():
    index, _ = make_index(max_seconds=10)
    assert index.insert("old", 1, size=1, age_s=11) == [("old", 1)]
    assert index.insert("young", 1, size=1, age_s=9) == []


def test_reserved_bytes_push_entries_out_but_are_not_counted_as_evicted():
    index, _ = make_index(max_bytes=10)
    index.insert("a", 1, size=6)
    index.reserved = 5
    assert index.evict() == [("a", 1)]
    assert index.evicted_bytes == 6


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
