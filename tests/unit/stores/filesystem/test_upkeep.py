"""What the store does by itself: what it makes good, what it deletes, and that it ends whatever is in its way."""

import os
import shutil

import pytest

from nl.plugin import Link, LocalFiles
from nl.stores.filesystem import store as store_module

from .conftest import put, until
from .test_evicting import watched as watched  # a fixture


async def test_a_folder_that_was_deleted_is_made_anew_though_nobody_uses_the_store(place, watched, monkeypatch):
    monkeypatch.setattr(store_module, "_FLUSH_S", 0.01)
    async with place.running() as store:
        digest = await put(store, b"gone")
        shutil.rmtree(place.content)
        await until(lambda: (place.content / "d").exists() and not store._mirror.folder_lost)
        await until(store._mirror.scanned.is_set)
        if watched:
            await until(lambda: store.statistics()["state"] == "exact")
        assert await store.has([digest]) == [None]
        assert await store.get(await put(store, b"new")) == b"new"


async def test_a_store_whose_folder_was_deleted_ends_all_the_same(place, watched):
    before = len(os.listdir("/proc/self/fd"))
    async with place.running() as store:
        await store.has([await put(store, b"used")])
        shutil.rmtree(place.content)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("gone", [True, False])
async def test_a_variant_whose_blob_has_gone_while_nobody_looked_goes_when_the_store_starts(place, watched, gone):
    async with place.running() as store:
        digest = await put(store, b"tool")
        await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
    if gone:
        place.file(digest).unlink()
    async with place.running() as store:
        await put(store, b"another")
        if gone:
            await until(lambda: not os.listdir(place.executables))
        files = 1 if gone else 3
        await until(lambda: store.statistics()["bytes"] == place.used() == files * 4096)
        assert store.statistics()["executables"] == len(os.listdir(place.executables)) == (not gone)


async def test_who_comes_after_the_folder_was_made_anew_shares_the_uses(place, watched, monkeypatch):
    monkeypatch.setattr(store_module, "_FLUSH_S", 0.01)
    policy = {"max_count": 3}
    async with place.running(policy=policy) as one:
        await put(one, b"gone")
        shutil.rmtree(place.content)
        await until(lambda: (place.content / "d").exists() and not one._mirror.folder_lost)
        await until(one._mirror.scanned.is_set)
        async with place.running(policy=policy) as two:
            await until(lambda: not one._uses.is_alone and not two._uses.is_alone)
            a, b, c = [await put(one, name) for name in (b"a", b"b", b"c")]
            assert await two.has([a]) == [1]
            d = await put(one, b"d")
            assert await one.has([a, b, c, d]) == [1, None, 1, 1]
