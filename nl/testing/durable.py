"""What a kind promises that keeps blobs over a restart, and what lies behind it.

Derive from it beside StoreConformance; `make_store` is called with the same folder again for the store after a restart.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import trio

from nl.plugin import CHUNK, SMALL, ActionKey, Deletes, Key, UnavailableError, digest_of
from nl.testing.histories import HistoryConformance
from nl.testing.observing import NAMES, find, make_blob, same
from nl.testing.readers import BlockingReader, FailingReader, PartsReader, split, write_blocked


class DurableStoreConformance(HistoryConformance):
    """Tests with restarts."""

    survives_restart = True

    def list_raw(self, folder: Path) -> Collection[str]:
        """What lies in the backend, seen without the store: names of files, rows, objects, unfinished ones included.

        By default the files below `folder`. It must be the same before and after an upload that failed.
        """
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    async def test_what_was_stored_is_there_after_a_restart(self, tmp_path: Path) -> None:
        blobs = [make_blob(size) for size in (1, 5000, SMALL + 1, 2 * CHUNK)]
        action = ActionKey(*digest_of(blobs[0]))
        values: dict[Key, bytes] = {action: self.make_value(200)}
        values.update((digest_of(blob), blob) for blob in blobs)
        values.update((name, b"value of %d" % number) for number, name in enumerate(NAMES))
        async with self.running_store(tmp_path) as store:
            await store.put(action, self.make_value(100, seed=5))
            for number, (key, value) in enumerate(values.items()):
                if number % 2:
                    await store.put(key, value)
                else:
                    await store.write(key, PartsReader(split(value, 9999)))
        async with self.running_store(tmp_path) as store:
            for key, value in values.items():
                assert same(await find(store, key), value), key

    async def test_what_was_deleted_stays_so_after_a_restart(self, tmp_path: Path) -> None:
        digest, kept = digest_of(b"goes"), digest_of(b"stays")
        async with self.running_store(tmp_path) as store:
            deletes = store.capability(Deletes)
            if deletes is None:
                pytest.skip("does not offer Deletes")
            await store.put_many([(digest, b"goes"), (kept, b"stays")])
            await deletes.delete([digest])
        async with self.running_store(tmp_path) as store:
            assert await store.has([digest, kept]) == [None, 5]

    @pytest.mark.parametrize("end", ["failed", "cancelled"])
    async def test_an_upload_that_did_not_end_well_leaves_nothing_behind_the_store(
        self, tmp_path: Path, end: str
    ) -> None:
        async with self.running_store(tmp_path) as store:
            await store.put(digest_of(b"first"), b"first")
            before = set(self.list_raw(tmp_path))
            for size in (1000, SMALL + 1, 3 * CHUNK):
                data = make_blob(size)
                if end == "failed":
                    error = UnavailableError("the source broke")
                    with pytest.raises(UnavailableError):
                        await store.write(digest_of(data), FailingReader(split(data[:-1], 9999), error, size=size))
                else:
                    reader = BlockingReader(split(data[:-1], 9999), rest=data[-1:])
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(write_blocked, store, digest_of(data), reader)
                        await reader.blocked.wait()
                        nursery.cancel_scope.cancel()
                assert set(self.list_raw(tmp_path)) == before
