"""What was used is written to access times and told to others: which files, how exactly, and what if it fails.

Most of it on a clock that stands still, so that nothing is written but what the test asks for.
"""

import errno
import os
import time

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import UnavailableError
from nl.stores.filesystem import mirror, recency, use_order
from nl.stores.filesystem.uses import CELLS

from .conftest import put, until

LATE = 3.0


async def test_access_times_are_exact_to_a_microsecond_and_nothing_else_changes(place, mock_clock):
    async with place.running() as store:
        digest = await put(store, b"x")
        path, index = place.file(digest), store._index
        os.utime(path, ns=(1, 123_456_789_012_345_678))
        before = path.stat()
        await store.has([digest])
        wanted = store._clock.for_file(index.used[index.blob(digest)])
        await store._recency.flush()
        after = path.stat()
        assert abs(after.st_atime_ns - wanted * 1e9) < 2000
        assert (after.st_mtime_ns, after.st_mode, after.st_size) == (before.st_mtime_ns, before.st_mode, before.st_size)


async def test_what_has_gone_or_become_a_link_meanwhile_is_no_error_and_no_others_file(
    place, monkeypatch, caplog, mock_clock
):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    outside = place.root / "outside"
    outside.write_bytes(b"x")
    os.utime(outside, (1, 1))
    async with place.running() as store:
        gone, linked, there = [await put(store, name) for name in (b"gone", b"linked", b"there")]
        place.file(gone).unlink()
        place.file(linked).unlink()
        place.file(linked).symlink_to(outside)
        os.utime(place.file(there), (1, 1))
        await store._recency.flush()
        assert outside.stat().st_atime == 1 < place.file(there).stat().st_atime
    assert "access times" not in caplog.text


async def test_where_access_times_cannot_be_written_that_is_said_once_and_the_others_are(
    place, monkeypatch, caplog, mock_clock
):
    real, refused = recency._libc.utimensat, []

    class Refusing:
        @staticmethod
        def utimensat(folder, name, times, flags):
            if os.fsdecode(name) not in refused:
                return real(folder, name, times, flags)
            recency.ctypes.set_errno(errno.EPERM)
            return -1

    monkeypatch.setattr(recency, "_libc", Refusing())
    async with place.running() as store:
        for _ in range(2):
            digests = [await put(store, b"%d" % number) for number in range(3)]
            for digest in digests:
                os.utime(place.file(digest), (1, 1))
            refused[:] = [str(digests[0])]
            await store._recency.flush()
            assert [place.file(digest).stat().st_atime == 1 for digest in digests] == [True, False, False]
    [record] = [record for record in caplog.records if "cannot set access times" in record.getMessage()]
    assert "Operation not permitted" in record.getMessage() and str(place.content) in record.getMessage()


async def test_each_use_is_written_once_and_counted(place, mock_clock):
    async with place.running() as store:
        digests = [await put(store, b"%d" % number) for number in range(5)]
        flushed = store._recency.flushed_blobs
        await store.has(digests)
        await store._recency.flush()
        assert store._recency.flushed_blobs >= flushed + 5
        flushed = store._recency.flushed_blobs
        await store._recency.flush()
        assert store._recency.flushed_blobs == flushed
        await store.has(digests[:2])
        await store._recency.flush()
        assert store._recency.flushed_blobs == flushed + 2


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), UnavailableError("locked")])
async def test_who_comes_is_told_all_uses_whatever_becomes_of_the_sum(place, monkeypatch, caplog, error):
    async def fail():
        raise error

    async with place.running() as store:
        digest = await put(store, b"x")
        table, cell = store._uses, store._uses.cell_of(digest.hash)
        assert table.is_alone and table.times[cell] == 0.0
        ours, has_company = [], table.has_company

        async def keep_company():
            ours.append(trio.lowlevel.current_task())
            await store._recency.keep_company(fail)

        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(table, "has_company", lambda: trio.lowlevel.current_task() in ours and has_company())
            nursery.start_soon(keep_company)
            table.times[CELLS] = 2.0  # as the other one does when it comes
            await until(lambda: table.times[CELLS] == 0.0)
            nursery.cancel_scope.cancel()
        assert "the sum of bytes is not told" in caplog.text and not table.is_alone
        assert 0.0 < table.times[cell] <= time.monotonic()


async def test_a_flush_that_is_full_when_a_run_of_uses_ends_writes_none_of_the_next(place, monkeypatch, mock_clock):
    monkeypatch.setattr(use_order, "RUN", 4)
    monkeypatch.setattr(recency, "_BATCH", 4)
    async with place.running() as store:
        while len(store._index.order._tail):
            await store.put("first", b"x")
        await store._recency.flush()
        flushed = store._recency.flushed_blobs
        for number in range(8):
            await store.put(f"{number}", b"x")
        files = [place.content / "s" / f"{number}" for number in range(8)]
        for file in files:
            os.utime(file, (1, 1))
        await store._recency.flush()
        assert store._recency.flushed_blobs == flushed + 4
        assert [file.stat().st_atime > 1 for file in files] == [False] * 4 + [True] * 4


async def test_uses_of_before_the_other_came_are_told_before_it_is_said_that_all_were(place):
    async with place.running() as store:
        for number in range(5000):
            store._index.add(f"sname{number}", 1, used=time.monotonic())
        digest = await put(store, b"x")
        await store._recency.flush()
        seen = []
        completed = store._uses.completed

        def look_and_complete():
            cells = [store._uses.cell_of(key) for key in ("sname0", "sname4999", digest.hash)]
            seen.extend(store._uses.times[cell] > 0.0 for cell in cells)
            completed()

        store._uses.completed = look_and_complete
        async with place.running(name="other") as other:
            assert seen == [True] * 3
            assert other._uses.is_complete and not other._uses.is_alone and not store._uses.is_alone
            assert await other.has([digest, digest_of(b"none")]) == [1, None]
            assert store._uses.times[CELLS] not in (2.0, LATE)
