"""Directories: names that cannot leave their directory, and walks that cost what is distinct."""

import contextlib
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.blob.hashing import digest_of
from nl.cas.directories import child_digests, decode_directory, walk
from nl.errors import BlobNotFoundError, ExhaustedError, InvalidRequestError
from nl.model.digest import EMPTY, Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode, encode
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext

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


def test_a_child_without_digest_is_refused():
    encoded = encode(reapi.Directory(files=[reapi.FileNode(name="a")]))
    with pytest.raises(InvalidRequestError, match="'a' has no digest"):
        decode_directory(digest_of(encoded), encoded)


def test_bytes_that_are_no_directory_are_refused_with_their_digest():
    digest = digest_of(b"\x0a\xff")
    with pytest.raises(InvalidRequestError, match=f"{digest} is not a Directory"):
        decode_directory(digest, b"\x0a\xff")
    with pytest.raises(InvalidRequestError, match=f"{digest} is not a Directory"):
        child_digests(digest, b"\x0a\xff")


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
