"""Never a wrong byte: whatever happens to the files, what is served has the digest asked for, or nothing is served."""

import errno
import logging
import os
import threading

import pytest
import trio
import trio.testing

from nl.blob.hashing import digest_of
from nl.plugin import (
    SMALL,
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    CorruptBlobError,
    Digest,
    DigestFunction,
    Link,
    LocalFiles,
)
from nl.stores.filesystem import quarantine, verify
from nl.testing import PartsReader, find, make_blob, split

from .conftest import put, until


def flip(data):
    return bytes([data[0] ^ 1]) + data[1:]


def overwrite(path, data):
    """Writes into the file itself: same inode."""
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate(len(data))
    os.chmod(path, 0o444)


def replace(path, data):
    """Puts another file in its place."""
    other = path.with_name("other")
    other.write_bytes(data)
    os.rename(other, path)


DAMAGES = {
    "flipped": lambda path, data: overwrite(path, flip(data)),
    "cut short": lambda path, data: overwrite(path, data[:-1]),
    "emptied": lambda path, data: overwrite(path, b""),
    "grown": lambda path, data: overwrite(path, data + b"x"),
    "replaced": lambda path, data: replace(path, flip(data)),
    "replaced by a shorter one": lambda path, data: replace(path, data[:5]),
}
SIZES = [100, SMALL + 100, 3 << 20]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("restarted", [False, True], ids=["while running", "while stopped"])
async def test_a_damaged_file_is_never_served_and_an_upload_mends_it(place, damage, size, restarted):
    data = make_blob(size)
    digest = digest_of(data)
    async with place.running() as store:
        await store.put(digest, data)
        if not restarted:
            DAMAGES[damage](place.file(digest), data)
            await _is_missing_then_mended(store, place, digest, data, is_kept=damage != "emptied")
    if restarted:
        DAMAGES[damage](place.file(digest), data)
        async with place.running() as store:
            await _is_missing_then_mended(store, place, digest, data, is_kept=damage != "emptied")


async def _is_missing_then_mended(store, place, digest, data, *, is_kept=True):
    with pytest.raises(BlobNotFoundError):
        async with store.open(digest) as reader:
            await reader.receive_parts()
    with pytest.raises(BlobNotFoundError):
        await store.get(digest)
    assert await store.has([digest]) == [None]
    assert len(os.listdir(place.corrupt)) == is_kept
    await store.write(digest, BytesReader(data))
    assert await find(store, digest) == data
    assert store.statistics()["corrupt_blobs"] == is_kept


async def test_empty_files_as_a_power_cut_leaves_them_go_in_one_line(place, caplog):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(100)]
    for digest in digests[:-1]:
        overwrite(place.file(digest), b"")
    with caplog.at_level(logging.INFO), open(place.file(digests[0]), "r+b"):
        async with place.running() as store:
            await until(lambda: "empty" in caplog.text)
            assert await store.has(digests[-1:]) == [2]
            assert await store.has(digests[:-1]) == [None] * 99
        assert place.file(digests[0]).exists(), "somebody is writing it"
    assert len(os.listdir(place.content / "d")) == 2
    assert os.listdir(place.corrupt) == []
    [record] = [record for record in caplog.records if "empty" in record.getMessage()]
    assert "98" in record.getMessage() and record.levelno == logging.INFO


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_mends_what_nobody_has_read_since(place, damage, chunked):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        DAMAGES[damage](place.file(digest), data)
        if chunked:
            await store.write(digest, PartsReader(split(data, 999)))
        else:
            await store.put(digest, data)
        assert await find(store, digest) == data
        assert place.file(digest).read_bytes() == data


async def test_damage_during_the_first_listing_is_found(place):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
    overwrite(place.file(digest), flip(data))
    async with place.running(scanned=False) as store:
        assert not store._mirror.is_exact
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)


async def test_what_was_written_through_a_hard_link_is_found(place):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        files = store.capability(LocalFiles)
        links = [Link(digest, str(place.inputs / str(executable)), executable) for executable in (False, True)]
        assert await files.link_files(links) == []
        for link in links:
            overwrite(link.path, flip(data))
        again = [Link(digest, str(place.inputs / "again"), False), Link(digest, str(place.inputs / "tool"), True)]
        assert await files.link_files(again) == [digest]
        await store.put(digest, data)
        retried = [Link(digest, f"{link.path}2", link.executable) for link in again]
        assert await files.link_files(retried) == []
        for link in retried:
            with open(link.path, "rb") as file:
                assert file.read() == data


async def test_a_variant_that_an_action_wrote_to_is_not_linked_again(place):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        files = store.capability(LocalFiles)
        await files.link_files([Link(digest, str(place.inputs / "tool"), True)])
        overwrite(place.inputs / "tool", flip(data))
        os.chmod(place.inputs / "tool", 0o555)
        assert await files.link_files([Link(digest, str(place.inputs / "tool2"), True)]) == []
        assert (place.inputs / "tool2").read_bytes() == data


async def test_a_restarted_store_hashes_each_blob_once(place):
    blobs = [make_blob(size, seed=size) for size in (10, 100_000)]
    async with place.running() as store:
        digests = [await put(store, data) for data in blobs]
        assert [await store.get(digest) for digest in digests] == blobs
        assert store.statistics()["hashed_blobs"] == 0
    async with place.running() as store:
        for _ in range(3):
            assert [await store.get(digest) for digest in digests] == blobs
        assert store.statistics()["hashed_blobs"] == 2


async def test_many_readers_of_an_unknown_file_hash_it_once(place):
    data = make_blob(3 << 20)
    async with place.running() as store:
        digest = await put(store, data)
    async with place.running() as store:
        got = []

        async def read():
            got.append(bytes(await store.get(digest)) == data)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
        assert got == [True] * 20
        assert store.statistics()["hashed_blobs"] == 1


async def test_clients_that_give_up_do_not_make_the_hashing_begin_anew(place, monkeypatch):
    monkeypatch.setattr(verify, "_PIECE", 1 << 20)
    data = make_blob(4 << 20)
    async with place.running() as store:
        digest = await put(store, data)
    real, pieces = verify._update, []

    def update(hasher, fd, offset, length):
        pieces.append(offset)
        real(hasher, fd, offset, length)

    monkeypatch.setattr(verify, "_update", update)
    async with place.running() as store:
        with trio.fail_after(20):
            while not store.statistics()["hits"]:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(store.get, digest)
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()
                await trio.sleep(0.001)
                if store.statistics()["hashed_blobs"]:
                    assert await find(store, digest) == data
        assert pieces == [number << 20 for number in range(4)]
        assert store.statistics()["hashed_blobs"] == 1


async def test_the_files_that_are_hashed_at_a_time_are_bounded_and_none_is_left_open(place):
    datas = [make_blob(100_000, seed=seed) for seed in range(80)]
    async with place.running() as store:
        digests = [await put(store, data) for data in datas]
    async with place.running() as store:
        before = len(os.listdir("/proc/self/fd"))
        with trio.move_on_after(0.005):
            async with trio.open_nursery() as nursery:
                for digest in digests:
                    nursery.start_soon(store.get, digest)
        assert len(store._verifier._jobs) <= 32
        for digest, data in zip(digests, datas, strict=True):
            assert await store.get(digest) == data
        await trio.testing.wait_all_tasks_blocked()
        assert len(os.listdir("/proc/self/fd")) == before


async def test_small_files_that_are_not_in_memory_are_hashed_in_a_thread(place, monkeypatch):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(50)]
    real, on_the_loop, loop = os.preadv, [], threading.get_ident()

    def preadv(fd, buffers, offset, flags=0):
        if flags:
            raise BlockingIOError
        on_the_loop.append(threading.get_ident() == loop)
        return real(fd, buffers, offset)

    async with place.running() as store:
        monkeypatch.setattr(os, "preadv", preadv)
        for number, digest in enumerate(digests):
            assert await store.get(digest) == b"%d" % number
        assert on_the_loop and not any(on_the_loop)
        assert store.statistics()["hashed_blobs"] == 50


async def test_both_hash_functions_are_right(place):
    data = make_blob(5000)
    digests = [digest_of(data, function) for function in DigestFunction]
    async with place.running() as store:
        for digest in digests:
            await store.put(digest, data)
    async with place.running() as store:
        for digest in (*digests, *digests):
            assert await store.get(digest) == data


async def test_a_blake3_blob_whose_name_does_not_say_so_is_found_and_gets_its_full_name(place):
    data = make_blob(5000)
    digest = digest_of(data, DigestFunction.BLAKE3)
    path = place.lay(Digest(digest.hash, digest.size), data)
    async with place.running() as store:
        assert await store.has([digest]) == [len(data)]
        assert await store.get(digest) == data
        assert await store.get(digest) == data
        assert store.statistics()["hashed_blobs"] == 1
        assert not path.exists() and path.with_name(f"{path.name}.blake3").exists()
        assert await store.has([digest, Digest(digest.hash, digest.size)]) == [len(data), None]


async def test_asking_for_a_blob_under_another_function_does_it_no_harm(place):
    digest = digest_of(data := make_blob(5000))
    place.lay(digest, data)
    asked = Digest(digest.hash, digest.size, DigestFunction.BLAKE3)
    async with place.running() as store:
        for _ in range(3):
            with pytest.raises(BlobNotFoundError):
                await store.get(asked)
            assert await store.has([asked, digest]) == [None, len(data)]
        assert await store.get(digest) == data
        assert store.statistics()["hashed_blobs"] == 2  # as either, once each


async def test_values_of_other_keys_are_not_hashed(place):
    key = ActionKey("ab" * 32, 7)
    async with place.running() as store:
        await store.put(key, b"an action result")
        await store.put("name", b"value")
    async with place.running() as store:
        assert await store.get(key) == b"an action result"
        assert await store.get("name") == b"value"
        assert store.statistics()["hashed_blobs"] == 0


async def test_a_change_halfway_through_a_stream_is_not_passed_off_as_good(place):
    data = make_blob(3 << 20)
    async with place.running() as store:
        digest = await put(store, data)
        with pytest.raises(CorruptBlobError, match=digest.hash):
            async with store.open(digest) as reader:
                await reader.receive_parts()
                overwrite(place.file(digest), flip(data))
                while await reader.receive_parts():
                    pass
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)


async def test_writing_access_times_hides_no_change(place):
    data = make_blob(5000)
    async with place.running() as store:
        digest = await put(store, data)
        await store.has([digest])
        mtime = place.file(digest).stat().st_mtime_ns
        await store._recency.flush()
        assert place.file(digest).stat().st_mtime_ns == mtime
        overwrite(place.file(digest), flip(data))
        await store.has([digest])
        await store._recency.flush()
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)


async def test_the_log_names_file_content_and_where_it_went(place, caplog):
    data = make_blob(500)
    async with place.running() as store:
        digest = await put(store, data)
        overwrite(place.file(digest), flip(data))
        with caplog.at_level(logging.ERROR), pytest.raises(BlobNotFoundError):
            await store.get(digest)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    text = record.getMessage()
    for expected in ("CAS", str(place.file(digest)), digest_of(flip(data)).hash, str(place.corrupt)):
        assert expected in text


async def test_the_folder_of_corrupt_files_is_bounded(place, monkeypatch):
    monkeypatch.setattr(quarantine, "MAX_FILES", 5)
    async with place.running() as store:
        for number in range(8):
            data = b"blob %d" % number
            digest = await put(store, data)
            overwrite(place.file(digest), flip(data))
            with pytest.raises(BlobNotFoundError):
                await store.get(digest)
        assert len(os.listdir(place.corrupt)) == 5
        monkeypatch.setattr(store._quarantine, "_max_bytes", 14)
        digest = await put(store, b"blob 8")
        overwrite(place.file(digest), flip(b"blob 8"))
        with pytest.raises(BlobNotFoundError):
            await store.get(digest)
        assert len(os.listdir(place.corrupt)) == 2


async def test_a_corrupt_file_too_large_to_be_kept_is_deleted_and_corrupt_ones_are_a_twentieth_at_most(place, caplog):
    async with place.running(policy={"max_bytes": 40 * 4096}) as store:
        for size in (3 * 4096, 2 * 4096, 1 * 4096, 4000):
            data = make_blob(size)
            digest = await put(store, data)
            overwrite(place.file(digest), flip(data))
            with pytest.raises(BlobNotFoundError):
                await store.get(digest)
            assert not place.file(digest).exists()
        assert sum(file.stat().st_size for file in place.corrupt.iterdir()) == 4096 + 4000
        assert "deleted, too large" in caplog.text


async def test_what_was_mended_meanwhile_is_not_set_aside(place):
    data = make_blob(500)
    async with place.running() as store:
        digest = await put(store, data)
        overwrite(place.file(digest), flip(data))
        fd = os.open(place.file(digest), os.O_RDONLY)
        await store.put(digest, data)
        await store._quarantine.set_aside(store._layout.blobs, digest, fd)
        os.close(fd)
        assert await store.get(digest) == data
        assert store.statistics()["corrupt_blobs"] == 0


async def test_two_who_ask_for_an_unknown_file_at_once_take_no_place_for_good(place, monkeypatch):
    monkeypatch.setattr(verify, "_MOST_JOBS", 2)
    datas = [make_blob(100_000, seed=seed) for seed in range(5)]
    async with place.running() as store:
        digests = [await put(store, data) for data in datas]
    async with place.running() as store:
        with trio.fail_after(60):
            for digest in digests:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.get, digest)
                    nursery.start_soon(store.get, digest)
        assert store.statistics()["hashed_blobs"] == 5


@pytest.mark.parametrize("size", [9000, SMALL + 9000])
@pytest.mark.parametrize("in_memory", [True, False])
async def test_a_file_that_the_kernel_reads_in_parts_is_hashed_whole(place, monkeypatch, size, in_memory):
    data = make_blob(size)
    async with place.running() as store:
        digest = await put(store, data)
    real = os.preadv

    def preadv(fd, buffers, offset, flags=0):
        return real(fd, [memoryview(buffers[0])[:4096]] if flags or not in_memory else buffers, offset)

    async with place.running() as store:
        monkeypatch.setattr(os, "preadv", preadv)
        assert await store.get(digest) == data
        assert store.statistics()["corrupt_blobs"] == 0


@pytest.mark.parametrize(("number", "goes_on"), [(errno.EAGAIN, True), (errno.EOPNOTSUPP, False)])
async def test_after_a_file_that_is_not_in_memory_the_next_is_looked_for_there_unless_nobody_can_tell(
    place, monkeypatch, number, goes_on
):
    async with place.running() as store:
        digests = [await put(store, b"%d" % at) for at in range(5)]
    real, asked = os.preadv, []

    def preadv(fd, buffers, offset, flags=0):
        if flags:
            asked.append(fd)
            raise OSError(number, os.strerror(number))
        return real(fd, buffers, offset)

    async with place.running() as store:
        store._access.nowait = 0  # reading has its own idea of it
        monkeypatch.setattr(os, "preadv", preadv)
        for at, digest in enumerate(digests):
            assert await store.get(digest) == b"%d" % at
        assert len(asked) == (5 if goes_on else 1)
        assert store.statistics()["hashed_blobs"] == 5
