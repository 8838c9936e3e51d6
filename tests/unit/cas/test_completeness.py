"""Completeness, asked directly: by either digest function, of stores that are away, a bounded part at once."""

import logging
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.cas import completeness
from nl.cas.action_results import seal
from nl.cas.completeness import MAX_TREE_BYTES, Completeness, IncompleteError
from nl.errors import UnavailableError
from nl.model.digest import ActionKey, Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import encode
from nl.plugin import MAX_WHOLE
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, FaultyStore, away

FUNCTIONS = list(DigestFunction)


class Cas(FaultyStore):
    """Over memory; notes how many keys are asked about in each trip, and what is read."""

    def __init__(self):
        super().__init__(MemoryStore(MemoryOptions(), BareContext()))
        self.asked, self.read = [], []

    async def has(self, keys):
        self.asked.append(len(keys))
        return await super().has(keys)

    async def get_many(self, keys):
        self.read += keys
        return await super().get_many(keys)

    def open(self, key, *, offset=0, length=None):
        self.read.append(key)
        return super().open(key, offset=offset, length=length)

    async def add(self, data, function=DigestFunction.SHA256):
        """Stores a blob; its digest as it is on the wire."""
        digest = digest_of(data, function)
        await self.put(digest, data)
        return on_wire(digest)


def on_wire(digest):
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size)


def file(name, digest):
    return reapi.FileNode(name=name, digest=digest)


async def a_result_of_each_sort(cas, function):
    """The result, and the blobs that it refers to, by what they are."""
    blobs = {name: name.encode() for name in ("output", "in a tree", "below a root")}
    blobs["tree"] = encode(reapi.Tree(root=reapi.Directory(files=[file("a", await cas.add(b"in a tree", function))])))
    blobs["sub"] = encode(reapi.Directory(files=[file("b", await cas.add(b"below a root", function))]))
    sub = reapi.DirectoryNode(name="sub", digest=await cas.add(blobs["sub"], function))
    blobs["root"] = encode(reapi.Directory(directories=[sub]))
    result = reapi.ActionResult(
        output_files=[reapi.OutputFile(path="o", digest=await cas.add(b"output", function))],
        output_directories=[
            reapi.OutputDirectory(path="t", tree_digest=await cas.add(blobs["tree"], function)),
            reapi.OutputDirectory(path="r", root_directory_digest=await cas.add(blobs["root"], function)),
        ],
    )
    return result, {name: digest_of(data, function) for name, data in blobs.items()}


@pytest.fixture
def cas():
    return Cas()


@pytest.fixture
def asking(cas):
    return Completeness(cas, name="AC")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("sealed", [False, True])
async def test_all_that_a_result_refers_to_is_looked_for_by_the_digest_function_of_its_action(
    cas, asking, function, sealed
):
    result, digests = await a_result_of_each_sort(cas, function)
    value = seal(encode(result)) if sealed else encode(result)
    key = ActionKey("ab" * 32, 7, function)
    await asking.require(key, value, sealed=sealed)
    for digest in digests.values():
        data = await cas.get(digest)
        await cas.backend.delete([digest])
        with pytest.raises(IncompleteError):
            await asking.require(key, value, sealed=sealed)
        with pytest.raises(IncompleteError):
            await Completeness(cas, name="of a server that has started again").require(key, value, sealed=sealed)
        await cas.put(digest, data)
    other = ActionKey("ab" * 32, 7, FUNCTIONS[1 - FUNCTIONS.index(function)])
    with pytest.raises(IncompleteError):
        await asking.require(other, value, sealed=sealed)


async def test_what_was_read_is_not_read_again_also_for_other_results(cas, asking):
    result, digests = await a_result_of_each_sort(cas, DigestFunction.SHA256)
    for exit_code in range(3):
        result.exit_code = exit_code
        for _ in range(2):
            await asking.require(ActionKey("ab" * 32, exit_code), encode(result))
    assert sorted(cas.read) == sorted(digests[name] for name in ("tree", "root", "sub"))
    assert asking.statistics() == {
        "complete": 6, "incomplete": 0, "remembered_results": 3, "remembered_directories": 2,
        "remembered_bytes": asking._results.total_bytes + asking._directories.total_bytes,
    }  # fmt: skip


@pytest.mark.parametrize("operation", ["has", "open", "get"])
async def test_a_cas_that_is_away_is_no_miss_whatever_it_was_asked(cas, asking, operation):
    result, _ = await a_result_of_each_sort(cas, DigestFunction.SHA256)
    cas.plan(operation, away())
    with pytest.raises(UnavailableError):
        await asking.require(ActionKey("ab" * 32, 7), encode(result))
    await asking.require(ActionKey("ab" * 32, 7), encode(result))
    assert (asking.statistics()["complete"], asking.statistics()["incomplete"]) == (1, 0)


@pytest.mark.parametrize(("size", "reason"), [(MAX_TREE_BYTES, "not found"), (MAX_TREE_BYTES + 1, "too large")])
async def test_a_tree_is_looked_into_up_to_a_size(cas, asking, size, reason):
    tree = Digest("cd" * 32, size)
    result = reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="t", tree_digest=on_wire(tree))])
    with pytest.raises(IncompleteError, match=reason):
        await asking.require(ActionKey("ab" * 32, 7), encode(result))
    assert cas.read == ([tree] if reason == "not found" else [])
    assert MAX_TREE_BYTES == 64 * 1024 * 1024, "as much as one upload of a Tree can be"


async def test_a_directory_that_no_store_gives_whole_is_a_miss_that_the_log_explains(cas, asking, caplog):
    root = encode(reapi.Directory(files=[file("x" * MAX_WHOLE, await cas.add(b"x"))]))
    result = reapi.ActionResult(
        output_directories=[reapi.OutputDirectory(path="r", root_directory_digest=await cas.add(root))]
    )
    with caplog.at_level(logging.WARNING), pytest.raises(IncompleteError, match=str(digest_of(root))):
        await asking.require(ActionKey("ab" * 32, 7), encode(result))
    [record] = caplog.records
    assert record.getMessage().startswith(f"AC: a result counts as a miss: {digest_of(root)}: ")


async def test_what_is_no_result_is_a_miss_that_names_the_action(cas, asking, caplog):
    key = ActionKey("ab" * 32, 7)
    for value, sealed in ((b"\xff", False), (b"\xff", True), (seal(b"")[:-1], True)):
        with pytest.raises(IncompleteError, match=f"^{key}: "):
            await asking.require(key, value, sealed=sealed)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


async def test_a_store_is_never_asked_about_more_than_a_slice_at_once(cas, asking):
    """A slice is a few milliseconds of a turn of the loop."""
    files = [reapi.OutputFile(path=f"{n}", digest=await cas.add(b"%d" % n)) for n in range(5000)]
    nodes = [file(f"{n}", each.digest) for n, each in enumerate(files)]
    tree = await cas.add(encode(reapi.Tree(root=reapi.Directory(files=nodes))))
    for result in (
        reapi.ActionResult(output_files=files),
        reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="t", tree_digest=tree)]),
    ):
        cas.asked.clear()
        await asking.require(ActionKey("ab" * 32, 7), encode(result))
        assert max(cas.asked) <= 2048
        assert sum(cas.asked) in {5000, 5001}
        assert len(cas.asked) <= 4, "and no more trips than that takes"


async def test_of_many_trees_few_are_held_until_the_store_is_asked(cas, asking):
    """However many a client names: each has up to 40 bytes a file in memory."""
    nodes = [file(f"{n}", await cas.add(b"%d" % n)) for n in range(1500)]
    directories = []
    for number in range(10):
        tree = encode(reapi.Tree(root=reapi.Directory(files=[*nodes, file("its own", await cas.add(b"%d" % number))])))
        digest = await cas.add(tree + b"\x12\0" * number)
        directories.append(reapi.OutputDirectory(path=f"{number}", tree_digest=digest))
    read_before = []

    async def has(keys):
        read_before.append(len(cas.read))
        return await Cas.has(cas, keys)

    cas.has = has
    await asking.require(ActionKey("ab" * 32, 7), encode(reapi.ActionResult(output_directories=directories)))
    assert len(cas.read) == 10
    assert max(now - before for before, now in zip([0, *read_before], [*read_before, 10], strict=True)) <= 2


async def test_others_have_their_turns_while_a_large_tree_is_read(cas, asking):
    nodes = [file(f"{n}", await cas.add(b"x")) for n in range(10_000)]
    tree = await cas.add(encode(reapi.Tree(root=reapi.Directory(files=nodes))))
    turns = 0
    before_asking = []

    async def count():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def has(keys):
        before_asking.append(turns)
        return await Cas.has(cas, keys)

    cas.has = has
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        result = reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="t", tree_digest=tree)])
        await asking.require(ActionKey("ab" * 32, 7), encode(result))
        nursery.cancel_scope.cancel()
    parts = tree.size_bytes // (64 * 1024)
    assert before_asking[0] >= parts - 3 > 5, "one for each part, of a millisecond, but for the first and the last"


async def test_a_value_that_is_too_large_to_be_remembered_is_looked_at_each_time(cas, monkeypatch):
    monkeypatch.setattr(completeness, "REMEMBERED_BYTES", 2000)
    asking = Completeness(cas, name="AC")
    for printed, remembered in ((100, 1), (3000, 1)):
        value = encode(reapi.ActionResult(stdout_raw=bytes(printed), stdout_digest=await cas.add(b"x")))
        await asking.require(ActionKey("ab" * 32, printed), value)
        assert asking.statistics()["remembered_results"] == remembered
        assert 0 < asking.statistics()["remembered_bytes"] <= 2000


@pytest.mark.parametrize(("count", "each"), [(100, 320), (101, 40)])
async def test_what_is_remembered_is_counted_with_its_references(cas, asking, count, each):
    files = [reapi.OutputFile(path=f"{n}", digest=await cas.add(b"%d" % n)) for n in range(count)]
    value = encode(reapi.ActionResult(output_files=files))
    await asking.require(ActionKey("ab" * 32, 7), value)
    assert 0 <= asking.statistics()["remembered_bytes"] - len(value) - count * each < 1000


async def test_another_value_under_the_same_action_is_looked_at_anew_and_equal_bytes_are_not(cas, asking, monkeypatch):
    looked = []
    real = completeness.direct_references
    monkeypatch.setattr(completeness, "direct_references", lambda *args: looked.append(1) or real(*args))
    key = ActionKey("ab" * 32, 7)
    value = encode(reapi.ActionResult(stdout_digest=await cas.add(b"x")))
    for _ in range(3):
        await asking.require(key, bytes(bytearray(value)))
    assert len(looked) == 1
    gone = encode(reapi.ActionResult(stdout_digest=on_wire(digest_of(b"gone"))))
    with pytest.raises(IncompleteError):
        await asking.require(key, gone)
    await asking.require(key, value)
    assert len(looked) == 3


class Crowd:
    """Notes how many of those who wait for a store do so at once."""

    def __init__(self, cas):
        self.now, self.most, self.cas = 0, 0, cas
        cas.has, cas.open = self.has, self.open

    @contextmanager
    def inside(self):
        self.now += 1
        self.most = max(self.most, self.now)
        yield
        self.now -= 1

    async def has(self, keys):
        with self.inside():
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            return await Cas.has(self.cas, keys)

    @asynccontextmanager
    async def open(self, key, **range_):
        with self.inside():
            async with Cas.open(self.cas, key, **range_) as reader:
                yield reader

    async def of(self, asking, values):
        self.most = 0
        async with trio.open_nursery() as nursery:
            for number, value in enumerate(values):
                nursery.start_soon(asking.require, ActionKey("ab" * 32, number), value)
        return self.most


async def test_few_results_with_very_much_in_them_are_looked_into_at_once_and_any_number_of_others(cas, asking):
    nodes = [file(f"{n}", await cas.add(b"%d" % n)) for n in range(3000)]
    crowd = Crowd(cas)
    few = encode(reapi.ActionResult(output_files=[reapi.OutputFile(path="o", digest=nodes[0].digest)]))
    assert await crowd.of(asking, [few] * 10) > 4
    files = [reapi.OutputFile(path=each.name, digest=each.digest) for each in nodes]
    many = encode(reapi.ActionResult(output_files=files))
    for number in range(10):  # read one by one: that is done in threads
        await asking.require(ActionKey("ab" * 32, number), many)
    assert 1 < await crowd.of(asking, [many] * 10) <= 4
    tree = encode(reapi.Tree(root=reapi.Directory(files=nodes)))
    trees = [await cas.add(tree + b"\x12\0" * number) for number in range(10)]
    results = [
        encode(reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="t", tree_digest=each)]))
        for each in trees
    ]
    assert 1 < await crowd.of(asking, results) <= 4, "while they are read"
    read = len(cas.read)
    assert 1 < await crowd.of(asking, results) <= 4, "and once it is known what is in them"
    assert len(cas.read) == read == len(trees)


async def test_nothing_is_asked_about_twice_however_many_directories_a_result_has(cas, asking):
    nodes = [file(f"{n}", await cas.add(b"%d" % n)) for n in range(1200)]
    directories = []
    for number in range(6):
        some = nodes[number * 200 :] if number % 2 else nodes[:900]
        tree = encode(reapi.Tree(root=reapi.Directory(files=some))) + b"\x12\0" * number
        directories.append(reapi.OutputDirectory(path=f"{number}", tree_digest=await cas.add(tree)))
    counts = [900, 1000, 900, 600, 900, 200]
    await asking.require(ActionKey("ab" * 32, 7), encode(reapi.ActionResult(output_directories=directories)))
    assert sum(cas.asked) == sum(counts) + len(directories)
    assert max(cas.asked) <= 2048


async def test_what_is_remembered_is_counted_with_its_directories_and_bounded(cas, monkeypatch):
    assert completeness.REMEMBERED_BYTES == 32 * 1024 * 1024
    asking = Completeness(cas, name="AC")
    trees = [await cas.add(encode(reapi.Tree()) + b"\x12\0" * number) for number in range(1, 21)]
    directories = [reapi.OutputDirectory(path=each.hash, tree_digest=each) for each in trees]
    value = encode(reapi.ActionResult(output_directories=directories))
    await asking.require(ActionKey("ab" * 32, 7), value)
    in_results = 20 * (320 + 320)  # as references, and as directories to be looked into
    in_directories = 20 * 200
    assert 0 <= asking.statistics()["remembered_bytes"] - len(value) - in_results - in_directories < 1000
    monkeypatch.setattr(completeness, "REMEMBERED_BYTES", 2000)
    asking = Completeness(cas, name="AC")
    nodes = [file(f"{n}", await cas.add(b"x")) for n in range(60)]
    for files, remembered in ((nodes[:2], 1), (nodes, 1)):
        tree = await cas.add(encode(reapi.Tree(root=reapi.Directory(files=files))))
        result = reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="t", tree_digest=tree)])
        await asking.require(ActionKey("ab" * 32, len(files)), encode(result))
        assert asking.statistics()["remembered_directories"] == remembered


async def test_bytes_that_their_owner_uses_again_are_not_taken_for_what_they_were(cas, asking):
    key = ActionKey("ab" * 32, 7)
    there, gone = (
        encode(reapi.ActionResult(stdout_digest=each)) for each in (await cas.add(b"x"), on_wire(digest_of(b"y")))
    )
    buffer = bytearray(there)
    await asking.require(key, buffer)
    buffer[:] = gone
    with pytest.raises(IncompleteError):
        await asking.require(key, buffer)


async def test_all_files_of_a_large_directory_are_seen_and_others_have_their_turns_meanwhile(cas, asking):
    digests = [await cas.add(b"%d" % n) for n in range(3000)]
    nodes = [file("x" * 100 + f"{n}", each) for n, each in enumerate(digests)]
    root = await cas.add(encode(reapi.Directory(files=nodes)))
    turns = 0

    async def count():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    result = encode(
        reapi.ActionResult(output_directories=[reapi.OutputDirectory(path="r", root_directory_digest=root)])
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await asking.require(ActionKey("ab" * 32, 7), result)
        nursery.cancel_scope.cancel()
    assert turns >= root.size_bytes // (64 * 1024) - 2 > 5
    await cas.backend.delete([digest_of(b"2999")])
    with pytest.raises(IncompleteError):
        await asking.require(ActionKey("ab" * 32, 7), result)
