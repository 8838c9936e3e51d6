"""Input roots as graphs: shared directories are fetched once, hostile shapes end in an error and end soon."""

from __future__ import annotations

import pytest

from nl.blob.hashing import digest_of
from nl.errors import InvalidRequestError, PreconditionError
from nl.model.digest import Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import encode
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing.context import BareContext
from nl.worker.failures import missing_blobs
from nl.worker.files import local_files
from nl.worker.inputs import Listings, lay_out, materialise


@pytest.fixture
def store():
    return MemoryStore(MemoryOptions(), BareContext())


async def put(store, *, files=(), directories=()) -> Digest:
    message = reapi.Directory(
        files=[reapi.FileNode(name=name, digest=wire(digest)) for name, digest in files],
        directories=[reapi.DirectoryNode(name=name, digest=wire(digest)) for name, digest in directories],
    )
    data = encode(message)
    digest = digest_of(data)
    if data:
        await store.put(digest, data)
    return digest


def wire(digest: Digest) -> reapi.Digest:
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size)


async def doubled(store, levels: int) -> Digest:
    digest = await put(store)
    for _ in range(levels):
        digest = await put(store, directories=[("a", digest), ("b", digest)])
    return digest


async def test_a_graph_that_doubles_with_each_level_is_refused_before_it_is_written(store, tmp_path):
    root = await doubled(store, 40)
    with pytest.raises(InvalidRequestError, match="more than 1000000 entries"):
        await materialise(
            root,
            str(tmp_path),
            listings=Listings(store),
            store=store,
            files=local_files(store),
            function=DigestFunction.SHA256,
        )
    assert list(tmp_path.iterdir()) == []


async def test_a_shared_directory_is_fetched_once_and_made_as_often_as_it_occurs(store):
    root = await doubled(store, 3)
    found, missing = await Listings(store).closure(root)
    assert len(found) == 4 and not missing
    assert len(lay_out(root, "/r", found).directories) == 2 + 4 + 8


async def test_a_chain_that_is_too_deep_is_refused(store):
    digest = await put(store)
    for _ in range(300):
        digest = await put(store, directories=[("d", digest)])
    with pytest.raises(InvalidRequestError, match="deeper than 256"):
        await Listings(store).closure(digest)


async def test_what_is_no_directory_is_refused(store):
    await store.put(digest_of(b"\xff\xff"), b"\xff\xff")
    with pytest.raises(InvalidRequestError, match="not a Directory"):
        await Listings(store).closure(digest_of(b"\xff\xff"))


async def test_directories_are_forgotten_beyond_the_limit(store):
    listings = Listings(store, max_bytes=300)
    for n in range(20):
        await listings.closure(await put(store, files=[(f"f{n}", digest_of(b"x"))]))
    assert listings.statistics()["listing_bytes"] <= 300
    assert listings.statistics()["listings"] >= 1


async def test_a_name_that_no_file_can_have_is_refused(store):
    root = await put(store, files=[("\u00e9" * 200, digest_of(b"x"))])
    with pytest.raises(InvalidRequestError, match="too long"):
        await Listings(store).closure(root)


def test_missing_blobs_are_listed_once_each_and_without_an_instance_name():
    digests = [Digest("a" * 64, 1), Digest("b" * 64, 2), Digest("a" * 64, 1)]
    error = missing_blobs(digests, DigestFunction.BLAKE3)
    assert isinstance(error, PreconditionError)
    assert [(item.type, item.subject) for item in error.details] == [
        ("MISSING", f"blobs/blake3/{'a' * 64}/1"),
        ("MISSING", f"blobs/blake3/{'b' * 64}/2"),
    ]
    assert "2 input blobs" in error.message
