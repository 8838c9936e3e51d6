"""Hard links out, files taken in, and what may go wrong between."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import (
    EMPTY_DIGESTS,
    SMALL,
    BlobNotFoundError,
    ExhaustedError,
    InvalidRequestError,
    Link,
    LocalFiles,
    UnavailableError,
    UploadMismatchError,
)
from nl.stores.filesystem import adopting, links
from nl.stores.filesystem.copying import copy_bytes, copy_to_path
from nl.stores.filesystem.leases import nobody_writes_to
from nl.testing import find, make_blob

from .conftest import put
from .test_names_and_layout import mount as mount  # a fixture


def linked(place, digest, name, *, executable=False):
    return Link(digest, str(place.inputs / name), executable)


async def test_links_are_hard_links_and_variants_are_made_once(place):
    async with place.running() as store:
        files = store.capability(LocalFiles)
        digest = await put(store, make_blob(5000))
        wanted = [linked(place, digest, str(number), executable=number % 2 == 1) for number in range(40)]

        async def link(part):
            assert await files.link_files(part) == []

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(link, wanted[number * 5 : number * 5 + 5])
        inodes = {(link.executable, os.stat(link.path).st_ino) for link in wanted}
        variant = place.executables / str(digest)
        assert inodes == {(False, place.file(digest).stat().st_ino), (True, variant.stat().st_ino)}
        assert {(link.executable, stat.S_IMODE(os.stat(link.path).st_mode)) for link in wanted} == {
            (False, 0o444), (True, 0o555)
        }
        assert len(os.listdir(place.executables)) == 1
        assert store.statistics()["written_blobs"] == 1


@pytest.mark.parametrize("data", [b"some data", make_blob(300_000)], ids=["small", "large"])
async def test_a_fifo_in_the_place_of_a_variant_is_replaced_and_waited_for_by_nobody(place, data):
    async with place.running() as store:
        digest = await put(store, data)
        os.mkfifo(place.executables / str(digest), 0o555)
        assert await store.capability(LocalFiles).link_files([linked(place, digest, "a", executable=True)]) == []
        assert (place.inputs / "a").read_bytes() == data


async def test_hundreds_of_links_of_which_some_are_missing(place):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(600)]
        for number in range(0, 600, 7):
            place.file(digests[number]).unlink()
        wanted = [linked(place, digest, str(number)) for number, digest in enumerate(digests)]
        missing = await store.capability(LocalFiles).link_files(wanted)
        assert missing == digests[::7]
        assert len(os.listdir(place.inputs)) == 600 - len(missing)


async def test_files_of_a_restarted_store_are_hashed_before_they_are_linked(place):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(20)]
        wanted = [linked(place, digest, f"a{number}", executable=True) for number, digest in enumerate(digests)]
        assert await store.capability(LocalFiles).link_files(wanted) == []
    async with place.running() as store:
        wanted = [linked(place, digest, f"b{number}", executable=True) for number, digest in enumerate(digests)]
        assert await store.capability(LocalFiles).link_files(wanted) == []
        assert os.stat(place.inputs / "a3").st_ino == os.stat(place.inputs / "b3").st_ino
        assert store.statistics()["hashed_blobs"] == 40


@pytest.mark.parametrize("executable", [False, True])
@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMLINK, "as many hard links"), (errno.EXDEV, "one file system"), (errno.EPERM, "one file system"),
        (errno.EOPNOTSUPP, "one file system"),
    ],
)
async def test_what_cannot_be_linked_is_copied(place, monkeypatch, caplog, number, advice, executable):
    def link(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    async with place.running() as store:
        datas = [make_blob(size, seed=size) for size in (10, 300_000)]
        digests = [await put(store, data) for data in datas]
        monkeypatch.setattr(os, "link", link)
        wanted = [linked(place, digest, str(at), executable=executable) for at, digest in enumerate(digests)]
        assert await store.capability(LocalFiles).link_files(wanted) == []
        for data, each in zip(datas, wanted, strict=True):
            with open(each.path, "rb") as file:
                assert file.read() == data
            assert stat.S_IMODE(os.stat(each.path).st_mode) == (0o555 if executable else 0o444)
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert advice in record.getMessage()


async def test_inputs_on_another_file_system_are_copied(place, mount):
    async with place.running() as store:
        digest = await put(store, b"over there")
        assert await store.capability(LocalFiles).link_files([Link(digest, str(mount / "file"), True)]) == []
        assert (mount / "file").read_bytes() == b"over there"


async def test_a_blob_evicted_while_it_is_linked_is_linked_or_missing(place, monkeypatch):
    """Between opening the blob and linking it, it goes: a copy of the open file takes the link's place."""
    data = make_blob(5000)
    real = links._link

    def evicted_first(job):
        place.file(digest).unlink(missing_ok=True)
        return real(job)

    async with place.running() as store:
        digest = await put(store, data)
    async with place.running() as store:
        files = store.capability(LocalFiles)
        monkeypatch.setattr(links, "_link", evicted_first)
        monkeypatch.setattr(links, "_link_all", lambda jobs: [links._Outcome.NOT_KNOWN for _ in jobs])
        assert await files.link_files([linked(place, digest, "a")]) == []
        assert (place.inputs / "a").read_bytes() == data
        assert await files.link_files([linked(place, digest, "b")]) == [digest]


@pytest.mark.parametrize("size", [3 * 4096, 4 * 4096])
async def test_no_room_for_a_variant_ends_in_a_copy_and_evicts_nobody(place, size):
    data = make_blob(size)
    async with place.running(policy={"max_bytes": 4 * 4096}) as store:
        digest = await put(store, data)
        others = [] if size > 3 * 4096 else [await put(store, b"another")]
        assert await store.capability(LocalFiles).link_files([linked(place, digest, "tool", executable=True)]) == []
        assert (place.inputs / "tool").read_bytes() == data
        assert stat.S_IMODE((place.inputs / "tool").stat().st_mode) == 0o555
        assert place.used() <= 4 * 4096
        assert await store.has([digest, *others]) == [size, *[7 for _ in others]]
        assert store.statistics()["executables"] == 0


async def test_a_large_file_that_cannot_be_linked_is_copied_in_a_thread_and_a_small_one_where_it_is(
    place, monkeypatch
):
    def link(*args, **kwargs):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def copy(fd, path, *, size, mode):
        on_the_loop[size] = threading.current_thread() is loop
        copy_to_path(fd, path, size=size, mode=mode)

    on_the_loop, loop = {}, threading.current_thread()
    async with place.running() as store:
        wanted = [linked(place, await put(store, make_blob(size)), str(size)) for size in (SMALL, SMALL + 1)]
        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(links, "copy_to_path", copy)
        assert await store.capability(LocalFiles).link_files(wanted) == []
        assert on_the_loop == {SMALL: True, SMALL + 1: False}


async def test_a_blob_whose_variant_is_linked_is_in_use(place):
    async with place.running(policy={"max_count": 2}) as store:
        tool, other = await put(store, b"tool"), await put(store, b"other")
        for number in range(3):
            assert await store.get(other) == b"other"
            wanted = linked(place, tool, str(number), executable=True)
            assert await store.capability(LocalFiles).link_files([wanted]) == []
        await put(store, b"new")
        assert place.file(tool).exists() and not place.file(other).exists()


# Files taken over


async def adopt(store, place, data, name="out"):
    path = place.inputs / name
    path.write_bytes(data)
    digest = digest_of(data)
    await store.capability(LocalFiles).adopt_file(digest, str(path))
    return digest


@pytest.mark.parametrize("size", [1, 5000, 300_000])
async def test_an_output_is_moved_not_copied_and_becomes_read_only(place, size):
    data = make_blob(size)
    async with place.running() as store:
        path = place.inputs / "out"
        path.write_bytes(data)
        os.chmod(path, 0o755)
        inode = path.stat().st_ino
        digest = digest_of(data)
        await store.capability(LocalFiles).adopt_file(digest, str(path))
        assert place.file(digest).stat().st_ino == inode
        assert stat.S_IMODE(place.file(digest).stat().st_mode) == 0o444
        assert await find(store, digest) == data
        assert place.temp_files() == []


async def test_an_output_with_another_link_is_copied(place):
    async with place.running() as store:
        (place.inputs / "out").write_bytes(b"output")
        os.link(place.inputs / "out", place.inputs / "second")
        digest = digest_of(b"output")
        await store.capability(LocalFiles).adopt_file(digest, str(place.inputs / "out"))
        (place.inputs / "second").write_bytes(b"OUTPUT")
        assert await find(store, digest) == b"output"


@pytest.mark.parametrize("where", ["in this process", "in another"])
async def test_an_output_that_somebody_has_open_for_writing_is_copied(place, where):
    async with place.running() as store:
        path = place.inputs / "out"
        path.write_bytes(b"output")
        program = "import sys; f = open(sys.argv[1], 'r+b'); print(flush=True); input(); f.write(b'OUTPUT'); f.close()"
        process = None
        if where == "in another":
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            process.stdout.readline()
            digest = digest_of(b"output")
            await store.capability(LocalFiles).adopt_file(digest, str(path))
            process.communicate(b"\n")
        else:
            with open(path, "r+b") as file:
                digest = digest_of(b"output")
                await store.capability(LocalFiles).adopt_file(digest, str(path))
                file.write(b"OUTPUT")
        assert await find(store, digest) == b"output"
        assert store.statistics()["corrupt_blobs"] == 0


def test_who_opens_a_file_for_writing_while_that_is_asked_ends_nobody(tmp_path, monkeypatch):
    """The kernel tells the holder of a lease by a signal, and its usual one ends a process that does not expect it."""
    path, real, signals = tmp_path / "out", fcntl.fcntl, []
    path.write_bytes(b"output")

    def open_meanwhile(fd, command, argument):
        if argument == fcntl.F_UNLCK:
            with pytest.raises(BlockingIOError):
                os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        return real(fd, command, argument)

    usual = signal.signal(signal.SIGIO, lambda number, frame: signals.append(number))
    try:
        with path.open("rb") as file:
            with monkeypatch.context() as patched:
                patched.setattr(fcntl, "fcntl", open_meanwhile)
                assert nobody_writes_to(file.fileno())
            assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_UNLCK
            with path.open("r+b"):
                assert not nobody_writes_to(file.fileno())
    finally:
        signal.signal(signal.SIGIO, usual)
    assert signals == []


async def test_an_output_changed_after_it_was_hashed_is_refused_and_put_back(place):
    async with place.running() as store:
        path = place.inputs / "out"
        for changed in (b"OUTPUT", b"longer output"):
            path.write_bytes(changed)
            with pytest.raises(UploadMismatchError, match=str(path)):
                await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(path))
            assert path.read_bytes() == changed
            os.unlink(path)
        assert await find(store, digest_of(b"output")) is None
        assert place.temp_files() == []


async def test_a_large_output_is_hashed_when_it_is_first_read(place, monkeypatch):
    monkeypatch.setattr(adopting, "HASHED_SIZE", 1000)
    data = make_blob(1001)
    async with place.running() as store:
        digest = await adopt(store, place, data)
        assert store.statistics()["hashed_blobs"] == 0
        assert await find(store, digest) == data
        assert store.statistics()["hashed_blobs"] == 1
        path = place.inputs / "changed"
        path.write_bytes(bytes(1001))
        other = digest_of(make_blob(1001, seed=7))
        await store.capability(LocalFiles).adopt_file(other, str(path))
        with pytest.raises(BlobNotFoundError):
            await store.get(other)


async def test_an_output_on_another_file_system_is_copied(place, mount):
    async with place.running() as store:
        (mount / "out").write_bytes(b"output")
        digest = digest_of(b"output")
        await store.capability(LocalFiles).adopt_file(digest, str(mount / "out"))
        assert await find(store, digest) == b"output"


async def test_an_output_of_another_user_becomes_ours(place):
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: changing the owner of a file needs root")
    async with place.running() as store:
        (place.inputs / "out").write_bytes(b"output")
        os.chown(place.inputs / "out", 12345, 12345)
        digest = digest_of(b"output")
        await store.capability(LocalFiles).adopt_file(digest, str(place.inputs / "out"))
        assert place.file(digest).stat().st_uid == 0
        assert await find(store, digest) == b"output"


async def test_only_regular_files_are_taken_over(place):
    async with place.running() as store:
        os.mkfifo(place.inputs / "fifo")
        os.symlink("/etc/passwd", place.inputs / "link")
        (place.inputs / "folder").mkdir()
        for name in ("fifo", "folder"):
            with pytest.raises(InvalidRequestError, match="not a regular file"):
                await store.capability(LocalFiles).adopt_file(digest_of(b"x"), str(place.inputs / name))
        with pytest.raises(Exception, match="link"):
            await store.capability(LocalFiles).adopt_file(digest_of(b"x"), str(place.inputs / "link"))
        assert sorted(os.listdir(place.inputs)) == ["fifo", "folder", "link"]
        assert place.temp_files() == []


async def test_an_output_that_is_there_already_is_not_stored_again(place):
    async with place.running() as store:
        digest = await put(store, b"output")
        inode = place.file(digest).stat().st_ino
        await adopt(store, place, b"output")
        assert place.file(digest).stat().st_ino == inode
        [empty, _] = sorted(EMPTY_DIGESTS)
        (place.inputs / "empty").write_bytes(b"")
        await store.capability(LocalFiles).adopt_file(empty, str(place.inputs / "empty"))
        assert store.statistics()["blobs"] == 1


async def test_a_cancelled_adoption_puts_the_file_back(place, monkeypatch):
    import fcntl

    async with place.running() as store:
        (place.inputs / "out").write_bytes(b"output")
        with open(place.content / ".lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with trio.move_on_after(0.05) as scope:
                await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(place.inputs / "out"))
        assert scope.cancelled_caught
        assert (place.inputs / "out").read_bytes() == b"output"
        assert place.temp_files() == []


# What is counted, and exact bounds


def counted(store):
    return {name: value for name, value in store.statistics().items() if value and name.endswith("_files")}


@pytest.mark.parametrize(("count", "threads"), [(1, 0), (8, 0), (9, 1), (256, 1), (257, 1), (265, 2), (513, 2)])
async def test_few_links_are_made_at_once_and_many_in_batches_in_a_thread(place, monkeypatch, count, threads):
    real, batches = trio.to_thread.run_sync, []

    async def run_sync(function, *args, **options):
        if function is links._link_all:
            batches.append((len(args[0]), options["limiter"] is not None))
        return await real(function, *args, **options)

    async with place.running() as store:
        digest = await put(store, b"input")
        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        wanted = [linked(place, digest, str(number)) for number in range(count)]
        assert await store.capability(LocalFiles).link_files(wanted) == []
        assert len(batches) == threads and all(has_limiter for _, has_limiter in batches)
        assert len(os.listdir(place.inputs)) == count
        assert counted(store) == {"linked_files": count}


async def test_empty_inputs_are_files_of_their_own(place):
    async with place.running() as store:
        wanted = [linked(place, digest, f"{at}{executable}", executable=executable)
                  for at, digest in enumerate(EMPTY_DIGESTS) for executable in (False, True)]  # fmt: skip
        assert await store.capability(LocalFiles).link_files(wanted) == []
        for link in wanted:
            facts = os.stat(link.path)
            assert (facts.st_size, facts.st_nlink) == (0, 1)
            assert stat.S_IMODE(facts.st_mode) == (0o555 if link.executable else 0o444)
        assert os.listdir(place.content / "d") == []


async def test_what_is_missing_is_told_once_and_in_order(place):
    gone = [digest_of(b"%d" % number) for number in range(3)]
    async with place.running() as store:
        there = await put(store, b"there")
        order = [gone[2], there, gone[0], gone[2], gone[1], gone[0]]
        wanted = [linked(place, digest, str(at), executable=at % 2 == 0) for at, digest in enumerate(order)]
        assert await store.capability(LocalFiles).link_files(wanted) == [gone[2], gone[0], gone[1]]
        assert os.listdir(place.inputs) == ["1"]
        assert counted(store) == {"linked_files": 1}


@pytest.mark.parametrize("executable", [False, True])
async def test_a_file_with_another_mode_is_not_handed_out(place, executable):
    async with place.running() as store:
        digest = await put(store, b"input")
        files = store.capability(LocalFiles)
        assert await files.link_files([linked(place, digest, "first", executable=executable)]) == []
        os.chmod(place.inputs / "first", 0o666)
        assert await files.link_files([linked(place, digest, "second", executable=executable)]) == []
        facts = os.stat(place.inputs / "second")
        assert stat.S_IMODE(facts.st_mode) == (0o555 if executable else 0o444)
        assert facts.st_ino != os.stat(place.inputs / "first").st_ino


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EXDEV])
async def test_copies_are_counted_and_warned_of_once(place, monkeypatch, caplog, number):
    def link(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    async with place.running() as store:
        digest = await put(store, b"input")
        monkeypatch.setattr(os, "link", link)
        for at in range(3):
            assert await store.capability(LocalFiles).link_files([linked(place, digest, str(at))]) == []
        assert counted(store) == {"copied_files": 3}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert {os.stat(place.inputs / str(at)).st_nlink for at in range(3)} == {1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_other_failures_of_a_link_are_told_and_leave_no_descriptor(place, monkeypatch, number):
    def link(*args, **kwargs):
        raise OSError(number, os.strerror(number), args[0], None, args[1])

    async with place.running() as store:
        digest = await put(store, b"input")
        monkeypatch.setattr(os, "link", link)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises((ExhaustedError, UnavailableError), match=f"cannot make the input {place.inputs}/x"):
            await store.capability(LocalFiles).link_files([linked(place, digest, "x")])
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_copy_that_is_cut_short_is_no_input(place, monkeypatch):
    async with place.running() as store:
        digest = await put(store, make_blob(5000))
        monkeypatch.setattr(links, "_link", lambda job: links._Outcome.CANNOT)
        monkeypatch.setattr(os, "copy_file_range", lambda *args, **options: 0)
        with pytest.raises(UnavailableError, match="I/O error"):
            await store.capability(LocalFiles).link_files([linked(place, digest, "x")])
        assert os.listdir(place.inputs) == []


@pytest.mark.parametrize(("size", "hashed"), [(1000, 1), (1001, 0)])
async def test_outputs_are_hashed_up_to_a_size_which_counts(place, monkeypatch, size, hashed):
    monkeypatch.setattr(adopting, "HASHED_SIZE", 1000)
    async with place.running() as store:
        digest = await adopt(store, place, make_blob(size))
        assert store.statistics()["hashed_blobs"] == hashed
        assert store.statistics()["hashed_bytes"] == hashed * size
        assert counted(store) == {"adopted_files": 1}
        assert await find(store, digest) == make_blob(size)
        assert store.statistics()["hashed_blobs"] == 1


async def test_an_output_that_has_two_names_is_copied_and_its_other_name_is_left_alone(place):
    async with place.running() as store:
        path = place.inputs / "out"
        path.write_bytes(b"output")
        os.link(path, place.inputs / "second")
        digest = digest_of(b"output")
        await store.capability(LocalFiles).adopt_file(digest, str(path))
        facts = (place.inputs / "second").stat()
        assert facts.st_ino != place.file(digest).stat().st_ino
        assert stat.S_IMODE(facts.st_mode) != 0o444
        assert path.read_bytes() == b"output", "what was copied is put back"
        assert store._local_files.adopter.copied == 1
        assert place.temp_files() == []


async def test_an_output_of_another_size_or_kind_is_put_back_and_leaves_no_descriptor(place):
    async with place.running() as store:
        before = len(os.listdir("/proc/self/fd"))
        path = place.inputs / "out"
        path.write_bytes(b"output")
        with pytest.raises(UploadMismatchError, match=f"{path} has 6 bytes, its digest .* says 7"):
            await store.capability(LocalFiles).adopt_file(digest_of(b"output2"), str(path))
        assert path.read_bytes() == b"output"
        with pytest.raises(UnavailableError, match="cannot take over"):
            await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(place.inputs / "none"))
        assert len(os.listdir("/proc/self/fd")) == before
        assert counted(store) == {}


async def test_an_output_on_another_file_system_stays_there_and_is_not_counted_as_taken(place, mount):
    async with place.running() as store:
        before = len(os.listdir("/proc/self/fd"))
        (mount / "out").write_bytes(b"output")
        await store.capability(LocalFiles).adopt_file(digest_of(b"output"), str(mount / "out"))
        assert (mount / "out").read_bytes() == b"output"
        assert counted(store) == {} and store._local_files.adopter.copied == 1
        (mount / "out").write_bytes(b"OUTPUT")
        with pytest.raises(UploadMismatchError):
            await store.capability(LocalFiles).adopt_file(digest_of(b"0utput"), str(mount / "out"))
        assert place.temp_files() == []
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_where_the_kernel_copies_no_ranges_it_sends(tmp_path, monkeypatch, error):
    def refuse(*args, **options):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    data = make_blob(100_000)
    (tmp_path / "source").write_bytes(data)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "wb") as target:
        assert copy_bytes(source.fileno(), target.fileno(), 99_999) == 99_999
    assert (tmp_path / "target").read_bytes() == data[:99_999]
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "wb") as target:
        assert copy_bytes(source.fileno(), target.fileno(), 100_001) == 100_000


def test_a_copy_goes_on_where_the_kernel_stops_and_leaves_nothing_where_it_fails(tmp_path, monkeypatch):
    data = make_blob(100_000)
    (tmp_path / "source").write_bytes(data)
    real, calls = os.copy_file_range, []

    def some(source, target, count, **offsets):
        calls.append(count)
        if len(calls) == 3:
            raise OSError(errno.EXDEV, "no more")
        return real(source, target, min(count, 30_000), **offsets)

    monkeypatch.setattr(os, "copy_file_range", some)
    with open(tmp_path / "source", "rb") as source:
        copy_to_path(source.fileno(), str(tmp_path / "copy"), size=len(data), mode=0o555)
        assert calls == [100_000, 70_000, 40_000]
        assert (tmp_path / "copy").read_bytes() == data
        assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o555
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="cut short"):
            copy_to_path(source.fileno(), str(tmp_path / "none"), size=len(data) + 1, mode=0o444)
        with pytest.raises(FileExistsError):
            copy_to_path(source.fileno(), str(tmp_path / "copy"), size=1, mode=0o444)
        assert len(os.listdir("/proc/self/fd")) == before
    assert not (tmp_path / "none").exists()
    assert (tmp_path / "copy").read_bytes() == data
