"""The whole contract, for a store alone in its folder, a bounded one, and one that has no inotify."""

import pytest

from nl.plugin import EvictionPolicy
from nl.stores.filesystem import FilesystemOptions, FilesystemStore, mirror
from nl.stores.filesystem.watch import WatchUnavailableError
from nl.testing import (
    DurableStoreConformance,
    EvictingStoreConformance,
    LocalFilesConformance,
    StoreConformance,
)


def make_store(folder, context, **fields):
    place = {"content_path": str(folder / "content"), "temp_path": str(folder / "temp")}
    return FilesystemStore(FilesystemOptions(**place, **fields), context)


class Durable(DurableStoreConformance):
    def list_raw(self, folder):
        return {name for name in super().list_raw(folder) if not name.endswith((".session", ".lock"))}


class TestFilesystemConformance(LocalFilesConformance, Durable, StoreConformance):
    def make_store(self, context, folder):
        return make_store(folder, context)


class TestBoundedFilesystemConformance(LocalFilesConformance, StoreConformance):
    def make_store(self, context, folder):
        policy = EvictionPolicy(max_bytes=64 * 2**20, evict_bytes=2**20, max_seconds=3600, max_count=100_000)
        return make_store(
            folder, context, eviction_policy=policy, max_concurrent_writes=1, evict_page_cache=True,
            read_buffer_size=10_000,
        )


class TestEvictingFilesystemConformance(EvictingStoreConformance):
    def make_bounded_store(self, context, folder, policy):
        return make_store(folder, context, eviction_policy=policy)


class TestUnwatchedFilesystemConformance(LocalFilesConformance, Durable, StoreConformance):
    @pytest.fixture(autouse=True)
    def no_inotify(self, monkeypatch):
        def refuse():
            raise WatchUnavailableError("there are too many")

        monkeypatch.setattr(mirror, "Watch", refuse)

    def make_store(self, context, folder):
        return make_store(folder, context)
