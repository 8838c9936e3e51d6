"""Directories: names that cannot leave their directory, and walks that cost what is distinct."""

import contextlib
from contextlib import aclosing

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from nl.blob.hashing import digest_of
from nl.cas.directories import MAX_DIRECTORIES, child_digests, decode_directory, walk
from nl.errors import BlobNotFoundError, ExhaustedError, InvalidRequestError, UnavailableError
from nl.model.digest import EMPTY, Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode, encode
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, FaultyStore, away

H = "0" * 64


def node(name, digest=None):
    digest = digest or Digest(H, 1)
    return reapi.DirectoryNode(name=name, digest=reapi.Digest(hash=digest.hash, size_bytes=digest.size))


def file(name):
    return reapi.FileNode(name=name, digest=reapi.Digest(hash=H, size_bytes=1))


async def put(store, **children):
    encoded = encode(reapi.Directory(directories=[node(name, digest) for name, digest in children.items()]))
    digest = digest_of(encoded)
    await store.put(digest, encoded)
    return digest


async def walked(store, root, **options):
    async with aclosing(walk(store, root, **options)) as directories:
        return [directory.digest async for directory in directories]


@pytest.fixture
def store():
    return MemoryStore(MemoryOptions(), BareContext())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", "../../etc/passwd"])
@pytest.mark.parametrize("kind", ["files", "directories", "symlinks"])
def test_a_name_that_is_not_one_segment_is_refused(kind, name):
    make = {"files": file, "directories": node, "symlinks": lambda n: reapi.SymlinkNode(name=n, target="x")}[kind]
    encoded = encode(reapi.Directory(**{kind: [make(name)]}))
    with pytest.raises(InvalidRequestError, match="invalid name"):
        decode_directory(digest_of(encoded), encoded)


def test_a_name_that_occurs_twice_is_refused_also_across_kinds():
    encoded = encode(reapi.Directory(files=[file("a")], symlinks=[reapi.SymlinkNode(name="a", target="x")]))
    with pytest.raises(InvalidRequestError, match="'a' occurs twice"):
        decode_directory(digest_of(encoded), encoded)


@pytest.mark.parametrize("nodes", [{"files": [reapi.FileNode(name="a")]},
                                   {"directories": [reapi.DirectoryNode(name="a")]}])
def test_a_child_without_digest_is_refused(nodes):
    encoded = encode(reapi.Directory(**nodes))
    with pytest.raises(InvalidRequestError, match="'a' has no digest"):
        decode_directory(digest_of(encoded), encoded)


def test_bytes_that_are_no_directory_are_refused_with_their_digest():
    digest = digest_of(b"\x0a\xff")
    with pytest.raises(InvalidRequestError, match=f"{digest} is not a Directory"):
        decode_directory(digest, b"\x0a\xff")
    for wrong in (b"\x0a\xff", b"\xff" * 20, b"\x0b", b"\x12\x01\xff"):
        with pytest.raises(InvalidRequestError, match=f"{digest} is not a Directory"):
            child_digests(digest, wrong)


def test_the_empty_blob_is_the_empty_directory():
    digest = EMPTY[DigestFunction.SHA256]
    assert decode_directory(digest, b"").files == []
    assert child_digests(digest, b"") == []


async def test_a_walk_is_breadth_first_and_visits_each_digest_once(store):
    leaf = EMPTY[DigestFunction.SHA256]
    left = await put(store, x=leaf)
    right = await put(store, y=leaf)
    root = await put(store, a=left, b=right, c=left)
    assert await walked(store, root) == [root, left, right, leaf]


async def test_a_graph_of_forty_levels_with_equal_children_is_forty_directories(store):
    digest = EMPTY[DigestFunction.SHA256]
    for _ in range(40):
        digest = await put(store, a=digest, b=digest)
    assert len(await walked(store, digest)) == 41


async def test_missing_children_are_left_out_and_a_missing_root_is_an_error(store):
    root = await put(store, a=Digest(H, 3), b=EMPTY[DigestFunction.SHA256])
    assert await walked(store, root) == [root, EMPTY[DigestFunction.SHA256]]
    with pytest.raises(BlobNotFoundError):
        await walked(store, Digest(H, 3))


async def test_a_walk_over_too_many_directories_ends(store):
    children = {f"d{at}": await put(store, **{f"x{at}": EMPTY[DigestFunction.SHA256]}) for at in range(10)}
    root = await put(store, **children)
    assert len(await walked(store, root, limit=12)) == 12
    with pytest.raises(ExhaustedError, match="more than 11"):
        await walked(store, root, limit=11)
    assert MAX_DIRECTORIES == 250_000, "some 25 MB where nobody says less"


async def test_more_children_than_are_asked_for_at_once_keep_their_order(store):
    children = {f"d{at:03}": await put(store, **{f"x{at}": EMPTY[DigestFunction.SHA256]}) for at in range(100)}
    root = await put(store, **children)
    assert (await walked(store, root))[1:-1] == list(children.values())


@given(st.binary(max_size=80))
def test_children_are_those_of_the_decoded_directory(noise):
    """What has children by the short way has the same by the long one; noise is a Directory or is refused."""
    digest = digest_of(noise)
    try:
        nodes = decode(reapi.Directory, noise).directories
        expected = [Digest.parse(node.digest.hash, node.digest.size_bytes, DigestFunction.SHA256) for node in nodes]
    except (DecodeError, InvalidRequestError, AttributeError):
        return
    assert child_digests(digest, noise) == expected


def test_children_are_found_between_files_and_what_nobody_knows():
    directory = reapi.Directory(files=[file(str(at)) for at in range(5)], directories=[node("a"), node("b")])
    encoded = encode(directory)
    assert child_digests(digest_of(encoded), b"\xf2\x3f\x05later" + encoded + encode(directory)) == [Digest(H, 1)] * 4
    for length in range(1, len(encoded)):
        with contextlib.suppress(InvalidRequestError):
            assert len(child_digests(digest_of(encoded), encoded[:length])) <= 2
    with pytest.raises(InvalidRequestError, match="the digest is not set"):
        child_digests(digest_of(b""), encode(reapi.Directory(directories=[reapi.DirectoryNode(name="a")])))


class Asked(FaultyStore):
    """Notes which directories are asked for in each trip."""

    def __init__(self):
        super().__init__(MemoryStore(MemoryOptions(), BareContext()))
        self.trips = []

    async def get_many(self, keys):
        self.trips.append(list(keys))
        return await super().get_many(keys)


async def test_a_level_of_a_tree_is_one_trip():
    store = Asked()
    leaf = EMPTY[DigestFunction.SHA256]
    root = await put(store, a=await put(store, x=leaf), b=await put(store, y=leaf))
    assert len(await walked(store, root)) == 4
    assert [len(trip) for trip in store.trips] == [1, 2, 1]


async def test_how_much_of_a_tree_is_in_memory_at_once_is_bounded_by_number_and_bytes():
    store = Asked()
    many = {f"d{at:03}": await put(store, **{f"x{at}": EMPTY[DigestFunction.SHA256]}) for at in range(300)}
    await walked(store, await put(store, **many))
    assert [len(trip) for trip in store.trips] == [1, 256, 44, 1]
    store.trips.clear()
    large = {}
    for at in range(5):
        encoded = encode(reapi.Directory(files=[file(f"{at}" + "x" * 1_500_000)]))
        large[f"d{at}"] = digest_of(encoded)
        await store.put(digest_of(encoded), encoded)
    await walked(store, await put(store, **large))
    assert [len(trip) for trip in store.trips] == [1, 2, 2, 1]
    store.trips.clear()
    huge = Digest(H, 100 * 1024 * 1024)  # alone, however large
    await walked(store, await put(store, a=huge, b=huge, c=Digest("1" * 64, huge.size)))
    assert [len(trip) for trip in store.trips] == [1, 1, 1]
    store.trips.clear()
    half = 2 * 1024 * 1024
    await walked(store, await put(store, **{name: Digest(name * 64, half) for name in "abc"}))
    assert [len(trip) for trip in store.trips] == [1, 2, 1]


async def test_a_store_that_is_away_is_no_missing_directory():
    store = Asked()
    root = await put(store, a=await put(store, x=EMPTY[DigestFunction.SHA256]))
    store.plan("get", None, away())
    with pytest.raises(UnavailableError):
        await walked(store, root)


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_what_a_directory_names_are_digests_of_its_own_function(store, function):
    leaf = digest_of(encoded_leaf := encode(reapi.Directory(files=[file("a")])), function)
    encoded = encode(reapi.Directory(directories=[node("sub", leaf)]))
    root = digest_of(encoded, function)
    await store.put(leaf, encoded_leaf)
    await store.put(root, encoded)
    assert await walked(store, root) == [root, leaf]


async def test_a_walk_ends_at_what_is_no_directory_and_names_it(store):
    await store.put(wrong := digest_of(b"\x12\xff"), b"\x12\xff")
    with pytest.raises(InvalidRequestError, match=f"^{wrong} is not a Directory"):
        await walked(store, await put(store, a=wrong))
    encoded = encode(reapi.Directory(directories=[reapi.DirectoryNode(name="b", digest=reapi.Digest(hash="xx"))]))
    with pytest.raises(InvalidRequestError, match=f"^directory {digest_of(encoded)}: 'b': invalid digest hash 'xx'"):
        child_digests(digest_of(encoded), encoded)


async def test_a_walk_is_told_with_each_directory_what_it_is_and_what_it_names(store):
    leaf = EMPTY[DigestFunction.SHA256]
    root = await put(store, a=leaf, b=leaf)
    async with aclosing(walk(store, root)) as walking:
        loaded = [each async for each in walking]
    assert [(each.digest, bytes(each.encoded), list(each.children)) for each in loaded] == [
        (root, bytes(await store.get(root)), [leaf, leaf]), (leaf, b"", []),
    ]  # fmt: skip


async def test_a_walk_tells_how_many_directories_it_knows_of_so_far(store):
    """Whoever pays for what a walk remembers counts by it."""
    low = await put(store, x=EMPTY[DigestFunction.SHA256])
    root = await put(store, a=await put(store, c=low), b=await put(store, d=low, e=EMPTY[DigestFunction.SHA256]))
    async with aclosing(walk(store, root)) as walking:
        assert [each.known async for each in walking] == [3, 4, 5, 5, 5]


async def test_a_directory_that_stands_on_several_levels_is_visited_once(store):
    leaf = await put(store, x=EMPTY[DigestFunction.SHA256])
    middle = await put(store, y=leaf)
    root = await put(store, a=leaf, b=middle, c=EMPTY[DigestFunction.SHA256])
    assert await walked(store, root) == [root, leaf, middle, EMPTY[DigestFunction.SHA256]]


async def test_a_large_directory_is_looked_into_in_a_thread_and_a_small_one_is_not(store):
    """A thread is a checkpoint, where a cancellation is met; so few bytes cost none."""
    for length, completes in ((60_000, True), (70_000, False)):
        encoded = encode(reapi.Directory(files=[file("x" * length)]))
        await store.put(digest_of(encoded), encoded)
        with trio.CancelScope() as scope:
            scope.cancel()
            await walked(store, digest_of(encoded))
        assert scope.cancelled_caught is not completes
