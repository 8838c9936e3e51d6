"""The whole contract, for a store alone in its folder, a bounded one, and one that has no inotify."""

import pytest

from nl.plugin import EvictionPolicy
from nl.stores.filesystem import FilesystemOptions, FilesystemStore, mirror
from nl.stores.filesystem.watch import WatchUnavailableError
from nl.testing import LocalFilesConformance, StoreConformance


class TestFilesystemConformance(LocalFilesConformance, StoreConformance):
    def make_store(self, context, folder):
        options = FilesystemOptions(content_path=str(folder / "content"), temp_path=str(folder / "temp"))
        return FilesystemStore(options, context)


class TestBoundedFilesystemConformance(LocalFilesConformance, StoreConformance):
    def make_store(self, context, folder):
        policy = EvictionPolicy(max_bytes=64 * 2**20, evict_bytes=2**20, max_seconds=3600, max_count=100_000)
        options = FilesystemOptions(
            content_path=str(folder / "content"), temp_path=str(folder / "temp"), eviction_policy=policy,
            max_concurrent_writes=1, evict_page_cache=True, read_buffer_size=10_000,
        )
        return FilesystemStore(options, context)


class TestUnwatchedFilesystemConformance(LocalFilesConformance, StoreConformance):
    @pytest.fixture(autouse=True)
    def no_inotify(self, monkeypatch):
        def refuse():
            raise WatchUnavailableError("there are too many")

        monkeypatch.setattr(mirror, "Watch", refuse)

    def make_store(self, context, folder):
        options = FilesystemOptions(content_path=str(folder / "content"), temp_path=str(folder / "temp"))
        return FilesystemStore(options, context)
