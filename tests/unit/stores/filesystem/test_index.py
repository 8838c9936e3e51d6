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


def test_uses_by_another_process_that_are_learned_of_late_are_put_in_order_among_each_other():
    shared = UseTable()
    index = Index(1, shared)
    for used, letter in ((1, "a"), (2, "b"), (7, "c")):
        index.add(letter * 64, 1, used=used)
    for letter, used in (("a", 10), ("b", 5)):  # what is learned first is not the oldest
        shared.note(index.cells[index.slots[letter * 64]], used)
    gone = []
    while (key := oldest(index)) is not None:
        gone.append(key[0])
        index.remove(key)
    assert gone == ["b", "c", "a"]
    assert index.moved == 2


def test_lines_learned_of_late_are_kept_in_order_and_counted_when_they_are_many(monkeypatch):
    monkeypatch.setattr(use_order, "RUN", 4)
    used = array("d", range(11))
    order = UseOrder(used)
    for slot in (3, 9, 1, 7, 5, 8, 2, 10):
        order.move(slot, used[slot])
    assert order.lines == 8, "as many as a run has are not kept apart"
    order.move(4, used[4])
    assert not order.is_empty and order.lines == 8
    found = []
    while not order.is_empty:
        if (slot := order.oldest()) is not None:
            found.append(slot)
            used[slot] = math.nan
    assert found == [1, 2, 3, 4, 5, 7, 8, 9, 10]


def test_a_run_is_closed_when_it_is_full(monkeypatch):
    monkeypatch.setattr(use_order, "RUN", 4)
    used = array("d", [5.0] * 8)
    order = UseOrder(used)
    for slot in range(3):
        order.note(slot, 5.0)
    assert (len(order._runs), len(order._tail)) == (0, 3)
    order.note(3, 5.0)
    assert (len(order._runs), len(order._tail), order.lines) == (1, 0, 4)
    order.note_all([4, 5, 6, 7], 5.0)
    assert (len(order._runs), len(order._tail), order.lines) == (2, 0, 8)
    order.clear()
    assert order.is_empty and order.lines == 0 and order.oldest() is None


def test_what_was_used_since_is_told_latest_first_and_once(monkeypatch):
    monkeypatch.setattr(use_order, "RUN", 4)
    used = array("d", [0.0] * 10)
    order = UseOrder(used)
    for now, slot in enumerate((0, 1, 2, 3, 4, 5, 6, 7, 8, 0), 1):
        used[slot] = now
        order.note(slot, now)
    assert list(order.used_since(3.0)) == [[8, 0], [4, 5, 6, 7], [3]]
    assert list(order.used_since(4.0)) == [[8, 0], [4, 5, 6, 7]]
    assert list(order.used_since(10.0)) == []


def test_a_blob_or_variant_of_another_size_is_not_the_one_asked_for():
    index = Index(1, UseTable())
    digest, other = Digest("a" * 64, 10), Digest("a" * 64, 11)
    assert index.blob(digest) is index.executable(digest) is None
    slot, variant = index.add("a" * 64, 10, used=1.0), index.add_executable("a" * 64, 10)
    assert (index.blob(digest), index.executable(digest)) == (slot, variant)
    assert index.blob(other) is index.executable(other) is None


def test_sizes_are_rounded_up_to_blocks():
    index = Index(512, UseTable())
    assert [index.cost(size) for size in (0, 1, 511, 512, 513)] == [0, 512, 512, 512, 1024]
    assert [index.most_that_costs(limit) for limit in (511, 512, 1023, 1024)] == [0, 512, 512, 1024]


def test_rows_of_what_has_gone_are_used_again_and_know_nothing_of_it():
    index = Index(1, UseTable())
    for number in range(50):
        key = f"{number:064x}"
        slot = index.add(key, number, used=float(number + 1))
        assert not index.is_known(slot) and index.identity(slot) == (0, 0)
        assert (index.key_at(slot), index.sizes[slot], index.used[slot]) == (key, number, number + 1)
        assert index.cells[slot] == UseTable.cell_of(key)
        index.know(slot, inode=number + 1, mtime_ns=7)
        assert index.identity(slot) == (number + 1, 7)
        index.remove(key)
    assert len(index.sizes) == 1


def test_uses_are_told_to_others_unless_there_are_none():
    index = Index(1, shared := UseTable())
    keys = [letter * 64 for letter in "abc"]
    one, two, three = (index.add(key, 1, used=1.0) for key in keys)
    index.touch(one, 2.0)
    index.touch_all([two], 2.0)
    assert not any(shared.times[index.cells[slot]] for slot in (one, two, three))
    index.tell_keys(keys[2:], 2.0)
    assert shared.times[index.cells[three]] == 2.0, "what is asked for may not be in the index yet"
    shared.is_alone = False
    assert not index.is_alone
    index.touch(one, 3.0)
    index.touch_all([two], 4.0)
    index.tell_keys(keys[2:], 5.0)
    assert [shared.times[index.cells[slot]] for slot in (one, two, three)] == [3.0, 4.0, 5.0]
    assert [index.used[slot] for slot in (one, two, three)] == [3.0, 4.0, 1.0]
    assert [index.last_used(slot) for slot in (one, two, three)] == [3.0, 4.0, 5.0]
    shared.note(index.cells[one], 2.5)
    assert index.last_used(one) == 3.0


def test_what_is_told_late_never_makes_a_use_older():
    index = Index(1, shared := UseTable())
    one, two = (index.add(letter * 64, 1, used=used) for letter, used in (("a", 2.0), ("b", 3.0)))
    shared.note(index.cells[one], 2.5)
    assert list(index.tell_uses(1.0)) == [None]
    assert [shared.times[index.cells[slot]] for slot in (one, two)] == [2.5, 3.0]


def test_uses_leave_no_more_lines_than_there_are_files_for(monkeypatch):
    monkeypatch.setattr(use_order, "RUN", 4)
    monkeypatch.setattr(use_order, "_SLACK", 8)
    for way in ("touch", "touch_all"):
        index = Index(1, UseTable())
        slot = index.add("a" * 64, 1, used=1.0)
        for now in range(2, 200):
            index.touch(slot, now) if way == "touch" else index.touch_all([slot], now)
        assert index.order.lines <= 2 + 8 + 2 * 4


def test_rounds_go_on_for_ever_and_each_forgets_the_one_before():
    index = Index(1, UseTable())
    for _ in range(600):  # more than a byte counts
        index.begin_round()
        slot = index.add("a" * 64, 1, used=1.0)
        assert list(index.unseen()) == []
        index.begin_round()
        assert [key for group in index.unseen() for key, _ in group] == ["a" * 64]
        index.see(slot)
        assert list(index.unseen()) == []


def test_what_was_not_seen_is_told_in_groups_that_cover_all():
    index = Index(1, UseTable())
    keys = [f"{number:064x}" for number in range(4096 + 4096 + 1)]
    for key in keys:
        index.add(key, 1, used=1.0)
    index.begin_round()
    groups = [[key for key, _ in group] for group in index.unseen()]
    assert [len(group) for group in groups if group] == [4096, 4096, 1]
    assert [key for group in groups for key in group] == keys


def test_what_was_not_seen_is_told_also_where_little_is_left():
    index = Index(1, UseTable())
    keys = [f"{number:064x}" for number in range(4096)]
    for key in keys:
        index.add(key, 1, used=1.0)
    index.add("a" * 64, 1, used=1.0)
    index.add_executable("b" * 64, 1)
    for key in keys:
        index.remove(key)
    index.begin_round()
    assert [pair for group in index.unseen() for pair in group] == [("a" * 64, False), ("b" * 64, True)]


def test_what_is_cleared_is_as_new():
    index = Index(1, UseTable())
    index.add("a" * 64, 10, used=1.0)
    index.add_executable("a" * 64, 10)
    index.remove("a" * 64)
    index.add("b" * 64, 10, used=2.0)
    index.clear()
    assert (len(index), index.bytes, index.is_empty, index.oldest()) == (0, 0, True, None)
    assert index.executable(Digest("a" * 64, 10)) is index.blob(Digest("b" * 64, 10)) is None
    assert index.add("c" * 64, 3, used=1.0) == 0
    assert index.bytes == 3


def test_what_is_cleared_leaves_nothing_in_the_order_however_it_was_learned_of():
    index = Index(1, UseTable())
    index.add("a" * 64, 10, used=1.0)
    index.add_late("b" * 64, 10, used=0.5)
    index.order.add_found([(0.75, index.add_found("c" * 64, 10, used=0.75))])
    index.clear()
    assert index.is_empty and index.oldest() is None
    slot = index.add("d" * 64, 3, used=2.0)
    assert index.oldest() == slot and list(index.order.used_since(0.0)) == [[slot]]
