"""Room for one more file: who goes for it, who does not, and when a listing is waited for first."""

import os

import pytest
import trio

from nl.plugin import BlobNotFoundError, ExhaustedError, Link, LocalFiles, key_text
from nl.stores.filesystem import mirror
from nl.stores.filesystem.room import Made, Room
from nl.testing import make_blob

from .conftest import put, until
from .test_evicting import watched as watched  # a fixture
from .test_scanning import held_scan

BLOCK = 4096


async def test_without_inotify_who_lists_the_folder_once_more_knows_all_the_same_what_to_evict(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    policy = {"max_bytes": 5 * BLOCK}
    async with place.running(policy=policy) as one, place.running(policy=policy) as two:
        await until(lambda: not one._uses.is_alone)
        digests = [await put(two, b"of another process %d" % number) for number in range(3)]
        with held_scan(monkeypatch) as go_on:
            one._mirror.scan_wanted = True
            await until(lambda: one._scanner.began_at >= 0)
            digests += [await put(one, b"%d" % number) for number in range(8)]
            assert [size is not None for size in await two.has(digests)] == [False] * 6 + [True] * 5
            go_on()


async def test_while_the_folder_is_listed_a_variant_does_not_drive_its_own_blob_out(place, monkeypatch):
    policy = {"max_bytes": 20 * BLOCK}
    async with place.running(policy=policy) as store:
        for number in range(19):
            await put(store, b"old %d" % number)
        tool = await put(store, b"tool")
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False, policy=policy) as store:
            links = [Link(tool, str(place.inputs / "tool"), True)]
            assert await store.capability(LocalFiles).link_files(links) == []
            assert (place.inputs / "tool").read_bytes() == b"tool"
            assert place.file(tool).exists() and os.listdir(place.executables) == []
            assert place.used() == 20 * BLOCK
            go_on()


@pytest.mark.parametrize("limit", [4 * BLOCK - 1, 4 * BLOCK])
async def test_a_variant_that_does_not_fit_beside_its_blob_in_whole_blocks_evicts_nobody(place, watched, limit):
    async with place.running(policy={"max_bytes": limit}) as store:
        other, tool = await put(store, b"other"), await put(store, make_blob(BLOCK + 1))
        await store.capability(LocalFiles).link_files([Link(tool, str(place.inputs / "tool"), True)])
        fits = limit == 4 * BLOCK
        assert place.file(other).exists() is not fits
        assert os.listdir(place.executables) == ([key_text(tool)] if fits else [])
        assert place.file(tool).exists()


async def test_a_variant_of_what_has_gone_is_refused_where_that_is_known(place, watched):
    async with place.running(policy={"max_bytes": 4 * BLOCK}) as store:
        await put(store, b"x")
        committer = store._committer
        await committer.lock.acquire()
        with committer.locked():
            room = Room(committer, BLOCK, count=0, name="the variant", beside="no such key")
            if store._mirror.is_exact:
                with pytest.raises(BlobNotFoundError, match="the variant"):
                    room.make()
            else:
                assert room.make() is Made.YES, "its blob may have been written by another process"


async def test_a_variant_for_which_nothing_more_can_go_has_no_room(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with place.running(policy={"max_bytes": 4 * BLOCK}) as store:
        digest = await put(store, b"x")
        committer = store._committer
        await committer.lock.acquire()
        with committer.locked():
            store._mirror.want_scan()
            committer._tell(4 * BLOCK)
            with pytest.raises(ExhaustedError, match="'CAS' has no room for a second file of the variant"):
                Room(committer, BLOCK, count=0, name="the variant", beside=digest.hash).make()
            assert Room(committer, BLOCK).make() is Made.YES, "the blob goes for another one"
            committer._tell(4 * BLOCK)
            assert Room(committer, BLOCK).make() is Made.NOT_KNOWN


async def test_no_more_than_a_slice_goes_before_others_have_their_turn(place):
    async with place.running(policy={"max_bytes": 200 * BLOCK}) as store:
        for number in range(200):
            await store.put(f"{number}", b"x")
        most = before = 0

        async def look():
            nonlocal most, before
            while True:
                evicted = store.statistics()["evicted_blobs"]
                most, before = max(most, evicted - before), evicted
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.lowlevel.checkpoint()
            await put(store, make_blob(200 * BLOCK))
            nursery.cancel_scope.cancel()
        assert 64 <= most <= 128, "whoever looks comes before or after, so it may see two"
        assert store.statistics()["evicted_blobs"] == 200
