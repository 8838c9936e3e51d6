"""GetTree's pages: how many directories, how many bytes, and where the next one begins."""

import hashlib
from contextlib import aclosing

import pytest

from nl.errors import ExhaustedError, InvalidRequestError
from nl.model.digest import Digest, key_text
from nl.pb import reapi
from nl.pb.codec import decode, encode
from nl.services import tree_pages as module
from nl.services.limits import MESSAGE_BYTES, REPLY_BYTES
from nl.services.tree_pages import KNOWN_BYTES, PAGE_BYTES, tree_pages
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext


@pytest.fixture
def store():
    return MemoryStore(MemoryOptions(), BareContext("CAS"))


async def put(store, directory):
    encoded = encode(directory)
    digest = Digest(hashlib.sha256(encoded).hexdigest(), len(encoded))
    await store.put(digest, encoded)
    return reapi.DirectoryNode(digest=reapi.Digest(hash=digest.hash, size_bytes=digest.size)), digest


def symlinks(size, salt=""):
    """A directory of exactly so many bytes."""
    directory = reapi.Directory(symlinks=[reapi.SymlinkNode(name=f"link{salt}", target="x" * max(0, size - 40))])
    directory.symlinks[0].target += "x" * (size - len(encode(directory)))
    assert len(encode(directory)) == size
    return directory


async def tree_of(store, *sizes):
    nodes = []
    for at, size in enumerate(sizes):
        node, _ = await put(store, symlinks(size, str(at)))
        node.name = f"d{at}"
        nodes.append(node)
    return (await put(store, reapi.Directory(directories=nodes)))[1]


async def pages_of(store, root, *, page_size=0, page_token="", keep=lambda count: None):
    pages = tree_pages(store, root, page_size=page_size, page_token=page_token, keep=keep)
    async with aclosing(pages):
        return [decode(reapi.GetTreeResponse, b"".join(page)) async for page in pages]


@pytest.mark.parametrize(("page_size", "sizes"), [(0, [6]), (1, [1] * 6), (2, [2, 2, 2]), (4, [4, 2]), (5, [5, 1]),
                                                  (6, [6]), (7, [6])])  # fmt: skip
async def test_a_page_has_no_more_directories_than_were_asked_for(store, page_size, sizes):
    root = await tree_of(store, *[100] * 5)
    pages = await pages_of(store, root, page_size=page_size)
    assert [len(page.directories) for page in pages] == sizes
    assert [bool(page.next_page_token) for page in pages] == [True] * (len(sizes) - 1) + [False]


async def test_what_a_walk_knows_is_told_with_each_page_and_nothing_of_it_is_left_with_the_last(store):
    """Its client may take its time with any of them."""
    kept = []
    root = await tree_of(store, *[100] * 5)
    await pages_of(store, root, page_size=2, keep=kept.append)
    assert kept == [6 * KNOWN_BYTES, 6 * KNOWN_BYTES, 0]


async def test_each_token_begins_where_its_page_ended(store):
    root = await tree_of(store, *[100] * 5)
    [whole] = await pages_of(store, root)
    pages = await pages_of(store, root, page_size=2)
    assert [each for page in pages for each in page.directories] == whole.directories
    for at, page in enumerate(pages[:-1]):
        again = await pages_of(store, root, page_size=2, page_token=page.next_page_token)
        assert again == pages[at + 1 :]


@pytest.mark.parametrize(("beyond", "sizes"), [(-1, [2, 3, 1]), (0, [3, 3]), (1, [3, 3])])
async def test_a_page_is_closed_before_it_is_longer_than_it_may_be(store, monkeypatch, beyond, sizes):
    root = await tree_of(store, *[300] * 5)
    [root_size] = await store.has([root])
    assert root_size > 300
    monkeypatch.setattr(module, "PAGE_BYTES", root_size + 6 + 306 + 300 + beyond)  # 6: what a message has for each
    assert [len(page.directories) for page in await pages_of(store, root)] == sizes


@pytest.mark.parametrize(("most", "sizes"), [(911, [2, 2, 2]), (912, [2, 3, 1])])
async def test_each_page_is_counted_from_nothing(store, monkeypatch, most, sizes):
    monkeypatch.setattr(module, "PAGE_BYTES", most)  # 306 + 306 + 300
    root = await tree_of(store, *[300] * 5)
    assert [len(page.directories) for page in await pages_of(store, root)] == sizes


@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_directory_alone_may_fill_a_reply_and_no_more(store, monkeypatch, beyond):
    monkeypatch.setattr(module, "REPLY_BYTES", 2000)
    monkeypatch.setattr(module, "PAGE_BYTES", 1500)
    root = await tree_of(store, 2000 + beyond, 100)
    if beyond:
        with pytest.raises(ExhaustedError, match="-2001 does not fit into 2000 bytes"):
            await pages_of(store, root)
    else:
        assert [len(page.directories) for page in await pages_of(store, root)] == [1, 1, 1]


async def test_a_token_of_nothing_in_the_tree_is_refused(store):
    root = await tree_of(store, 100)
    with pytest.raises(InvalidRequestError, match="names no directory of the tree"):
        await pages_of(store, root, page_token=key_text(Digest("a" * 64, 5)))
    with pytest.raises(InvalidRequestError, match="page_token 'x' is not one of this server's"):
        await pages_of(store, root, page_token="x")


async def test_an_empty_directory_is_in_its_page(store):
    node, root = await put(store, reapi.Directory(directories=[]))
    assert node.digest.size_bytes == 0
    [page] = await pages_of(store, root)
    assert page.directories == [reapi.Directory()]


def test_a_page_leaves_room_in_a_message():
    assert PAGE_BYTES == REPLY_BYTES - 512 * 1024 < MESSAGE_BYTES
