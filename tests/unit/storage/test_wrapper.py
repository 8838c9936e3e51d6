"""A wrapper passes on all that the contract has, as it is, and lets no capability through by itself."""

from __future__ import annotations

import pytest
import trio.testing

from nl.blob.reader import BytesReader
from nl.errors import BlobNotFoundError, ExhaustedError
from nl.model.digest import EMPTY
from nl.storage.capabilities import Deletes
from nl.storage.contract import Store, Traits
from nl.storage.wrapper import StoreWrapper

PASSED_ON = {
    "has": (["a"],), "touch": (["a"],), "get": ("a",), "get_many": (["a"],), "put": ("a", b"1"),
    "put_many": ([("a", b"1")],), "write": ("a", BytesReader(b"1")),
}  # fmt: skip
OWN = {"capability", "run", "check", "statistics"}


class Recording:
    """Answers anything, and remembers what it was asked."""

    traits = Traits(authoritative=False)

    def __init__(self) -> None:
        self.asked = []
        self.answer = object()

    def __getattr__(self, name):
        async def operation(*args):
            self.asked.append((name, args))
            return self.answer

        return operation

    def open(self, key, **which):
        self.asked.append((key, which))
        return self.answer

    def capability(self, kind):
        return self


def test_there_is_no_operation_that_this_file_forgets():
    operations = {name for name in vars(Store) if not name.startswith("_")}
    assert operations == {*PASSED_ON, *OWN, "open", "traits"}


@pytest.mark.parametrize("name", PASSED_ON)
async def test_an_operation_reaches_the_backend_and_its_answer_the_caller(name):
    backend = Recording()
    answer = await getattr(StoreWrapper(backend), name)(*PASSED_ON[name])
    assert backend.asked == [(name, PASSED_ON[name])]
    assert answer is (None if name in {"touch", "put", "write"} else backend.answer)


def test_a_reader_is_that_of_the_backend():
    backend = Recording()
    assert StoreWrapper(backend).open("a") is StoreWrapper(backend).open("a", offset=3, length=5) is backend.answer
    assert backend.asked == [("a", {"offset": 0, "length": None}), ("a", {"offset": 3, "length": 5})]


def test_traits_are_the_backends_and_capabilities_are_not_passed_on():
    backend = Recording()
    wrapper = StoreWrapper(backend)
    assert wrapper.backend is backend
    assert wrapper.traits is backend.traits
    assert wrapper.capability(Deletes) is None


class Least(Store):
    """What a store must have, and nothing else."""

    def __init__(self, *, tracks_use=True):
        self.tracks_use = tracks_use
        self.asked = []
        self.under_way = self.most = 0

    @property
    def traits(self):
        return Traits(tracks_use=self.tracks_use)

    async def has(self, keys):
        self.asked.append(keys)
        return [None] * len(keys)

    async def get(self, key):
        return await self.one(key)

    def open(self, key, *, offset=0, length=None):
        raise NotImplementedError

    async def put(self, key, data):
        assert data == b"1"
        await self.one(key)

    async def one(self, key):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await trio.testing.wait_all_tasks_blocked()
        self.under_way -= 1
        if isinstance(key, Exception):
            raise key
        return key

    async def write(self, key, reader):
        raise NotImplementedError


async def test_asking_is_a_use_where_a_store_tracks_it_and_else_touching_is_spared():
    store, other = Least(), Least(tracks_use=False)
    for each in (store, other):
        await each.touch([EMPTY])
    assert (store.asked, other.asked) == ([[EMPTY]], [])


async def test_what_a_store_does_not_say_is_the_usual():
    store = Least()
    assert store.capability(Deletes) is None
    assert dict(store.statistics()) == {}
    await store.check()
    assert Traits() == Traits(authoritative=True, tracks_use=True)


async def test_many_are_handled_a_few_at_once_each_with_an_outcome_of_its_own():
    store = Least()
    errors = [BlobNotFoundError("b"), ExhaustedError("full")]
    keys = ["a", errors[0], "c", errors[1], *(f"{number}" for number in range(20))]
    assert await store.get_many(keys) == keys
    assert 2 <= store.most <= 8
    store.most = 0
    outcomes = await store.put_many([(key, b"1") for key in keys])
    assert outcomes == [None, errors[0], None, errors[1]] + [None] * 20
    assert 2 <= store.most <= 8
    assert await store.get_many([]) == await store.put_many([]) == []


async def test_what_is_a_bug_and_no_outcome_of_one_blob_is_raised():
    with pytest.raises(ZeroDivisionError):
        await Least().get_many(["a", ZeroDivisionError(), "b"])
    with pytest.raises(ZeroDivisionError):
        await Least().put_many([("a", b"1"), (ZeroDivisionError(), b"1")])
