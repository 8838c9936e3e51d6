"""The part of the conformance suite for stores that hand out local files.

Mixed in beside StoreConformance: `class TestMyStore(LocalFilesConformance, StoreConformance)`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import EMPTY_DIGESTS, Link, LocalFiles, Store
from nl.testing.observing import same


class LocalFilesConformance:
    """Tests of the LocalFiles capability. Uses the fixture `store` of the class it is mixed into."""

    @pytest.fixture
    def local(self, store: Store) -> LocalFiles:
        """The capability."""
        files = store.capability(LocalFiles)
        assert isinstance(files, LocalFiles)
        return files

    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        """Where an action's inputs would go."""
        folder = tmp_path / "inputs"
        folder.mkdir()
        return folder

    async def test_linked_files_have_content_and_mode(self, store: Store, local: LocalFiles, inputs: Path) -> None:
        links = []
        for number, size in enumerate((1, 5000, 300_000)):
            data = os.urandom(size)
            digest = digest_of(data)
            await store.put(digest, data)
            links.append((data, Link(digest, str(inputs / f"plain{number}"), False)))
            links.append((data, Link(digest, str(inputs / f"tool{number}"), True)))
            links.append((data, Link(digest, str(inputs / f"again{number}"), False)))
        assert await local.link_files([link for _, link in links]) == []
        for data, link in links:
            assert same(Path(link.path).read_bytes(), data)
            assert stat.S_IMODE(os.stat(link.path).st_mode) == (0o555 if link.executable else 0o444)

    async def test_linked_empty_files_are_fresh(self, local: LocalFiles, inputs: Path) -> None:
        digest = sorted(EMPTY_DIGESTS)[0]
        paths = [str(inputs / "one"), str(inputs / "two"), str(inputs / "tool")]
        assert await local.link_files([Link(digest, path, path.endswith("tool")) for path in paths]) == []
        assert [os.stat(path).st_size for path in paths] == [0, 0, 0]
        assert [os.stat(path).st_nlink for path in paths] == [1, 1, 1]
        assert stat.S_IMODE(os.stat(paths[2]).st_mode) & 0o111

    async def test_missing_blobs_are_named_once_and_the_rest_is_linked(
        self, store: Store, local: LocalFiles, inputs: Path
    ) -> None:
        here = digest_of(b"here")
        gone, lost = digest_of(b"gone"), digest_of(b"lost")
        await store.put(here, b"here")
        wanted = [gone, here, lost, gone, here]
        links = [Link(digest, str(inputs / str(number)), False) for number, digest in enumerate(wanted)]
        assert await local.link_files(links) == [gone, lost]
        assert sorted(os.listdir(inputs)) == ["1", "4"]
        assert (inputs / "4").read_bytes() == b"here"

    async def test_removing_a_link_leaves_the_blob(self, store: Store, local: LocalFiles, inputs: Path) -> None:
        digest = digest_of(b"stays")
        await store.put(digest, b"stays")
        await local.link_files([Link(digest, str(inputs / "file"), False)])
        os.unlink(inputs / "file")
        assert await store.get(digest) == b"stays"

    @pytest.mark.parametrize("size", [1, 5000, 300_000])
    async def test_an_adopted_file_is_a_blob(self, store: Store, local: LocalFiles, inputs: Path, size: int) -> None:
        data = os.urandom(size)
        digest = digest_of(data)
        (inputs / "output").write_bytes(data)
        await local.adopt_file(digest, str(inputs / "output"))
        assert await store.has([digest]) == [size]
        async with store.open(digest) as reader:
            got = b""
            while parts := await reader.receive_parts():
                got += b"".join(map(bytes, parts))
        assert same(got, data)

    async def test_adopting_what_is_there_or_empty_is_harmless(
        self, store: Store, local: LocalFiles, inputs: Path
    ) -> None:
        digest = digest_of(b"twice")
        await store.put(digest, b"twice")
        (inputs / "output").write_bytes(b"twice")
        await local.adopt_file(digest, str(inputs / "output"))
        assert await store.get(digest) == b"twice"
        empty = digest_of(b"")
        (inputs / "empty").write_bytes(b"")
        await local.adopt_file(empty, str(inputs / "empty"))
        assert await store.get(empty) == b""

    async def test_one_file_adopted_by_many_at_once(self, store: Store, local: LocalFiles, inputs: Path) -> None:
        data = os.urandom(10_000)
        digest = digest_of(data)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                path = inputs / str(number)
                path.write_bytes(data)
                nursery.start_soon(local.adopt_file, digest, str(path))
        assert same(await store.get(digest), data)
