"""The index alone: sums and order, against a model that adds up anew each time."""

from hypothesis import given
from hypothesis import strategies as st

from nl.plugin import Digest
from nl.stores.filesystem.index import Entry, Index

KEYS = st.sampled_from([Digest(letter * 64, number) for letter in "ab" for number in range(3)])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add oldest", "remove", "touch", "exec", "exec gone"]), KEYS, st.integers(0, 9999)
    )
)


@given(STEPS, st.sampled_from([1, 512, 4096]))
def test_bytes_and_order_are_those_of_the_entries(steps, block):
    index = Index(block)
    order, sizes, executables = [], {}, {}
    for what, key, size in steps:
        if what.startswith("add"):
            index.add(key, Entry(size, used=1.0), oldest=what == "add oldest")
            order = [each for each in order if each != key]
            order.insert(0 if what == "add oldest" else len(order), key)
            sizes[key] = size
        elif what == "remove":
            assert (index.remove(key) is None) == (key not in sizes)
            order = [each for each in order if each != key]
            sizes.pop(key, None)
        elif what == "touch":
            index.touch(key, index.blobs.get(key, Entry(0, used=0.0)), 5.0)
            if key in sizes:
                order = [each for each in order if each != key] + [key]
        elif what == "exec":
            index.add_executable(key, Entry(size, used=1.0))
            executables[key] = size
        else:
            assert index.remove_executable(key) == (key in executables)
            executables.pop(key, None)
        assert list(index.blobs) == order
        assert index.bytes == sum(-(-each // block) * block for each in [*sizes.values(), *executables.values()])
        oldest = index.oldest()
        assert (oldest[0] if oldest else None) == (order[0] if order else None)


def test_an_entry_is_known_only_by_all_of_its_identity():
    entry = Entry(10, used=1.0, inode=3, mtime_ns=4)
    assert entry.is_known_as(3, 4, 10)
    assert not any((entry.is_known_as(1, 4, 10), entry.is_known_as(3, 5, 10), entry.is_known_as(3, 4, 11)))
