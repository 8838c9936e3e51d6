"""Who writes what, and who may delete it."""

import pytest
import trio
import trio.testing

from nl.plugin import Writes
from nl.storage import writes as module


async def test_a_write_is_known_for_as_long_as_one_of_them_lasts_and_ends_whatever_happens():
    writes = Writes()
    assert writes.may_delete("a")
    async with writes.under_way(["a", "b", "a"]):
        async with writes.under_way(["a"]):
            assert not writes.may_delete("a") and not writes.may_delete("b") and writes.may_delete("c")
        assert not writes.may_delete("a")
        assert not writes.replaced_since("b", 0)
    with pytest.raises(ZeroDivisionError):
        async with writes.under_way(["a"]):
            raise ZeroDivisionError
    assert writes.may_delete("a") and writes.may_delete("b") and not writes._under_way
    assert writes.now == 5


async def test_what_was_written_since_is_told_and_what_is_forgotten_is_told_to_be_safe(monkeypatch):
    monkeypatch.setattr(module, "MAX_RECENT", 2)
    writes = Writes()
    for place in "abac":
        async with writes.under_way([place]):
            began = writes.now
            assert not writes.replaced_since(place, began)
        assert writes.replaced_since(place, began)
        assert not writes.replaced_since(place, writes.now)
    assert list(writes._recent) == ["a", "c"]
    assert writes.replaced_since("never", 1) and not writes.replaced_since("never", 2)


async def test_a_write_waits_for_a_deletion_and_a_deletion_is_not_begun_twice():
    writes, order = Writes(), []

    async def write():
        async with writes.under_way(["b", "a"]):
            order.append("written")

    async with trio.open_nursery() as nursery:
        with writes.deleting("a"):
            assert not writes.may_delete("a") and writes.may_delete("b")
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            order.append("deleted")
    assert order == ["deleted", "written"]
    with pytest.raises(ZeroDivisionError), writes.deleting("a"):
        raise ZeroDivisionError
    assert writes.may_delete("a")


async def test_a_write_that_is_given_up_while_it_waits_for_a_deletion_is_over():
    writes = Writes()
    with writes.deleting("a"):
        with trio.CancelScope() as scope:
            scope.cancel()
            async with writes.under_way(["a"]):
                pytest.fail("it is being deleted")
        assert scope.cancelled_caught
    assert writes.may_delete("a") and not writes._under_way


async def test_a_write_waits_for_each_deletion_that_begins_before_its_turn():
    writes, order = Writes(), []

    async def write():
        async with writes.under_way(["a"]):
            order.append("written")

    async with trio.open_nursery() as nursery:
        with writes.deleting("a"):
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
        with writes.deleting("a"):  # before the writer has woken up
            order.append("deleted again")
            await trio.testing.wait_all_tasks_blocked()
            order.append("and gone")
    assert order == ["deleted again", "and gone", "written"]


async def test_thousands_of_writes_are_remembered():
    writes = Writes()
    async with writes.under_way(["first"]):
        pass
    for number in range(4095):
        async with writes.under_way([f"{number}"]):
            pass
    assert writes.replaced_since("first", 0) and not writes.replaced_since("first", 1)
    assert not writes.replaced_since("never", 0)
    async with writes.under_way(["last"]):
        pass
    assert writes.replaced_since("never", 0), "one is forgotten: it may have been this one"
    assert len(writes._recent) == module.MAX_RECENT == 4096


async def test_a_write_that_waits_for_one_deletion_keeps_another_from_being_begun():
    """Else it would be made in the middle of that one."""
    writes = Writes()

    async def write():
        async with writes.under_way(["a", "b"]):
            assert not writes._deleting

    async with trio.open_nursery() as nursery:
        with writes.deleting("b"):
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            assert not writes.may_delete("a") and not writes.may_delete("b")
    assert writes.may_delete("a") and writes.may_delete("b")
