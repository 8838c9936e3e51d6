"""A folder for a store, and stores running on it."""

import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import EvictionPolicy, key_text
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.testing import BareContext, started


class Place:
    """Where a store's folders are, and what lies in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content = root / "content"
        self.temp = root / "temp"
        self.corrupt = root / "content.corrupt"
        self.executables = root / "content.exec" / "d"
        self.inputs = root / "inputs"
        self.inputs.mkdir()

    def options(self, *, policy=None, **fields):
        return FilesystemOptions(
            content_path=str(self.content), temp_path=str(self.temp),
            eviction_policy=EvictionPolicy(**(policy or {})), **fields,
        )

    @asynccontextmanager
    async def running(self, *, name="CAS", scanned=True, **fields):
        """A running store, whose first scan is finished unless that is not wanted."""
        store = FilesystemStore(self.options(**fields), BareContext(name))
        async with started(store):
            if scanned:
                await store._mirror.scanned.wait()
            yield store

    def file(self, digest):
        return self.content / "d" / key_text(digest)

    def lay(self, digest, data):
        """Puts a file where somebody else would."""
        path = self.file(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def temp_files(self):
        return [name for _, _, files in os.walk(self.temp / "d") for name in files]

    def used(self):
        """Bytes in blocks that the blobs and variants take."""
        folders = [self.content / "d", self.content / "a", self.content / "s", self.executables]
        return sum(
            -(-file.stat().st_size // 4096) * 4096 for folder in folders if folder.exists() for file in folder.iterdir()
        )


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


async def put(store, data):
    digest = digest_of(data)
    await store.put(digest, data)
    return digest


async def until(condition):
    """Lets background work go on until it has done what is waited for."""
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)
