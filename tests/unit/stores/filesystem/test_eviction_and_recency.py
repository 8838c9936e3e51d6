"""What goes when there is no room, and that the order of use outlives the process."""

import fcntl
import os
import time

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.plugin import ActionKey, BytesReader, ExhaustedError, Link, LocalFiles
from nl.stores.filesystem.clock import Clock
from nl.stores.filesystem.uses import CELLS
from nl.testing import PartsReader, make_blob, split

from .conftest import put, until

BLOCK = 4096


async def put_each(store, names):
    return {name: await put(store, name.encode() * 10) for name in names}


def forget_uses(place):
    """As after a restart of the machine."""
    for table in place.content.glob(".uses-*"):
        table.unlink()


async def left(store, digests):
    sizes = await store.has(list(digests.values()))
    return "".join(name for name, size in zip(digests, sizes, strict=True) if size is not None)


async def test_the_least_recently_used_goes_first(place):
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        digests = await put_each(store, "abcd")
        assert await left(store, digests) == "bcd"
        assert sorted(os.listdir(place.content / "d")) == sorted(str(digests[name]) for name in "bcd")


@pytest.mark.parametrize("way", ["has", "get", "open", "put", "write", "link"])
async def test_every_use_keeps_a_blob(place, way):
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        digests = await put_each(store, "abc")
        if way == "has":
            await store.has([digests["a"]])
        elif way == "get":
            await store.get(digests["a"])
        elif way == "open":
            async with store.open(digests["a"]) as reader:
                await reader.receive_parts()
        elif way == "put":
            await store.put(digests["a"], b"a" * 10)
        elif way == "write":
            await store.write(digests["a"], BytesReader(b"a" * 10))
        else:
            await store.capability(LocalFiles).link_files([Link(digests["a"], str(place.inputs / "a"), False)])
        digests |= await put_each(store, "d")
        assert await left(store, digests) == "acd"


async def test_files_count_in_whole_blocks_but_has_says_the_true_size(place):
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        digest = await put(store, b"tiny")
        assert await store.has([digest]) == [4]
        assert store.statistics()["bytes"] == BLOCK
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        assert await store.has([digest]) == [4]


async def test_eviction_goes_down_to_the_low_watermark(place):
    async with place.running(policy={"max_bytes": 10 * BLOCK, "evict_bytes": 4 * BLOCK}) as store:
        digests = await put_each(store, "abcdefghij")
        assert await left(store, digests) == "abcdefghij"
        digests |= await put_each(store, "k")
        assert await left(store, digests) == "fghijk"


async def test_there_are_no_more_than_max_count(place):
    async with place.running(policy={"max_count": 2}) as store:
        digests = await put_each(store, "abc")
        assert await left(store, digests) == "bc"


async def test_all_kinds_of_keys_share_the_room(place):
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        await store.put(ActionKey("ab" * 32, 1), b"result")
        await store.put("name", b"value")
        digests = await put_each(store, "ab")
        assert await store.has([ActionKey("ab" * 32, 1), "name"]) == [None, 5]
        assert await left(store, digests) == "ab"


async def test_replacing_a_value_evicts_nobody(place):
    async with place.running(policy={"max_bytes": 2 * BLOCK, "max_count": 2}) as store:
        digests = await put_each(store, "a")
        for number in range(5):
            await store.put("name", b"value %d" % number)
        assert await left(store, digests) == "a"
        assert store.statistics()["evicted_blobs"] == 0


@pytest.mark.parametrize("way", ["put", "write", "write of unknown size", "adopt"])
async def test_a_blob_larger_than_everything_is_refused_and_evicts_nobody(place, way):
    async with place.running(policy={"max_bytes": 4 * BLOCK}) as store:
        digests = await put_each(store, "abcd")
        data = make_blob(4 * BLOCK + 1)
        with pytest.raises(ExhaustedError, match="CAS.*max_bytes"):
            if way == "put":
                await store.put(digest_of(data), data)
            elif way == "write":
                await store.write(digest_of(data), BytesReader(data))
            elif way == "adopt":
                (place.inputs / "out").write_bytes(data)
                await store.capability(LocalFiles).adopt_file(digest_of(data), str(place.inputs / "out"))
            else:
                await store.write("name", PartsReader(split(data, 1000), size=-1))
        assert await left(store, digests) == "abcd"
        assert place.temp_files() == []


async def test_a_blob_of_exactly_max_bytes_fits(place):
    async with place.running(policy={"max_bytes": 4 * BLOCK, "evict_bytes": BLOCK}) as store:
        await put_each(store, "abcd")
        digest = await put(store, make_blob(4 * BLOCK))
        assert await store.has([digest]) == [4 * BLOCK]
        assert place.used() == 4 * BLOCK


async def test_evicting_many_lets_others_run(place):
    async with place.running(policy={"max_bytes": 1000 * BLOCK}) as store:
        for number in range(1000):
            await store.put(f"{number}", b"x")
        turns = 0

        async def count_turns():
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            await put(store, make_blob(1000 * BLOCK))
            nursery.cancel_scope.cancel()
        assert turns >= 1000 // 64
        assert place.used() == 1000 * BLOCK


async def test_large_files_are_freed_after_eviction(place):
    async with place.running(policy={"max_bytes": 30 << 20}) as store:
        for number in range(4):
            await store.write(f"{number}", BytesReader(bytes(10 << 20)))
        await until(lambda: not store._committer._closing)
        assert await store.has([f"{number}" for number in range(4)]) == [None, *([10 << 20] * 3)]


async def test_eviction_does_not_disturb_an_open_reader(place):
    data = make_blob(1 << 20)
    async with place.running(policy={"max_bytes": 2 << 20}) as store:
        digest = await put(store, data)
        async with store.open(digest) as reader:
            got = bytes((await reader.receive_parts(1000))[0])
            await put(store, make_blob(2 << 20, seed=9))
            assert await store.has([digest]) == [None]
            while parts := await reader.receive_parts():
                got += b"".join(map(bytes, parts))
        assert got == data


async def test_what_nobody_used_for_max_seconds_is_gone(place):
    async with place.running() as store:
        digests = await put_each(store, "abc")
    for name, age in (("a", 1000), ("b", 10)):
        path = place.file(digests[name])
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime))
    forget_uses(place)
    async with place.running(policy={"max_seconds": 100}) as store:
        assert await left(store, digests) == "bc"
        await until(lambda: not place.file(digests["a"]).exists())
        assert store.statistics()["evicted_blobs"] == 1
        await put_each(store, "a")
        assert await left(store, digests) == "abc"


async def test_what_another_process_used_lately_does_not_expire(place):
    async with place.running(policy={"max_seconds": 100}) as store:
        digests = await put_each(store, "ab")
        for digest in digests.values():
            os.utime(place.file(digest), (1, place.file(digest).stat().st_mtime))
            store._index.used[store._index.blob(digest)] -= 1000.0
        async with place.running() as other:
            await other.get(digests["b"])
        assert await left(store, digests) == "b"


async def test_a_wall_clock_that_jumps_empties_nothing_and_writes_no_wrong_times(place, monkeypatch):
    monkeypatch.setattr("nl.stores.filesystem.store._TRIM_S", 0.0)
    async with place.running(policy={"max_seconds": 3600}) as store:
        digests = await put_each(store, "abc")
        real = time.time
        for days in (40, -40):
            monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86400)
            assert await left(store, digests) == "abc"
            await trio.sleep(0.6)
            await store._recency.flush()
            assert await left(store, digests) == "abc"
            for digest in digests.values():
                assert abs(place.file(digest).stat().st_atime - real()) < 60
    assert len(os.listdir(place.content / "d")) == 3


def test_a_wall_clock_that_was_set_for_good_is_believed_after_a_minute(monkeypatch):
    wall, monotonic = 1000.0, 50.0
    monkeypatch.setattr(time, "time", lambda: wall)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic)
    clock = Clock()
    assert clock.for_file(50.0) == 1000.0 and clock.of_file(990.0) == 40.0
    wall += 5000.0
    for _ in range(60):
        clock.watch()
        assert clock.for_file(monotonic) == pytest.approx(wall - 5000.0)
        wall, monotonic = wall + 1.0, monotonic + 1.0
    wall, monotonic = wall + 1.0, monotonic + 1.0
    clock.watch()
    assert clock.for_file(monotonic) == wall
    assert clock.of_file(wall + 9999) == monotonic, "never in the future"


async def test_a_restart_keeps_the_order_of_use(place):
    async with place.running(policy={"max_bytes": 5 * BLOCK}) as store:
        digests = await put_each(store, "abcde")
        # atime has the resolution of the kernel's clock tick: keep uses apart.
        for name in "cade":
            await trio.sleep(0.02)
            await store.has([digests[name]])
    async with place.running(policy={"max_bytes": 5 * BLOCK}) as store:
        digests |= await put_each(store, "fgh")
        assert await left(store, digests) == "defgh"


async def test_a_store_started_over_its_limit_evicts_down_to_it(place):
    async with place.running() as store:
        digests = {}
        for name in "abcdef":
            digests |= await put_each(store, name)
            await trio.sleep(0.01)
    async with place.running(policy={"max_bytes": 3 * BLOCK}) as store:
        await until(lambda: place.used() == 3 * BLOCK)
        assert await left(store, digests) == "def"


@pytest.mark.parametrize("way", ["has", "get"])
async def test_what_one_process_used_is_kept_by_the_others_at_once_and_in_the_order_of_use(place, way):
    async with place.running(policy={"max_bytes": 5 * BLOCK}) as ours, place.running() as theirs:
        digests = await put_each(ours, "abcde")
        for name in "db":
            await (theirs.has([digests[name]]) if way == "has" else theirs.get(digests[name]))
        await ours.get(digests["a"])
        digests |= await put_each(ours, "fgh")
        assert await theirs.has([digests[name] for name in "abcdefgh"]) == [10, 10, None, None, None, 10, 10, 10]
        assert ours.statistics()["kept_for_others"] == 2


@pytest.mark.parametrize("way", ["has", "get"])
async def test_what_a_process_used_while_it_was_alone_is_known_to_the_next_that_comes(place, way):
    async with place.running(policy={"max_bytes": 5 * BLOCK}) as one:
        digests = await put_each(one, "abcde")
        assert one._uses.is_alone
        for name in "ca":
            await (one.has([digests[name]]) if way == "has" else one.get(digests[name]))
        async with place.running(policy={"max_bytes": 5 * BLOCK}) as two:
            assert not one._uses.is_alone and not two._uses.is_alone
            await one.has([digests["b"]])
            others = await put_each(two, "xyz")
            assert await left(one, digests | others) == "abxyz"
        async with place.running(policy={"max_bytes": 5 * BLOCK}) as two:
            assert not two._uses.is_alone


async def test_a_store_does_not_wait_for_ever_for_one_that_stands_still(place, monkeypatch):
    monkeypatch.setattr("nl.stores.filesystem.recency._PATIENCE_S", 0.05)
    async with place.running() as one:
        monkeypatch.setattr(one._uses, "has_company", lambda: False)
        async with place.running() as two:
            assert await two.get(await put(two, b"x")) == b"x"
            monkeypatch.setattr("nl.stores.filesystem.recency._PATIENCE_S", 1000)
            with trio.fail_after(60):
                async with place.running() as three:
                    assert await three.get(await put(three, b"y")) == b"y", "once it was waited for in vain"


async def test_what_is_told_late_does_not_make_forget_what_was_used_meanwhile(place, monkeypatch):
    monkeypatch.setattr("nl.stores.filesystem.recency._PATIENCE_S", 0.05)
    async with place.running() as one:
        monkeypatch.setattr(one._uses, "has_company", lambda: False)
        async with place.running() as two:
            digest = await put(two, b"x")
            assert await two.has([digest]) == [1]
            cell = two._uses.cell_of(digest.hash)
            used = two._uses.last(cell)
            assert used > 0
            one._uses.times[cell] = used - 100  # as it is if both write in the same moment
            one._uses.completed()
            await until(lambda: two._uses.last(cell) == used)


async def test_a_store_outlives_one_that_comes_and_stands_still_with_the_lock(place, monkeypatch, caplog):
    monkeypatch.setattr("nl.stores.filesystem.lock._TIMEOUT_S", 0.3)
    async with place.running() as store:
        digest = await put(store, b"x")
        with (place.content / ".lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            store._uses.times[CELLS] = 2.0  # as the other one does when it comes
            await until(lambda: store._uses.is_complete and not store._uses.is_alone)
        assert "has been locked" in caplog.text
        assert await store.has([digest]) == [1]
        assert store._uses.last(store._uses.cell_of(digest.hash)) > 0, "what it has used is told all the same"
        await put(store, b"y")


async def test_where_uses_cannot_be_shared_the_store_says_so_and_works(place, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nl.stores.filesystem.uses.reserve", refuse)
    async with place.running() as store:
        digest = await put(store, b"x")
        assert await store.has([digest]) == [1]
    assert "not shared with other processes" in caplog.text
    assert not list(place.content.glob(".uses-*"))


async def test_files_that_others_touch_are_not_looked_at_again(place):
    async with place.running(policy={"max_bytes": 300 * BLOCK}) as store:
        digests = await put_each(store, map(str, range(300)))
        for digest in digests.values():
            os.utime(place.file(digest))
        await put(store, b"one more")
        assert store.statistics()["evicted_blobs"] == 1
        assert store.statistics()["kept_for_others"] == 0


async def test_uses_reach_the_disk_without_a_restart(place):
    async with place.running() as store:
        digest = await put(store, b"used")
        os.utime(place.file(digest), (1, place.file(digest).stat().st_mtime))
        await store.get(digest)
        os.utime(place.file(digest), (1, place.file(digest).stat().st_mtime))
        await store._recency.flush()
        assert place.file(digest).stat().st_atime > 1e9


async def test_executable_variants_count_and_go_with_their_blob(place):
    async with place.running(policy={"max_bytes": 4 * BLOCK}) as store:
        digests = await put_each(store, "a")
        await store.capability(LocalFiles).link_files([Link(digests["a"], str(place.inputs / "a"), True)])
        assert store.statistics()["bytes"] == 2 * BLOCK == place.used()
        digests |= await put_each(store, "bcd")
        assert await left(store, digests) == "bcd"
        assert os.listdir(place.executables) == []
        assert (place.inputs / "a").read_bytes() == b"a" * 10


async def test_variants_whose_blob_is_gone_are_deleted_at_start(place):
    async with place.running() as store:
        digests = await put_each(store, "ab")
        links = [Link(digest, str(place.inputs / name), True) for name, digest in digests.items()]
        await store.capability(LocalFiles).link_files(links)
    place.file(digests["a"]).unlink()
    async with place.running() as store:
        assert os.listdir(place.executables) == [str(digests["b"])]
        assert store.statistics()["bytes"] == 2 * BLOCK


async def test_one_flush_writes_the_latest_uses_up_to_a_bound(place, monkeypatch):
    monkeypatch.setattr("nl.stores.filesystem.recency._BATCH", 6)
    monkeypatch.setattr("nl.stores.filesystem.use_order.RUN", 4)
    monkeypatch.setattr("nl.stores.filesystem.store._TICK_S", 1000)  # nobody else flushes but once at the start
    async with place.running() as store:
        await until(lambda: store._recency._last > store._recency._began)
        digests = [await put(store, b"%d" % number) for number in range(20)]
        await store._recency.flush()
        before = store._recency.flushed_blobs
        for digest in digests:
            os.utime(place.file(digest), (1, 1))
            await store.has([digest])
        await store._recency.flush()
        assert store._recency.flushed_blobs - before == 6
        written = [place.file(digest).stat().st_atime > 1 for digest in digests]
        assert sum(written) == 6 and all(written[-4:])
        await store._recency.flush()
        assert store._recency.flushed_blobs - before == 6, "what was not written is forgotten"
