"""A store made of parts: each key goes to its own, each part that is concerned is asked once, and what the whole can do
is what all can.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import trio

from nl.blob.reader import BytesReader
from nl.errors import BlobNotFoundError, InvalidRequestError, UnavailableError
from nl.storage.capabilities import (
    BlobSizeLimit,
    Deletes,
    Discards,
    Link,
    LocalFiles,
    Pins,
    Removals,
    ScanPage,
    Scans,
)
from nl.storage.contract import Traits
from nl.storage.partition import PartitionedStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, find


class Part(MemoryStore):
    """Notes what it is asked, and can do what it is told to."""

    def __init__(self, *able, limit=0, traits=None, page=2):
        super().__init__(MemoryOptions(), BareContext())
        self.able, self.limit, self.page = able, limit, page
        self.traits_ = traits or Traits()
        self.trips = []
        self.pinned = []

    @property
    def traits(self):
        return self.traits_

    def capability(self, kind):
        if kind is BlobSizeLimit:
            return self if self.limit else None
        return self if kind in self.able else None

    def max_blob_bytes(self):
        return self.limit

    async def has(self, keys):
        self.trips.append(("has", list(keys)))
        return await super().has(keys)

    async def touch(self, keys):
        self.trips.append(("touch", list(keys)))

    async def get_many(self, keys):
        self.trips.append(("get_many", list(keys)))
        return await super().get_many(keys)

    async def put_many(self, blobs):
        self.trips.append(("put_many", [key for key, _ in blobs]))
        return await super().put_many(blobs)

    async def delete(self, keys):
        self.trips.append(("delete", list(keys)))
        await super().delete(keys)

    async def scan(self, cursor="", *, limit=1000):
        keys = sorted(self._index)
        at = int(cursor or 0)
        more = at + min(limit, self.page)
        return ScanPage([(key, 1) for key in keys[at:more]], str(more) if more < len(keys) else "")

    @contextmanager
    def pin(self, digests):
        self.pinned.append(list(digests))
        yield
        self.pinned.append("let go")

    async def link_files(self, links):
        self.trips.append(("link", [link.path for link in links]))
        return [link.digest for link in links if "gone" in link.digest]

    async def adopt_file(self, digest, path):
        self.trips.append(("adopt", [digest, path]))


class ByFirstLetter(PartitionedStore):
    def part_of(self, key):
        return "abc".index(key[0])


async def stored(*parts, names=("a1", "b1", "a2", "c1", "b2")):
    store = ByFirstLetter(parts)
    assert await store.put_many([(name, name.encode()) for name in names]) == [None] * len(names)
    for part in parts:
        part.trips.clear()
    return store


async def test_many_keys_are_one_trip_to_each_part_that_is_concerned_and_come_back_in_order():
    one, two, three = Part(), Part(), Part()
    store = ByFirstLetter([one, two, three])
    await store.put_many([("b1", b"1"), ("a1", b"22"), ("b2", b"333")])
    assert await store.has(["b2", "a1", "b3", "b1"]) == [3, 2, None, 1]
    found = await store.get_many(["b2", "a1", "b3", "b1"])
    assert found[:2] + found[3:] == [b"333", b"22", b"1"] and isinstance(found[2], BlobNotFoundError)
    await store.touch(["b2", "a1", "b1"])
    assert one.trips == [("put_many", ["a1"]), ("has", ["a1"]), ("get_many", ["a1"]), ("touch", ["a1"])]
    assert two.trips == [("put_many", ["b1", "b2"]), ("has", ["b2", "b3", "b1"]), ("get_many", ["b2", "b3", "b1"]),
                         ("touch", ["b2", "b1"])]  # fmt: skip
    assert three.trips == []


async def test_the_parts_are_asked_at_once(autojump_clock):
    class Far(Part):
        async def has(self, keys):
            await trio.sleep(1)
            return await super().has(keys)

        async def get_many(self, keys):
            await trio.sleep(1)
            return await super().get_many(keys)

        async def put_many(self, blobs):
            await trio.sleep(1)
            return await super().put_many(blobs)

        async def touch(self, keys):
            await trio.sleep(1)

        async def delete(self, keys):
            await trio.sleep(1)

    store = ByFirstLetter([Far(Deletes), Far(Deletes), Far(Deletes)])
    deletes, keys = store.capability(Deletes), ["a", "b", "c"]
    for ask in (store.has, store.get_many, store.touch, deletes.delete):
        began = trio.current_time()
        await ask(keys)
        assert trio.current_time() - began == pytest.approx(1)
    began = trio.current_time()
    assert await store.put_many([(key, b"x") for key in keys]) == [None] * 3
    assert trio.current_time() - began == pytest.approx(1)


async def test_one_key_goes_to_its_part_whichever_way():
    store = await stored(Part(), Part(), Part())
    await store.put("c2", b"value")
    await store.write("b3", BytesReader(b"written"))
    assert await store.parts[1].get("b3") == b"written"
    for number, name in enumerate(("a1", "b1", "c1")):
        assert await find(store, name) == name.encode()
        assert await find(store.parts[number], name) == name.encode()
    async with store.open("c2", offset=1, length=3) as reader:
        assert b"".join(await reader.receive_parts()) == b"alu"
    assert await store.parts[2].get("c2") == b"value"
    assert store.statistics() == {"parts": 3}


async def test_a_part_that_is_away_fails_the_question_as_it_is():
    class Away(Part):
        async def has(self, keys):
            raise UnavailableError("away")

    with pytest.raises(UnavailableError, match="away"):
        await ByFirstLetter([Part(), Away(), Part()]).has(["a", "b", "c"])


def test_it_is_authoritative_if_all_are_and_told_of_uses_if_any_takes_notice():
    def of(*traits):
        return ByFirstLetter([Part(traits=each) for each in traits]).traits

    assert of(Traits(), Traits()) == Traits()
    assert of(Traits(authoritative=False), Traits()) == Traits(authoritative=False)
    assert of(Traits(tracks_use=False), Traits()) == Traits()
    assert of(Traits(tracks_use=False), Traits(tracks_use=False)) == Traits(tracks_use=False)


def test_the_largest_blob_is_what_every_part_that_has_a_limit_takes():
    assert ByFirstLetter([Part(), Part()]).capability(BlobSizeLimit) is None
    assert ByFirstLetter([Part(), Part(limit=7)]).capability(BlobSizeLimit).max_blob_bytes() == 7
    for limits in ((5, 7), (7, 5)):
        store = ByFirstLetter([Part(limit=limit) for limit in limits])
        assert store.capability(BlobSizeLimit).max_blob_bytes() == 5


@pytest.mark.parametrize("kind", [Deletes, Removals, Scans, Pins, LocalFiles])
def test_what_one_part_cannot_do_the_whole_cannot(kind):
    assert isinstance(ByFirstLetter([Part(kind), Part(kind)]).capability(kind), kind)
    assert ByFirstLetter([Part(kind), Part()]).capability(kind) is None
    assert ByFirstLetter([Part(), Part(kind)]).capability(kind) is None


def test_what_cannot_be_put_together_is_not_offered():
    assert ByFirstLetter([Part(Discards), Part(Discards)]).capability(Discards) is None


async def test_deleting_is_one_trip_to_each_part_that_is_concerned():
    store = await stored(*(Part(Deletes) for _ in range(3)))
    await store.capability(Deletes).delete(["b1", "a1", "b2", "b3"])
    assert [part.trips for part in store.parts] == [[("delete", ["a1"])], [("delete", ["b1", "b2", "b3"])], []]
    assert await store.has(["a1", "a2", "b1", "b2", "c1"]) == [None, 2, None, None, 2]


async def test_news_of_all_parts_are_told_once_and_lost_where_one_part_lost_track():
    store = await stored(*(Part(Removals, Deletes) for _ in range(3)))
    feed = store.capability(Removals).watch_removals()
    assert feed.take() == ()
    await store.capability(Deletes).delete(["c1", "a1"])
    assert feed.take() == ["a1", "c1"]
    assert feed.take() == ()
    for number in range(3):
        await store.capability(Deletes).delete(["a2", "b1"])
        store.parts[number]._removals.lost_track()
        assert feed.take() is None
        assert feed.take() == (), "what was told with it is not told again"


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_a_scan_walks_through_all_parts_also_empty_ones(limit):
    store = await stored(*(Part(Scans) for _ in range(3)), names=("a1", "a2", "a3", "c1", "c2"))
    scans, found, cursor = store.capability(Scans), [], ""
    for _ in range(100):
        page = await scans.scan(cursor, limit=limit)
        assert len(page.entries) <= limit
        found += [key for key, _ in page.entries]
        cursor = page.cursor
        if not cursor:
            break
    assert found == ["a1", "a2", "a3", "c1", "c2"]


@pytest.mark.parametrize("cursor", ["x", ":", "3:", "-1:", "1", "x:1", "1.0:", "\u00b2:"])
async def test_a_cursor_of_another_store_is_refused(cursor):
    store = await stored(*(Part(Scans) for _ in range(3)))
    with pytest.raises(InvalidRequestError, match="no cursor of this store"):
        await store.capability(Scans).scan(cursor)
    assert (await store.capability(Scans).scan("2:")).entries == [("c1", 1)]


async def test_each_part_pins_its_own():
    store = await stored(*(Part(Pins) for _ in range(3)))
    with store.capability(Pins).pin(["b1", "a1", "b2"]):
        assert [part.pinned for part in store.parts] == [[["a1"]], [["b1", "b2"]], [[]]]
    assert [part.pinned[-1] for part in store.parts] == ["let go"] * 3


async def test_files_come_from_their_parts_and_what_is_missing_is_told_in_order_and_once():
    store = await stored(*(Part(LocalFiles) for _ in range(3)))
    files = store.capability(LocalFiles)
    names = ["b gone", "a", "b", "a gone", "b gone", *(f"{'ab'[at % 2]} gone {at}" for at in range(10))]
    links = [Link(name, f"/{at}", False) for at, name in enumerate(names)]
    assert await files.link_files(links) == ["b gone", "a gone", *names[5:]]
    assert [part.trips for part in store.parts] == [
        [("link", ["/1", "/3", "/5", "/7", "/9", "/11", "/13"])],
        [("link", ["/0", "/2", "/4", "/6", "/8", "/10", "/12", "/14"])],
        [],
    ]
    await files.adopt_file("c9", "/out")
    assert store.parts[2].trips == [("adopt", ["c9", "/out"])]
