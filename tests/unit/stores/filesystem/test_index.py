"""The index and its order of use alone: sums and order, against a model that adds up anew each time."""

import math
from array import array

from hypothesis import given
from hypothesis import strategies as st

from nl.plugin import Digest, DigestFunction
from nl.stores.filesystem import use_order
from nl.stores.filesystem.index import Index
from nl.stores.filesystem.names import file_name, index_key, key_in_blobs, name_of
from nl.stores.filesystem.use_order import UseOrder
from nl.stores.filesystem.uses import UseTable

KEYS = st.sampled_from([letter * 64 for letter in "abcdef"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "found", "remove", "touch", "exec", "exec gone"]), KEYS, st.integers(0, 9999))
)


def oldest(index):
    while (slot := index.oldest()) is None and not index.is_empty:
        pass
    return None if slot is None else index.key_at(slot)


@given(STEPS, st.sampled_from([1, 512, 4096]))
def test_bytes_and_order_are_those_of_the_entries(steps, block):
    index = Index(block, UseTable())
    order, sizes, executables, used = [], {}, {}, set()
    for now, (what, key, size) in enumerate(steps, 1):
        others = [each for each in order if each != key]
        if what == "add":
            index.add(key, size, used=now)
            order, sizes[key] = [*others, key], size
        elif what == "found":
            if key in used:
                continue  # the shared table knows better than the file's atime
            slot = index.add_found(key, size, used=-now)
            index.order.add_found([(-now, slot)])
            order, sizes[key] = [key, *others], size
        elif what == "remove":
            assert index.remove(key) == (key in sizes)
            order = others
            sizes.pop(key, None)
        elif what == "touch":
            if (slot := index.slots.get(key)) is not None:
                index.touch(slot, now)
                used.add(key)
                order = [*others, key]
        elif what == "exec":
            index.add_executable(key, size)
            executables[key] = size
        else:
            assert index.remove_executable(key) == (key in executables)
            executables.pop(key, None)
        assert oldest(index) == (order[0] if order else None)
        assert index.bytes == sum(-(-each // block) * block for each in [*sizes.values(), *executables.values()])
        assert {key: index.sizes[slot] for key, slot in index.slots.items()} == sizes
    for key in order:
        assert oldest(index) == key
        index.remove(key)


@given(st.lists(st.one_of(st.integers(0, 40), st.lists(st.integers(0, 40), min_size=1)), max_size=300))
def test_the_order_is_exact_and_bounded_however_often_what_is_used(uses):
    """Runs of 4 lines, so that all of it is swept and merged all the time."""
    before, use_order.RUN, use_order._SLACK = (use_order.RUN, use_order._SLACK), 4, 8
    try:
        used = array("d", [math.nan]) * 41
        order, model = UseOrder(used), {}
        for now, use in enumerate(uses):
            slots = [use] if isinstance(use, int) else use
            for slot in slots:
                used[slot] = now
                model.pop(slot, None)
                model[slot] = now
            if isinstance(use, int):
                order.note(use, now)
            else:
                order.note_all(slots, now)
            for _ in slots:
                order.sweep(len(model))
            assert order.lines <= 2 * len(model) + 8 + 2 * 4 + len(slots)
        times = []
        while not order.is_empty:
            if (slot := order.oldest()) is not None:
                times.append(model.pop(slot))
                used[slot] = math.nan
        assert times == sorted(times) and not model
    finally:
        use_order.RUN, use_order._SLACK = before


def test_what_another_process_used_later_is_not_the_oldest():
    shared = UseTable()
    index = Index(1, shared)
    for number, letter in enumerate("abc", 1):
        index.add(letter * 64, 1, used=number)
    shared.note(index.cells[index.slots["a" * 64]], 2.5)
    assert oldest(index) == "b" * 64
    index.remove("b" * 64)
    assert oldest(index) == "a" * 64
    assert index.moved == 1


def test_an_entry_is_known_only_by_all_of_its_identity():
    index = Index(1, UseTable())
    slot = index.add("a" * 64, 10, used=1.0)
    assert not index.is_known(slot)
    index.know(slot, inode=3, mtime_ns=4)
    assert index.is_known_as(slot, inode=3, mtime_ns=4, size=10)
    for inode, mtime_ns, size in ((1, 4, 10), (3, 5, 10), (3, 4, 11)):
        assert not index.is_known_as(slot, inode=inode, mtime_ns=mtime_ns, size=size)
    index.remove("a" * 64)
    assert not index.is_known(index.add("b" * 64, 10, used=2.0))


def test_a_round_tells_what_was_not_seen():
    index = Index(1, UseTable())
    for letter in "abc":
        index.add(letter * 64, 1, used=1.0)
    index.add_executable("a" * 64, 1)
    index.remove("c" * 64)
    index.begin_round()
    index.see(index.slots["a" * 64])
    index.add("d" * 64, 1, used=2.0)
    assert [item for group in index.unseen() for item in group] == [("b" * 64, False), ("a" * 64, True)]


@given(st.sampled_from(list(DigestFunction)), st.integers(0, 10**12))
def test_keys_of_the_index_and_file_names_say_the_same(function, size):
    digest = Digest("0a" * 32, size, function)
    assert key_in_blobs(name_of(digest), size) == index_key(digest)
    assert file_name(index_key(digest), size) == name_of(digest)
    wrong = key_in_blobs(name_of(digest), size + 1)
    assert wrong != index_key(digest) and file_name(wrong, size + 1) == name_of(digest)


def test_uses_that_are_being_told_end_where_the_index_is_cleared_meanwhile():
    index = Index(1, UseTable())
    for number in range(3 * use_order.RUN):
        index.add(f"{number:064x}", 1, used=float(number + 1))
    telling = index.tell_uses(0.0)
    next(telling)
    index.clear()
    assert list(telling) == []
