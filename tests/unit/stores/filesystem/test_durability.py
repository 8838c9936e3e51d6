"""With `durability: "fsync"` an action result is on the disk, name and all, before it is acknowledged."""

import os
import stat

import pytest

from nl.blob.hashing import digest_of
from nl.plugin import ActionKey, BytesReader, UnavailableError

ACTION = ActionKey(*digest_of(b"an action"))


@pytest.fixture
def synced(place, monkeypatch):
    """What was synced: of a file its bytes, and whether the result was visible then; of a folder its name."""
    seen = []

    def fsync(fd, really=os.fsync):
        really(fd)
        visible = bool(os.listdir(place.content / "a"))
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            seen.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), visible))
        else:
            seen.append((os.fstat(fd).st_size, visible))

    monkeypatch.setattr("os.fsync", fsync)
    return seen


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_result_is_synced_before_it_is_visible_and_its_name_before_it_is_acknowledged(place, synced, chunked):
    async with place.running(durability="fsync") as store:
        await (store.write(ACTION, BytesReader(b"result")) if chunked else store.put(ACTION, b"result"))
        assert synced == [(6, False), ("a", True)]
        assert await store.get(ACTION) == b"result"


async def test_blobs_are_not_waited_for(place, synced):
    async with place.running(durability="fsync") as store:
        await store.put(digest_of(b"blob"), b"blob")
        await store.write(digest_of(b"x" * 100_000), BytesReader(b"x" * 100_000))
    assert not synced


async def test_without_the_option_nothing_is(place, synced):
    async with place.running() as store:
        await store.put(ACTION, b"result")
    assert not synced


async def test_a_result_that_the_disk_does_not_take_is_not_acknowledged(place, monkeypatch):
    def fsync(fd):
        raise OSError(5, "Input/output error")

    async with place.running(durability="fsync") as store:
        monkeypatch.setattr("os.fsync", fsync)
        with pytest.raises(UnavailableError):
            await store.put(ACTION, b"result")
        assert await store.has([ACTION]) == [None]
        assert not place.temp_files()
