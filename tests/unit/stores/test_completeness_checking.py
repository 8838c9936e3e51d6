import random
import weakref

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.cas.action_results import MAX_ACTION_RESULT_BYTES, load_action_result, seal, store_action_result
from nl.cas.packed import PackedDigests
from nl.pb import reapi
from nl.pb.codec import encode
from nl.plugin import (
    MAX_WHOLE,
    ActionKey,
    BlobNotFoundError,
    BlobSizeLimit,
    BytesReader,
    ChecksCompleteness,
    Deletes,
    EvictionPolicy,
    LocalFiles,
    RangeError,
    Removals,
    Traits,
    UnavailableError,
)
from nl.stores.completeness_checking import CompletenessCheckingOptions, CompletenessCheckingStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, StoreConformance, read

ACTION = ActionKey("ab" * 32, 142)


def make_store(context, *, cas=None):
    backend = MemoryStore(MemoryOptions(), context)
    cas = cas or MemoryStore(MemoryOptions(), context)
    options = CompletenessCheckingOptions(backend=context.spec(backend), cas_store=context.spec(cas))
    store = CompletenessCheckingStore(options, context)
    return store, backend, cas


class TestCompletenessCheckingConformance(StoreConformance):
    def make_store(self, context, folder):
        return make_store(context)[0]

    def make_value(self, size, *, seed=0):
        raw = random.Random(size + seed).randbytes(size)
        return seal(encode(reapi.ActionResult(stdout_raw=raw, exit_code=1)))


def wire(data):
    digest = digest_of(data)
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size)


def leaf(name, data):
    return reapi.Directory(files=[reapi.FileNode(name=name, digest=wire(data))])


TREE = encode(
    reapi.Tree(
        root=reapi.Directory(
            files=[reapi.FileNode(name="top", digest=wire(b"in the root"))],
            directories=[reapi.DirectoryNode(name="sub", digest=wire(encode(leaf("deep", b"in a child"))))],
        ),
        children=[leaf("deep", b"in a child")],
    )
)
SUB = encode(leaf("below", b"below the root directory"))
ROOT = encode(reapi.Directory(directories=[reapi.DirectoryNode(name="sub", digest=wire(SUB))]))
RESULT = reapi.ActionResult(
    output_files=[reapi.OutputFile(path="a", digest=wire(b"output a")), reapi.OutputFile(path="b", digest=wire(b"b"))],
    output_directories=[
        reapi.OutputDirectory(path="d", tree_digest=wire(TREE)),
        reapi.OutputDirectory(path="e", root_directory_digest=wire(ROOT)),
        reapi.OutputDirectory(path="empty", tree_digest=wire(encode(reapi.Tree(root=reapi.Directory())))),
    ],
    stdout_digest=wire(b"stdout"),
    stderr_digest=wire(b""),
)
BLOBS = {
    "output file": b"output a",
    "second output file": b"b",
    "stdout": b"stdout",
    "Tree": TREE,
    "file in a Tree's root": b"in the root",
    "file in a Tree's child": b"in a child",
    "root directory": ROOT,
    "directory below the root": SUB,
    "file below the root directory": b"below the root directory",
    "empty Tree": encode(reapi.Tree(root=reapi.Directory())),
}


async def fill(cas, *, but=None):
    for name, data in BLOBS.items():
        if name != but:
            await cas.put(digest_of(data), data)


async def is_there(store):
    (size,) = await store.has([ACTION])
    try:
        got = await store.get(ACTION)
    except BlobNotFoundError:
        got = None
    try:
        streamed = await read(store, ACTION)
    except BlobNotFoundError:
        streamed = None
    assert got == streamed
    assert size == (None if got is None else len(got))
    return got is not None


async def test_a_result_is_there_when_everything_is():
    store, _, cas = make_store(BareContext())
    await fill(cas)
    await store_action_result(store, ACTION, encode(RESULT))
    assert await is_there(store)
    assert await load_action_result(store, ACTION) == encode(RESULT)


@pytest.mark.parametrize("missing", BLOBS)
async def test_a_result_without_one_of_its_blobs_is_a_miss_until_that_is_uploaded(missing):
    store, _, cas = make_store(BareContext())
    await fill(cas, but=missing)
    await store_action_result(store, ACTION, encode(RESULT))
    assert not await is_there(store)
    await cas.put(digest_of(BLOBS[missing]), BLOBS[missing])
    assert await is_there(store)


@pytest.mark.parametrize("gone", BLOBS)
async def test_a_blob_that_goes_away_later_makes_it_a_miss(gone):
    store, _, cas = make_store(BareContext())
    await fill(cas)
    await store_action_result(store, ACTION, encode(RESULT))
    assert await is_there(store)
    cas._index.discard(digest_of(BLOBS[gone]))
    assert not await is_there(store)
    with pytest.raises(BlobNotFoundError, match="not everything"):
        await store.get(ACTION)


async def test_asking_keeps_the_outputs_alive():
    cas = MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(max_count=len(BLOBS) + 1)), BareContext())
    store, _, _ = make_store(BareContext(), cas=cas)
    await fill(cas)
    await store_action_result(store, ACTION, encode(RESULT))
    for number in range(50):
        assert await is_there(store)
        await cas.put(f"other {number}", b"x")


async def test_a_result_stored_anew_is_looked_at_anew():
    store, _, cas = make_store(BareContext())
    await fill(cas)
    await store_action_result(store, ACTION, encode(RESULT))
    assert await is_there(store)
    other = reapi.ActionResult(stdout_digest=wire(b"never uploaded"))
    await store_action_result(store, ACTION, encode(other))
    assert not await is_there(store)


@pytest.mark.parametrize("value", [b"", b"\xff" * 40, seal(encode(RESULT))[:-3], seal(b"\x0a\xff")])
async def test_a_damaged_result_is_a_miss(value):
    store, backend, _ = make_store(BareContext())
    await backend.put(ACTION, value)
    assert not await is_there(store)


@pytest.mark.parametrize(
    "result",
    [
        reapi.ActionResult(stdout_digest=reapi.Digest(hash="zz", size_bytes=3)),
        reapi.ActionResult(output_files=[reapi.OutputFile(path="a")]),
        reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="a")]),
        reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="a", tree_digest=wire(b"\xffno tree"))]),
    ],
)
async def test_a_result_that_refers_to_nonsense_is_a_miss(result):
    store, _, cas = make_store(BareContext())
    await cas.put(digest_of(b"\xffno tree"), b"\xffno tree")
    await store_action_result(store, ACTION, encode(result))
    assert not await is_there(store)


async def test_a_tree_too_large_to_get_whole_is_read_all_the_same():
    store, _, cas = make_store(BareContext())
    count = MAX_WHOLE // 950
    directory = reapi.Directory(files=[reapi.FileNode(name=f"{n:0900}", digest=wire(b"%d" % n)) for n in range(count)])
    tree = encode(reapi.Tree(root=directory))
    assert len(tree) > MAX_WHOLE
    await cas.write(digest_of(tree), BytesReader(tree))
    for number in range(count):
        await cas.put(digest_of(b"%d" % number), b"%d" % number)
    result = reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="d", tree_digest=wire(tree))])
    await store_action_result(store, ACTION, encode(result))
    assert await is_there(store)
    cas._index.discard(digest_of(b"7"))
    assert not await is_there(store)


async def test_a_cas_that_is_away_is_told_as_such_and_not_as_a_miss():
    class Away(MemoryStore):
        async def has(self, keys):
            raise UnavailableError("the CAS is away")

    store, _, _ = make_store(BareContext(), cas=Away(MemoryOptions(), BareContext()))
    await store_action_result(store, ACTION, encode(reapi.ActionResult(stdout_digest=wire(b"x"))))
    with pytest.raises(UnavailableError):
        await store.get(ACTION)
    with pytest.raises(UnavailableError):
        await store.has([ACTION])


async def test_what_it_remembers_is_bounded(monkeypatch):
    monkeypatch.setattr("nl.cas.completeness.REMEMBERED_BYTES", 20_000)
    store, _, cas = make_store(BareContext())
    await cas.put(digest_of(b"x"), b"x")
    for number in range(100):
        key = ActionKey(f"{number:064x}", 1)
        result = reapi.ActionResult(stdout_digest=wire(b"x"), exit_code=number)
        await store_action_result(store, key, encode(result))
        await store.get(key)
    statistics = store.statistics()
    assert statistics["complete"] == 100
    assert 1 < statistics["remembered_results"] < 100
    assert statistics["remembered_bytes"] <= 20_000


async def test_hits_and_misses_are_counted():
    store, _, cas = make_store(BareContext())
    await store_action_result(store, ACTION, encode(RESULT))
    for _ in range(3):
        with pytest.raises(BlobNotFoundError):
            await store.get(ACTION)
    await fill(cas)
    await store.get(ACTION)
    assert (store.statistics()["incomplete"], store.statistics()["complete"]) == (3, 1)


async def test_a_large_tree_gives_others_their_turn_and_is_read_once():
    class Opened(MemoryStore):
        opened = 0

        def open(self, key, **range):
            self.opened += 1
            return super().open(key, **range)

    store, _, cas = make_store(BareContext(), cas=Opened(MemoryOptions(), BareContext()))
    await cas.put(digest_of(b"x"), b"x")
    nodes = [reapi.FileNode(name=f"file{n}.o", digest=wire(b"x")) for n in range(60_000)]
    tree = encode(reapi.Tree(root=reapi.Directory(files=nodes)))
    await cas.put(digest_of(tree), tree)
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        for number in range(3):
            key = ActionKey(f"{number:064x}", 1)
            result = reapi.ActionResult(
                output_directories=[reapi.OutputDirectory(path="d", tree_digest=wire(tree))], exit_code=number
            )
            await store_action_result(store, key, encode(result))
            turns = 0
            await store.get(key)
            assert turns >= 60_000 // 4096
        nursery.cancel_scope.cancel()
    assert cas.opened == 1


async def test_all_that_a_result_refers_to_is_asked_for_in_one_trip():
    class Asked(MemoryStore):
        trips = 0

        async def has(self, keys):
            self.trips += 1
            return await super().has(keys)

    store, _, cas = make_store(BareContext(), cas=Asked(MemoryOptions(), BareContext()))
    await fill(cas)
    await store_action_result(store, ACTION, encode(RESULT))
    await store.get(ACTION)
    assert cas.trips == 1
    files = [reapi.OutputFile(path=str(n), digest=wire(b"%d" % n)) for n in range(1000)]
    for n in range(1000):
        await cas.put(digest_of(b"%d" % n), b"%d" % n)
    await store_action_result(store, ACTION, encode(reapi.ActionResult(output_files=files)))
    cas.trips = 0
    assert await is_there(store)
    assert cas.trips == 3, "has, get and open"
    cas._index.discard(digest_of(b"999"))
    assert not await is_there(store)


async def test_many_results_are_one_trip_each_way_and_checked_each():
    store, backend, cas = make_store(BareContext())
    await cas.put(digest_of(b"there"), b"there")
    keys = [ActionKey(f"{number:064x}", 1) for number in range(130)]
    for number, key in enumerate(keys):
        named = wire(b"there" if number % 2 else b"gone")
        await store_action_result(store, key, encode(reapi.ActionResult(stdout_digest=named, exit_code=number)))
    found = await store.get_many([*keys, "name"])
    assert [isinstance(value, BlobNotFoundError) for value in found] == [*[True, False] * 65, True]
    assert [size is not None for size in await store.has(keys)] == [False, True] * 65


def test_it_says_that_nobody_needs_to_look_again():
    assert make_store(BareContext())[0].capability(ChecksCompleteness).checks_completeness()


async def test_many_large_results_at_once_take_a_bounded_part_of_a_turn():
    class Asked(MemoryStore):
        trips = 0

        async def has(self, keys):
            self.trips += 1
            return await super().has(keys)

    store, _, cas = make_store(BareContext(), cas=Asked(MemoryOptions(), BareContext()))
    await cas.put(digest_of(b"x"), b"x")
    nodes = [reapi.FileNode(name=f"file{n}.o", digest=wire(b"x")) for n in range(10_000)]
    tree = encode(reapi.Tree(root=reapi.Directory(files=nodes)))
    await cas.put(digest_of(tree), tree)
    result = reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="d", tree_digest=wire(tree))])
    await store_action_result(store, ACTION, encode(result))
    most = 0

    async def look():
        nonlocal most
        while True:
            before = cas.trips
            await trio.lowlevel.checkpoint()
            most = max(most, cas.trips - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        async with trio.open_nursery() as asking:
            for _ in range(60):
                asking.start_soon(store.get, ACTION)
        nursery.cancel_scope.cancel()
    assert store.statistics()["complete"] == 60
    assert most <= 8, "four at once, a slice each; a turn may be seen from either end"


async def test_a_result_with_many_large_trees_holds_one_of_them_at_a_time(monkeypatch):
    """A client names a thousand Trees of 64 MiB in 80 KB: each of 40 bytes a file, all at once, ended the server."""
    monkeypatch.setattr("nl.cas.completeness.REMEMBERED_BYTES", 100_000)
    held = 0

    class Counted(PackedDigests):
        def __init__(self, records, function):
            nonlocal held
            super().__init__(records, function)
            held += 1
            weakref.finalize(self, let_go)

    def let_go():
        nonlocal held
        held -= 1

    class Asked(MemoryStore):
        most = 0

        async def has(self, keys):
            self.most = max(self.most, held)
            return await super().has(keys)

    monkeypatch.setattr("nl.cas.file_digests.PackedDigests", Counted)
    store, _, cas = make_store(BareContext(), cas=Asked(MemoryOptions(), BareContext()))
    directories = []
    for number in range(20):
        content = b"%d" % number
        await cas.put(digest_of(content), content)
        nodes = [reapi.FileNode(name=f"file{n}.o", digest=wire(content)) for n in range(3000)]
        tree = encode(reapi.Tree(root=reapi.Directory(files=nodes)))
        await cas.put(digest_of(tree), tree)
        directories.append(reapi.OutputDirectory(path=str(number), tree_digest=wire(tree)))
    await store_action_result(store, ACTION, encode(reapi.ActionResult(output_directories=directories)))
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(store.get, ACTION)
    assert store.statistics()["complete"] == 10
    assert cas.most <= 8, "four have a turn, and one may not be collected yet"
    cas._index.discard(digest_of(b"7"))
    assert not await is_there(store)


@pytest.mark.parametrize("gone", ["output", "small tree", "large tree"])
async def test_what_is_missing_beside_a_large_tree_makes_it_a_miss(gone):
    store, _, cas = make_store(BareContext())
    trees = []
    for name, count in (("small tree", 1), ("large tree", 3000)):
        nodes = [reapi.FileNode(name=f"file{n}.o", digest=wire(name.encode())) for n in range(count)]
        trees.append(encode(reapi.Tree(root=reapi.Directory(files=nodes))))
    result = reapi.ActionResult(
        output_files=[reapi.OutputFile(path="out", digest=wire(b"output"))],
        output_directories=[reapi.OutputDirectory(path=f"{n}", tree_digest=wire(tree)) for n, tree in enumerate(trees)],
    )
    blobs = [b"output", b"small tree", b"large tree", *trees]
    for data in blobs:
        await cas.put(digest_of(data), data)
    await store_action_result(store, ACTION, encode(result))
    assert await is_there(store)
    await cas.delete([digest_of(gone.encode())])
    assert not await is_there(store)


class Trusted(MemoryStore):
    """Says what can be relied on, and notes what it is asked."""

    def __init__(self, traits=None):
        super().__init__(MemoryOptions(eviction_policy=EvictionPolicy(max_bytes=2**30)), BareContext())
        self.own_traits = traits or Traits()
        self.many, self.asked = [], []

    @property
    def traits(self):
        return self.own_traits

    async def has(self, keys):
        self.asked += keys
        return await super().has(keys)

    async def get_many(self, keys):
        self.many.append(len(keys))
        return await super().get_many(keys)


def over(backend, cas):
    context = BareContext("AC")
    options = CompletenessCheckingOptions(backend=context.spec(backend), cas_store=context.spec(cas))
    return CompletenessCheckingStore(options, context)


def test_it_is_authoritative_if_both_are_and_tracks_use_as_the_action_cache_does():
    both, vague, careless = Traits(), Traits(authoritative=False), Traits(tracks_use=False)
    for backend, cas, expected in (
        (both, both, both), (vague, both, vague), (both, vague, vague), (careless, both, careless),
        (both, careless, both),
    ):  # fmt: skip
        assert over(Trusted(backend), Trusted(cas)).traits == expected


def test_it_stands_in_for_what_does_not_get_past_the_check():
    backend = Trusted()
    store = over(backend, Trusted())
    assert [store.capability(kind) for kind in (BlobSizeLimit, Deletes)] == [backend, backend]
    assert store.capability(ChecksCompleteness) is store
    assert store.capability(Removals) is None, "a result is also gone when one of its blobs is"
    assert store.capability(LocalFiles) is None


async def test_a_result_that_is_used_elsewhere_is_used_with_all_that_it_refers_to():
    cas = Trusted()
    store = over(Trusted(), cas)
    await fill(cas)
    await store_action_result(store, ACTION, encode(RESULT))
    await store.touch([ACTION, ActionKey("cd" * 32, 1)])
    assert {digest_of(data) for data in BLOBS.values()} <= set(cas.asked)


async def test_of_many_results_a_bounded_number_is_in_memory_at_once():
    backend, cas = Trusted(), Trusted()
    store = over(backend, cas)
    keys = [ActionKey(f"{number:064x}", 1) for number in range(130)]
    for key in keys:
        await store_action_result(store, key, encode(reapi.ActionResult(exit_code=1)))
    assert None not in await store.has(keys)
    assert backend.many == [64, 64, 2]


async def test_a_value_that_is_larger_than_any_result_is_damaged_and_a_miss(caplog):
    backend = Trusted()
    store = over(backend, Trusted())
    await backend.put(ACTION, bytes(MAX_ACTION_RESULT_BYTES + 100))
    for attempt in (store.get_many([ACTION]), read(store, ACTION)):
        try:
            [outcome] = await attempt
        except BlobNotFoundError as error:
            outcome = error
        assert isinstance(outcome, BlobNotFoundError) and outcome.key == ACTION
        assert outcome.message.startswith(f"{ACTION}: the stored action result is larger than")
    assert store.statistics()["damaged"] == 2
    assert [record.getMessage().split(":")[:2] for record in caplog.records] == [
        ["AC", f" the result of {ACTION} counts as a miss"]
    ] * 2


async def test_a_large_result_is_found_whole_and_in_ranges():
    store = over(Trusted(), Trusted())
    large = seal(encode(reapi.ActionResult(stdout_raw=random.Random(1).randbytes(MAX_WHOLE))))
    await store.put(ACTION, large)
    assert await store.get_many([ACTION]) == [large]
    assert await store.has([ACTION]) == [len(large)]
    assert await read(store, ACTION, offset=1000, length=7) == large[1000:1007]
    with pytest.raises(RangeError):
        await read(store, ACTION, offset=len(large) + 1)


async def test_what_is_no_result_passes_unread():
    backend = Trusted()
    store = over(backend, Trusted())
    for key in (digest_of(b"\xff"), "name"):
        await store.put(key, b"\xff")
        assert await store.has([key]) == [1]
        assert await store.get(key) == b"\xff" and await read(store, key) == b"\xff"
        assert await store.get_many([key]) == [b"\xff"]


async def test_an_action_cache_that_is_away_for_one_of_many_is_no_miss():
    class Away(Trusted):
        async def get(self, key):
            raise UnavailableError("away")

    backend = Away()
    store = over(backend, Trusted())
    await store_action_result(store, ACTION, encode(reapi.ActionResult()))
    assert isinstance((await store.get_many([ACTION]))[0], UnavailableError)
    with pytest.raises(UnavailableError):
        await store.has([ACTION])


async def test_of_many_results_only_those_that_the_action_cache_has_are_read():
    backend = Trusted()
    store = over(backend, Trusted())
    await store_action_result(store, ACTION, encode(reapi.ActionResult()))
    assert None not in await store.has([ACTION])
    assert (await store.has([ActionKey("cd" * 32, 1), ACTION]))[0] is None
    assert backend.many == [1, 1]


async def test_a_result_that_is_replaced_while_it_is_looked_at_has_the_size_of_what_was_looked_at():
    other = seal(encode(reapi.ActionResult(stdout_raw=bytes(500))))

    class Replacing(Trusted):
        async def has(self, keys):
            sizes = await super().has(keys)
            await self.put(ACTION, other)
            return sizes

    store = over(Replacing(), Trusted())
    await store_action_result(store, ACTION, encode(reapi.ActionResult()))
    assert await store.has([ACTION]) == [len(other)]


async def test_of_many_those_that_a_cas_that_is_away_leaves_unchecked_are_told_so_and_the_others_come():
    class Away(Trusted):
        async def has(self, keys):
            raise UnavailableError("the CAS is away")

    store = over(Trusted(), Away())
    await store_action_result(store, ACTION, encode(reapi.ActionResult(stdout_digest=wire(b"x"))))
    await store.put("name", b"value")
    unchecked, value = await store.get_many([ACTION, "name"])
    assert isinstance(unchecked, UnavailableError) and value == b"value"


async def test_a_large_result_that_an_action_cache_fails_to_read_is_no_miss():
    class Away(Trusted):
        def open(self, key, *, offset=0, length=None):
            raise UnavailableError("away")

    backend = Away()
    store = over(backend, Trusted())
    await store.put(ACTION, seal(encode(reapi.ActionResult(stdout_raw=bytes(MAX_WHOLE)))))
    assert isinstance((await store.get_many([ACTION]))[0], UnavailableError)
    with pytest.raises(UnavailableError):
        await store.has([ACTION])
    assert store.statistics()["damaged"] == 0
