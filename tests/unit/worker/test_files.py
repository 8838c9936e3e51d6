"""Between the worker's disk and stores that keep no local files."""

import os

import pytest

from nl.blob.hashing import digest_of
from nl.errors import UploadMismatchError
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from nl.worker.files import local_files


@pytest.mark.parametrize("size", [100, 300_000])
async def test_a_file_that_changed_since_it_was_hashed_is_not_uploaded(tmp_path, size):
    store = MemoryStore(MemoryOptions(), BareContext())
    digest = digest_of(data := os.urandom(size))
    path = tmp_path / "out"
    for wrong in (os.urandom(size), os.urandom(size - 1), data + b"x", b""):
        path.write_bytes(wrong)
        with pytest.raises(UploadMismatchError):
            await local_files(store).adopt_file(digest, str(path))
        assert await store.has([digest]) == [None]
    path.write_bytes(data)
    await local_files(store).adopt_file(digest, str(path))
    assert await store.has([digest]) == [size]
