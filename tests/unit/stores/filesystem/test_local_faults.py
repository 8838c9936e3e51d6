"""Local files where something is in the way: whose fault it is, which path is named, what is left."""

import errno
import fcntl
import hashlib
import os
import stat

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    BlobNotFoundError,
    Digest,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    Link,
    LocalFiles,
    UnavailableError,
    UploadMismatchError,
)
from nl.stores.filesystem import adopting, executables
from nl.stores.filesystem.leases import nobody_writes_to
from nl.testing import find, make_blob

from .conftest import put, until
from .test_evicting import watched as watched  # a fixture
from .test_scanning import held_scan

MIB = 1 << 20


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("fault", ["there already", "no folder", "folder is a file", "too long"])
@pytest.mark.parametrize("size", [0, 5])
@pytest.mark.parametrize("many", [False, True])
async def test_a_path_that_cannot_be_made_is_the_callers_fault_and_is_the_one_that_is_named(place, fault, size, many):
    (place.inputs / "file").write_bytes(b"kept")
    bad = {
        "there already": "file", "no folder": "none/file", "folder is a file": "file/file", "too long": "x" * 256,
    }[fault]  # fmt: skip
    async with place.running() as store:
        digest = await put(store, b"x" * size)
        links = [Link(digest, str(place.inputs / name), False) for name in ("first", bad, *map(str, range(9 * many)))]
        before = descriptors()
        with pytest.raises(InternalError, match=f"^cannot make the input {place.inputs}/{bad}: "):
            await store.capability(LocalFiles).link_files(links)
        assert descriptors() == before
        assert (place.inputs / "file").read_bytes() == b"kept"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EACCES])
async def test_an_output_that_cannot_be_moved_is_copied(place, monkeypatch, number):
    real = os.rename

    def rename(source, target, **options):
        if str(source).startswith(str(place.inputs)):
            raise OSError(number, os.strerror(number))
        real(source, target, **options)

    async with place.running() as store:
        before = descriptors()
        (place.inputs / "out").write_bytes(b"output")
        os.mkfifo(place.inputs / "fifo")
        (place.inputs / "link").symlink_to(place.inputs / "out")
        monkeypatch.setattr(os, "rename", rename)
        adopt = store.capability(LocalFiles).adopt_file
        await adopt(digest_of(b"output"), str(place.inputs / "out"))
        assert await find(store, digest_of(b"output")) == b"output"
        assert (place.inputs / "out").read_bytes() == b"output"
        with trio.fail_after(60), pytest.raises(InvalidRequestError, match="not a regular file"):
            await adopt(digest_of(b"x"), str(place.inputs / "fifo"))
        with pytest.raises(InternalError, match=f"cannot take over {place.inputs}/link"):
            await adopt(digest_of(b"OUTPUT"), str(place.inputs / "link"))
        with pytest.raises(UploadMismatchError, match="has 6 bytes"):
            await adopt(digest_of(b"out"), str(place.inputs / "out"))
        assert place.temp_files() == [] and descriptors() == before
        assert store.statistics()["adopted_files"] == 0


async def test_an_output_that_a_broken_disk_does_not_move_is_told_with_its_path(place, monkeypatch):
    def rename(source, target, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with place.running() as store:
        (place.inputs / "out").write_bytes(b"output")
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(UnavailableError, match=f"cannot take over {place.inputs}/out: the disk reports"):
            await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(place.inputs / "out"))


@pytest.mark.parametrize(("size", "hashed"), [(16 * MIB, 1), (16 * MIB + 1, 0)])
async def test_outputs_are_hashed_again_up_to_sixteen_mebibytes(place, size, hashed):
    async with place.running() as store:
        path = place.inputs / "out"
        path.write_bytes(b"")
        os.truncate(path, size)
        digest = Digest(hashlib.sha256(bytes(size)).hexdigest(), size)
        await store.capability(LocalFiles).adopt_file(digest, str(path))
        assert store.statistics()["hashed_blobs"] == hashed
        assert stat.S_IMODE(place.file(digest).stat().st_mode) == 0o444


async def test_where_making_a_variant_is_given_up_who_waits_for_it_makes_it(place, watched):
    async with place.running() as store:
        digest = await put(store, b"tool")
        files, made = store.capability(LocalFiles), []

        async def link(name, scope):
            with scope:
                await files.link_files([Link(digest, str(place.inputs / name), True)])
                made.append(name)

        with (place.content / ".lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            async with trio.open_nursery() as nursery:
                first = trio.CancelScope()
                nursery.start_soon(link, "first", first)
                await until(lambda: store._committer.lock.waits == 1)
                for name in ("second", "third"):
                    nursery.start_soon(link, name, trio.CancelScope())
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()
                await until(lambda: store._committer.lock.waits == 2)
                fcntl.flock(lock, fcntl.LOCK_UN)
        assert sorted(made) == ["second", "third"]
        variant = (place.executables / str(digest)).stat()
        assert variant.st_nlink == 3 and place.temp_files() == []
        assert (place.inputs / "second").stat().st_ino == (place.inputs / "third").stat().st_ino == variant.st_ino


async def test_a_variant_that_cannot_be_opened_is_told_and_not_made_anew(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, b"tool")
        real = os.open

        def refuse(name, *args, dir_fd=None, **options):
            if dir_fd == store._layout.executables.fd:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(name, *args, dir_fd=dir_fd, **options)

        before = descriptors()
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refuse)
            with pytest.raises(UnavailableError, match=f"cannot make the input {place.inputs}/tool.*ulimit -n"):
                await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
        assert descriptors() == before and os.listdir(place.executables) == []


@pytest.mark.parametrize("size", [5, 300_000])
async def test_a_variant_of_a_blob_that_is_changed_while_it_is_copied_is_not_handed_out(place, monkeypatch, size):
    async with place.running() as store:
        digest = await put(store, make_blob(size))
        real = os.copy_file_range

        def change_and_copy(*args, **options):
            os.utime(place.file(digest), (1, 1))
            return real(*args, **options)

        before = descriptors()
        monkeypatch.setattr(os, "copy_file_range", change_and_copy)
        with pytest.raises(UnavailableError, match="I/O error"):
            await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
        assert os.listdir(place.executables) == [] and place.temp_files() == [] and descriptors() == before


async def test_a_variant_of_which_the_kernel_copies_less_than_all_is_not_handed_out(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, make_blob(5000))
        real = executables.copy_bytes
        monkeypatch.setattr(executables, "copy_bytes", lambda source, target, size: real(source, target, size - 1))
        with pytest.raises(UnavailableError, match="I/O error"):
            await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
        assert os.listdir(place.executables) == [] == place.temp_files() == os.listdir(place.inputs)


async def test_variants_found_when_the_store_starts_are_hashed_once_and_then_known(place, watched):
    async with place.running() as store:
        digest = await put(store, make_blob(1000))
        files = store.capability(LocalFiles)
        await files.link_files([Link(digest, str(place.inputs / "first"), True)])
    async with place.running() as store:
        files = store.capability(LocalFiles)
        for number in range(3):
            assert await files.link_files([Link(digest, str(place.inputs / f"{number}"), True)]) == []
        assert store.statistics()["hashed_blobs"] == 2, "the blob and the variant"
        assert store.statistics()["executables"] == 1
        inodes = {(place.inputs / name).stat().st_ino for name in ("first", "0", "1", "2")}
        assert len(inodes) == 1
        place.file(digest).unlink()
        (place.executables / str(digest)).unlink()
        assert await files.link_files([Link(digest, str(place.inputs / "none"), True)]) == [digest]
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)


@pytest.mark.parametrize("executable", [False, True])
async def test_what_cannot_be_opened_is_not_said_to_be_missing(place, monkeypatch, executable):
    """Or the client would upload all of it anew, and to a disk that is broken."""
    data = make_blob(1000)
    place.lay(digest_of(data), data)
    real = os.open

    def refuse(name, *args, dir_fd=None, **options):
        if dir_fd == store._layout.blobs.fd:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, *args, dir_fd=dir_fd, **options)

    async with place.running() as store:
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(UnavailableError, match="the disk reports an I/O error"):
            await store.capability(LocalFiles).link_files(
                [Link(digest_of(data), str(place.inputs / "x"), executable)]
            )


async def test_a_blob_that_goes_while_its_variant_is_made_is_copied_from_where_it_is_open(place, monkeypatch):
    async with place.running(policy={"max_bytes": 100 * 4096}) as store:
        digest = await put(store, make_blob(1000))
        real = os.copy_file_range

        def evict_and_copy(*args, **options):
            place.file(digest).unlink(missing_ok=True)
            return real(*args, **options)

        monkeypatch.setattr(os, "copy_file_range", evict_and_copy)
        before = descriptors()
        assert await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)]) == []
        facts = (place.inputs / "tool").stat()
        assert (facts.st_size, facts.st_nlink, stat.S_IMODE(facts.st_mode)) == (1000, 1, 0o555)
        assert os.listdir(place.executables) == [] and place.temp_files() == [] and descriptors() == before


@pytest.mark.parametrize("linked", [True, False])
async def test_inputs_are_readable_by_all_whatever_the_umask(place, monkeypatch, linked):
    def refuse(*args, **options):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    before = os.umask(0o077)
    try:
        async with place.running() as store:
            if not linked:
                monkeypatch.setattr(os, "link", refuse)
            digests = [digest_of(b""), await put(store, b"x"), await put(store, make_blob(300_000))]
            links = [
                Link(digest, str(place.inputs / f"{at}{executable}"), executable)
                for at, digest in enumerate(digests) for executable in (False, True)
            ]  # fmt: skip
            assert await store.capability(LocalFiles).link_files(links) == []
            modes = {link.path: stat.S_IMODE(os.stat(link.path).st_mode) for link in links}
            assert modes == {link.path: 0o555 if link.executable else 0o444 for link in links}
    finally:
        os.umask(before)


async def test_an_output_that_cannot_be_made_read_only_is_copied_and_put_back(place, monkeypatch):
    real = os.fchmod

    def refuse(fd, mode):
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(place.temp)) and os.fstat(fd).st_mtime == 1:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(fd, mode)

    async with place.running() as store:
        (place.inputs / "out").write_bytes(b"output")
        os.utime(place.inputs / "out", (1, 1))
        monkeypatch.setattr(os, "fchmod", refuse)
        await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(place.inputs / "out"))
        assert await find(store, digest_of(b"output")) == b"output"
        assert store._local_files.adopter.copied == 1 and (place.inputs / "out").read_bytes() == b"output"


async def test_an_output_that_gets_another_name_while_it_is_taken_over_is_copied(place, monkeypatch):
    def link_and_ask(fd):
        os.link(os.readlink(f"/proc/self/fd/{fd}"), place.inputs / "second")
        return nobody_writes_to(fd)

    async with place.running() as store:
        (place.inputs / "out").write_bytes(b"output")
        monkeypatch.setattr(adopting, "nobody_writes_to", link_and_ask)
        await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(place.inputs / "out"))
        assert (place.inputs / "second").stat().st_ino != place.file(digest_of(b"output")).stat().st_ino
        assert await find(store, digest_of(b"output")) == b"output"


async def test_a_variant_of_another_mode_is_replaced_by_one_that_can_be_linked_to(place, watched):
    async with place.running() as store:
        digest = await put(store, b"tool")
        files = store.capability(LocalFiles)
        await files.link_files([Link(digest, str(place.inputs / "first"), True)])
        os.chmod(place.inputs / "first", 0o755)
        for name in ("second", "third"):
            assert await files.link_files([Link(digest, str(place.inputs / name), True)]) == []
        assert (place.inputs / "third").stat().st_nlink == 3 and store.statistics()["copied_files"] == 0
        assert stat.S_IMODE((place.inputs / "third").stat().st_mode) == 0o555


async def test_while_the_folder_is_listed_a_variant_that_is_there_is_hashed_once(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, b"tool")
        await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "first"), True)])
    with held_scan(monkeypatch) as go_on:
        async with place.running(scanned=False) as store:
            for number in range(3):
                links = [Link(digest, str(place.inputs / f"{number}"), True)]
                assert await store.capability(LocalFiles).link_files(links) == []
            assert store.statistics()["hashed_blobs"] == 2
            assert (place.inputs / "first").stat().st_nlink == 5
            go_on()


async def test_a_variant_that_can_only_be_copied_is_not_hashed_for_each_copy(place, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    async with place.running() as store:
        digest = await put(store, b"tool")
        monkeypatch.setattr(os, "link", refuse)
        for number in range(3):
            links = [Link(digest, str(place.inputs / f"{number}"), True)]
            assert await store.capability(LocalFiles).link_files(links) == []
        assert store.statistics()["copied_files"] == 3 and store.statistics()["hashed_blobs"] == 0


@pytest.mark.parametrize("size", [1000, 1001, 300_000])
@pytest.mark.parametrize("why", ["another link", "another file system"])
async def test_a_copy_of_an_output_that_is_not_what_was_copied_is_refused(place, monkeypatch, size, why):
    """Whoever has the output open may write to it right then: its bytes are right again when they are looked at."""
    monkeypatch.setattr(adopting, "HASHED_SIZE", 1000)
    data, path = make_blob(size), place.inputs / "out"
    copy, rename = os.copy_file_range, os.rename

    def copy_wrong(source, target, count, **offsets):
        copied = copy(source, target, count, **offsets)
        os.pwrite(target, b"?", 500)
        return copied

    def refuse(source, *args, **options):
        if source == str(path):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, *args, **options)

    async with place.running() as store:
        path.write_bytes(data)
        if why == "another link":
            os.link(path, place.inputs / "second")
        else:
            monkeypatch.setattr(os, "rename", refuse)
        before = descriptors()
        with monkeypatch.context() as patched:
            patched.setattr(os, "copy_file_range", copy_wrong)
            with pytest.raises(UploadMismatchError, match=f"{path} is not {digest_of(data)}"):
                await store.capability(LocalFiles).adopt_file(digest_of(data), str(path))
        assert await find(store, digest_of(data)) is None and path.read_bytes() == data
        assert place.temp_files() == [] and descriptors() == before
        await store.capability(LocalFiles).adopt_file(digest_of(data), str(path))
        assert await find(store, digest_of(data)) == data


@pytest.mark.parametrize(("refusals", "fails"), [(1, False), (5, False), (6, True)])
@pytest.mark.parametrize("size", [1000, 300_000])
async def test_a_copy_that_finds_no_room_is_begun_again_a_few_times(place, monkeypatch, refusals, fails, size):
    data, path, left, real = make_blob(size), place.inputs / "out", refusals, os.copy_file_range

    def copy_some(source, target, count, **offsets):
        nonlocal left
        if left:
            left -= 1
            real(source, target, count // 2, **offsets)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target, count, **offsets)

    async with place.running(min_free=0) as store:
        path.write_bytes(data)
        os.link(path, place.inputs / "second")
        monkeypatch.setattr(os, "copy_file_range", copy_some)
        if fails:
            with pytest.raises(ExhaustedError, match=f"cannot take over {path}"):
                await store.capability(LocalFiles).adopt_file(digest_of(data), str(path))
        else:
            await store.capability(LocalFiles).adopt_file(digest_of(data), str(path))
        assert await find(store, digest_of(data)) == (None if fails else data)
        assert path.read_bytes() == data and place.temp_files() == []
