"""Full disks, broken disks, cancelled uploads: clear errors, nothing left behind, and on it goes."""

import errno
import os
import shutil
import subprocess
from contextlib import suppress

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    SMALL,
    BlobNotFoundError,
    BytesReader,
    ExhaustedError,
    InternalError,
    Link,
    LocalFiles,
    UnavailableError,
    UploadMismatchError,
)
from nl.stores.filesystem import mirror
from nl.stores.filesystem.oserrors import translate
from nl.testing import FailingReader, PartsReader, find, make_blob, split

from .conftest import Place, put, until
from .test_names_and_layout import mount as mount  # a fixture


@pytest.mark.parametrize("way", ["put", "write", "adopt"])
async def test_a_disk_that_others_fill_is_exhausted_loses_nothing_and_goes_on(tmp_path, mount, way):
    place = Place(tmp_path)
    place.content, place.temp = mount / "content", mount / "temp"
    async with place.running() as store:
        kept = {await put(store, data): data for data in (make_blob(150_000, seed=seed) for seed in range(3))}
        (mount / "junk").write_bytes(bytes(800_000))
        data = make_blob(1_200_000)
        digest = digest_of(data)

        async def upload():
            if way == "put":
                await store.put(digest, data)
            elif way == "write":
                await store.write(digest, PartsReader(split(data, 30_000)))
            else:
                (place.inputs / "out").write_bytes(data)
                await store.capability(LocalFiles).adopt_file(digest, str(place.inputs / "out"))

        for _ in range(3):
            with pytest.raises(ExhaustedError, match="'CAS'.*/(content/d|inputs)/.*the disk is full"):
                await upload()
            assert place.temp_files() == []
            assert await find(store, digest) is None
        for each, content in kept.items():
            assert await store.get(each) == content
        small = await put(store, b"small ones still fit")
        assert await store.get(small) == b"small ones still fit"
        (mount / "junk").unlink()
        await upload()
        assert await store.get(digest) == data
        assert store.statistics()["evicted_blobs"] == 0


@pytest.mark.parametrize("way", ["put", "write", "copied output"])
async def test_a_disk_that_the_store_itself_has_filled_gets_room_by_eviction(tmp_path, mount, way):
    place = Place(tmp_path)
    place.content, place.temp = mount / "content", mount / "temp"
    async with place.running() as store:
        digests = []
        for seed in range(20):
            data = make_blob(300_000, seed=seed)
            digests.append(digest_of(data))
            if way == "put":
                await store.put(digests[-1], data)
            elif way == "write":
                await store.write(digests[-1], PartsReader(split(data, 30_000)))
            else:
                (place.inputs / "out").write_bytes(data)
                await store.capability(LocalFiles).adopt_file(digests[-1], str(place.inputs / "out"))
            assert await store.get(digests[-1]) == data
        sizes = await store.has(digests)
        count = len(sizes) - sizes.count(None)
        assert count >= 4 and sizes[-count:] == [300_000] * count, "the least recently used went first"
        assert place.temp_files() == []


async def test_small_blobs_make_room_for_small_blobs(tmp_path, mount):
    place = Place(tmp_path)
    place.content, place.temp = mount / "content", mount / "temp"
    async with place.running() as store:
        for number in range(1500):
            data = b"%d" % number * 500
            assert await store.get(await put(store, data)) == data
        assert store.statistics()["evicted_blobs"] > 100


async def test_a_reserve_stays_free_on_a_disk_that_the_store_fills(tmp_path, mount):
    place = Place(tmp_path)
    place.content, place.temp = mount / "content", mount / "temp"

    def free():
        facts = os.statvfs(mount)
        return facts.f_bavail * facts.f_frsize

    async with place.running(min_free=1_000_000) as store:
        digests = [await put(store, make_blob(100_000, seed=seed)) for seed in range(19)]
        await until(lambda: free() >= 1_000_000)
        assert await store.has(digests[-5:]) == [100_000] * 5
        before = store.statistics()["evicted_blobs"]
        (mount / "junk").write_bytes(bytes(free() - 8192))
        digest = await put(store, b"a little")
        await trio.sleep(0.6)
        assert await store.has([digest]) == [8]
        assert store.statistics()["evicted_blobs"] == before, "it does not shrink for what others write"


async def test_without_inotify_a_store_that_fills_the_disk_makes_room_also_with_a_fresh_lock_file(
    tmp_path, mount, monkeypatch
):
    """A cleaner took the old one; what processes leave for each other in it has no block then."""
    place = Place(tmp_path)
    place.content, place.temp = mount / "content", mount / "temp"
    async with place.running() as store:
        digests = [await put(store, make_blob(100_000, seed=seed)) for seed in range(15)]
    (place.content / ".lock").unlink()
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    with (mount / "junk").open("wb", buffering=0) as junk, suppress(OSError):
        while True:
            junk.write(bytes(4096))
    async with place.running(min_free=0) as store:
        digest = await put(store, make_blob(100_000, seed=99))
        assert await store.has([digest]) == [100_000]
        assert store.statistics()["evicted_blobs"]
        assert None in await store.has(digests)


async def test_an_output_that_fills_the_disk_is_not_kept(tmp_path, mount):
    place = Place(tmp_path)
    place.content, place.temp = mount / "content", mount / "temp"
    async with place.running() as store:
        kept = await put(store, b"input")
        path = mount / "out"
        facts = os.statvfs(mount)
        data = bytes(facts.f_bavail * facts.f_frsize)
        path.write_bytes(data)
        with pytest.raises(ExhaustedError, match="it fills the disk"):
            await store.capability(LocalFiles).adopt_file(digest_of(data), str(path))
        assert path.exists(), "it is the caller's to remove"
        path.unlink()
        assert await store.get(kept) == b"input"
        await put(store, b"the next one")


async def test_inodes_are_told_from_bytes(tmp_path):
    mount = tmp_path / "mount"
    mount.mkdir()
    options = "size=20m,nr_inodes=300"
    if os.geteuid() or subprocess.call(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)]):
        pytest.skip("NOT TESTED: mounting a tmpfs needs root and CAP_SYS_ADMIN")
    try:
        place = Place(tmp_path)
        place.content, place.temp = mount / "content", mount / "temp"
        async with place.running() as store:
            for number in range(400):
                await put(store, b"%d" % number)
            assert store.statistics()["evicted_blobs"] > 100
        for digest in os.listdir(place.content / "d"):
            (place.content / "d" / digest).unlink()
        (mount / "junk").mkdir()
        async with place.running() as store:
            with suppress(OSError):
                for number in range(300):
                    (mount / "junk" / str(number)).touch()
            with pytest.raises(ExhaustedError, match="no inodes left"):
                await put(store, b"one more")
    finally:
        subprocess.check_call(["umount", "-l", str(mount)])


async def test_a_folder_that_takes_no_more_names_gets_room_by_eviction(place, monkeypatch):
    """As ext4 does when one of the blocks of a folder's index is full: some names still find a place."""
    real, refused = os.rename, 0

    def rename(source, target, **folders):
        nonlocal refused
        if len(os.listdir(place.content / "d")) >= 200 and target[:1] in "02468":
            refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target, **folders)

    async with place.running() as store:
        monkeypatch.setattr(os, "rename", rename)
        for number in range(300):
            await put(store, b"%d" % number)
        assert refused and 100 <= len(os.listdir(place.content / "d")) <= 300
        monkeypatch.setattr(store._space, "_evict", lambda files: trio.lowlevel.checkpoint())
        with pytest.raises(ExhaustedError, match="one more name"):
            for number in range(300, 1000):
                await put(store, b"%d" % number)


@pytest.mark.parametrize("what", ["a folder of temp", "temp/d", "temp"])
async def test_a_cleaner_of_temporary_files_fails_no_upload_for_long_and_forgets_no_hash(place, what):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(100)]
        if what == "a folder of temp":
            for folder in (place.temp / "d").iterdir():
                folder.rmdir()
            await put(store, b"at once")
        else:
            shutil.rmtree(place.temp if what == "temp" else place.temp / "d")
            with pytest.raises(UnavailableError, match="made again"):
                await put(store, b"after a moment")
            await until(lambda: (place.temp / "d").exists() and not store._mirror.folder_lost)
            await put(store, b"after a moment")
        for number, digest in enumerate(digests):
            assert await store.get(digest) == b"%d" % number
        assert store.statistics()["hashed_blobs"] == 0


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.ENOSPC, ExhaustedError, "max_bytes"),
        (errno.EDQUOT, ExhaustedError, "quota"),
        (errno.EFBIG, ExhaustedError, "ulimit -f"),
        (errno.EIO, UnavailableError, "kernel log"),
        (errno.EACCES, UnavailableError, "user"),
        (errno.EPERM, UnavailableError, "user"),
        (errno.ENFILE, UnavailableError, "fs.file-max"),
        (errno.ENOLCK, UnavailableError, "no locks"),
        (errno.ESTALE, UnavailableError, "lost the file"),
        (errno.ENOENT, UnavailableError, "made again"),
        (errno.ENOMEM, UnavailableError, "memory"),
        (errno.EROFS, UnavailableError, "read-only"),
        (errno.EMFILE, UnavailableError, "ulimit"),
        (errno.ELOOP, InternalError, "cannot read /x"),
    ],
)
def test_errors_of_the_system_say_where_and_what_to_do(number, kind, advice):
    error = translate(OSError(number, os.strerror(number)), store="CAS", path="/x", doing="read")
    assert type(error) is kind
    assert "'CAS'" in error.message and "/x" in error.message and advice in error.message


@pytest.mark.parametrize("size", [100, SMALL + 1, 3 << 20])
async def test_a_reader_that_fails_leaves_no_file(place, size):
    data = make_blob(size)
    async with place.running() as store:
        with pytest.raises(ZeroDivisionError):
            await store.write(digest_of(data), FailingReader(split(data[:-1], 50_000), ZeroDivisionError(), size=size))
        assert place.temp_files() == []
        assert await find(store, digest_of(data)) is None


@pytest.mark.parametrize("size", [100, SMALL + 1, 3 << 20])
async def test_cancelling_an_upload_at_any_await_leaves_no_file(place, size):
    """Cancels at the first checkpoint, then at the second, ... until the upload gets through."""
    data = make_blob(size)
    digest = digest_of(data)
    async with place.running(policy={"max_bytes": 100 << 20}) as store:
        for most in range(200):
            with trio.CancelScope() as scope:
                canceller = _CancelAt(scope, most)
                trio.lowlevel.add_instrument(canceller)
                try:
                    await store.write(digest, _Checkpointing(data))
                finally:
                    trio.lowlevel.remove_instrument(canceller)
            assert place.temp_files() == []
            if not scope.cancelled_caught:
                break
            assert await find(store, digest) is None
        assert most > 0
        assert await find(store, digest) == data


class _Checkpointing(BytesReader):
    async def receive_parts(self, max_bytes=50_000):
        await trio.lowlevel.checkpoint()
        return await super().receive_parts(50_000)


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope after the task that made this has been scheduled so many times."""

    def __init__(self, scope, turns):
        self.scope, self.turns = scope, turns
        self.task = trio.lowlevel.current_task()
        if not turns:
            scope.cancel()

    def after_task_step(self, task):
        if task is self.task:
            self.turns -= 1
            if self.turns <= 0:
                self.scope.cancel()


@pytest.mark.parametrize("way", ["put", "write"])
async def test_too_few_or_too_many_bytes_are_no_blob(place, way):
    async with place.running() as store:
        for data in (b"12345", b"1234567"):
            digest = digest_of(b"123456")
            with pytest.raises(UploadMismatchError, match=str(digest)):
                if way == "put":
                    await store.put(digest, data)
                else:
                    await store.write(digest, PartsReader([data], size=-1))
            assert await find(store, digest) is None
            assert place.temp_files() == []


async def test_a_blob_that_is_there_is_not_written_again_but_its_upload_is_read_to_the_end(place):
    data = make_blob(3 << 20)
    digest = digest_of(data)
    async with place.running() as store:
        await store.write(digest, BytesReader(data))
        inode = place.file(digest).stat().st_ino
        reader = PartsReader(split(data, 100_000))
        await store.write(digest, reader)
        assert not await reader.receive_parts()
        assert place.file(digest).stat().st_ino == inode
        with pytest.raises(UploadMismatchError):
            await store.write(digest, PartsReader([data, b"x"], size=-1))
        with pytest.raises(ZeroDivisionError):
            await store.write(digest, FailingReader([data[:5]], ZeroDivisionError(), size=len(data)))
        assert await find(store, digest) == data


async def test_reused_buffers_of_a_reader_are_not_mixed_up(place):
    """A reader may hand out the same bytearray again and again."""

    class Reusing(BytesReader):
        buffer = bytearray(10_000)

        async def receive_parts(self, max_bytes=0):
            parts = await super().receive_parts(10_000)
            if not parts:
                return ()
            count = len(parts[0])
            self.buffer[:count] = parts[0]
            return (memoryview(self.buffer)[: count // 2], memoryview(self.buffer)[count // 2 : count])

    data = make_blob((3 << 20) + 17)
    async with place.running() as store:
        await store.write(digest_of(data), Reusing(data))
        assert await find(store, digest_of(data)) == data


async def test_a_file_system_without_nowait_reads_is_read_all_the_same(place, monkeypatch):
    data = make_blob(3 << 20)
    real = os.preadv

    def preadv(fd, buffers, offset, flags=0):
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(fd, buffers, offset)

    async with place.running() as store:
        digest, small = await put(store, data), await put(store, b"small")
        monkeypatch.setattr(os, "preadv", preadv)
        assert await find(store, digest) == data
        assert await find(store, small) == b"small"


async def test_bytes_that_are_not_in_memory_are_read_in_a_thread(place, monkeypatch):
    data = make_blob(1 << 20)
    real = os.preadv

    def preadv(fd, buffers, offset, flags=0):
        if flags:
            raise BlockingIOError
        return real(fd, buffers, offset)

    async with place.running() as store:
        digest = await put(store, data)
        monkeypatch.setattr(os, "preadv", preadv)
        assert await find(store, digest) == data
        assert store.statistics()["cold_reads"] > 0


async def test_a_slow_reader_holds_little_memory(place):
    data = make_blob(1 << 20)
    async with place.running() as store:
        digest = await put(store, data)
        async with store.open(digest) as reader:
            [part] = await reader.receive_parts(1000)
            assert len(part) == 1000 and len(part.obj) <= 4096
            [part] = await reader.receive_parts(1 << 20)
            assert len(part) == len(part.obj) == 256 * 1024


async def test_a_missing_link_target_folder_is_the_callers_fault_and_says_where(place):
    async with place.running() as store:
        digest = await put(store, b"x")
        with pytest.raises(InternalError, match=str(place.inputs / "no" / "file")):
            await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "no" / "file"), False)])


async def test_a_blob_evicted_between_asking_and_reading_is_missing_not_broken(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, b"x")
        monkeypatch.setattr(store._mirror, "refresh", lambda: None)
        place.file(digest).unlink()
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)
