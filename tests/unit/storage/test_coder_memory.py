"""What the coders of a process hold together is bounded, and who waits for it gets it or is told why not."""

import pytest
import trio
import trio.testing

from nl.errors import ExhaustedError
from nl.plugin import BytesReader, CoderMemory, digest_of
from nl.storage.coder_memory import MIN_IDLE_S, PATIENCE_S
from nl.stores.dedup import DedupOptions, DedupStore
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, BlockingReader, read, started

BLOCKED = trio.testing.wait_all_tasks_blocked


class Holder:
    """A task that holds `count` bytes from `start` to `leave`."""

    def __init__(self, memory, count, *, log=None, name=""):
        self.memory = memory
        self.count = count
        self.log = log if log is not None else []
        self.name = name
        self.leave = trio.Event()
        self.error = None

    async def __call__(self):
        try:
            async with self.memory.reading(self.count):
                self.log.append(self.name)
                await self.leave.wait()
        except ExhaustedError as error:
            self.error = error


async def test_who_finds_no_room_waits_and_gets_it_in_the_order_of_arrival(nursery):
    memory, log = CoderMemory(100), []
    first, second, third, small = (Holder(memory, count, log=log, name=name)
                                   for count, name in ((60, "first"), (60, "second"), (60, "third"), (1, "small")))
    for each in (first, second, third, small):
        nursery.start_soon(each)
        await BLOCKED()
    assert log == ["first"], "the small one would have room, and does not overtake"
    first.leave.set()
    await BLOCKED()
    assert log == ["first", "second"]
    second.leave.set()
    await BLOCKED()
    assert log[:2] == ["first", "second"] and sorted(log[2:]) == ["small", "third"], "these two at once"
    third.leave.set()
    small.leave.set()
    await BLOCKED()
    assert memory.statistics() == {"bytes": 0, "max_bytes": 100, "holders": 0, "waiting": 0, "ended": 0}


async def test_what_is_larger_than_the_memory_is_admitted_when_it_has_all_of_it(nursery):
    memory = CoderMemory(100)
    one = Holder(memory, 1)
    large = Holder(memory, 1000)
    for each in (one, large):
        nursery.start_soon(each)
        await BLOCKED()
    assert memory.used == 1
    one.leave.set()
    await BLOCKED()
    assert memory.used == 100
    large.leave.set()


async def test_who_holds_some_does_not_wait_for_more_of_it():
    """A store that compresses into one that cuts would wait for itself."""
    memory = CoderMemory(100)
    async with memory.uploading((100,)), memory.uploading((50,)), memory.reading(7):
        assert memory.used == 157
        async with trio.open_nursery() as nursery:  # nor do its tasks
            holder = Holder(memory, 100)
            nursery.start_soon(holder)
            await BLOCKED()
            assert memory.used == 257
            holder.leave.set()
    assert memory.used == 0


async def test_of_tasks_that_belong_together_one_gets_room_for_all(nursery):
    """Either could not go on without the other, so if one held its part and the other waited, both would for ever."""
    memory = CoderMemory(100)
    other = Holder(memory, 90)
    nursery.start_soon(other)
    await BLOCKED()
    twins, stranger = [Holder(memory, 60), Holder(memory, 60)], Holder(memory, 60)

    async def both(*, task_status):
        with memory.together():
            async with trio.open_nursery() as inner:
                task_status.started(inner)
                await trio.sleep_forever()

    inner = await nursery.start(both)
    for at, each in ((inner, twins[0]), (nursery, stranger), (inner, twins[1])):
        at.start_soon(each)
        await BLOCKED()
    assert memory.used == 90
    other.leave.set()
    await BLOCKED()
    assert [each.log for each in (*twins, stranger)] == [[""], [""], []]
    assert memory.used == 120
    for each in (*twins, stranger):
        each.leave.set()
    await BLOCKED()
    assert memory.used == 0
    inner.cancel_scope.cancel()


async def test_who_has_waited_while_nobody_got_any_is_told_what_to_change(nursery, autojump_clock):
    memory = CoderMemory(100)
    nursery.start_soon(Holder(memory, 100))
    await BLOCKED()
    began = trio.current_time()
    with pytest.raises(ExhaustedError, match=r"1 requests use all memory .* \(global.max_coder_memory is 100 bytes\)"):
        async with memory.reading(1):
            pass
    assert PATIENCE_S <= trio.current_time() - began <= PATIENCE_S + 2
    assert memory.statistics()["waiting"] == 0
    nursery.cancel_scope.cancel()


async def test_who_waits_while_others_get_some_waits_on(nursery, autojump_clock):
    memory, log = CoderMemory(1), []

    async def work(number):
        async with memory.reading(1):
            await trio.sleep(PATIENCE_S * 0.9)
            log.append(number)

    for number in range(10):
        nursery.start_soon(work, number)
        await BLOCKED()
    await trio.sleep(PATIENCE_S * 10)
    assert log == list(range(10))


async def test_the_upload_that_has_waited_longest_for_its_client_makes_room(nursery, autojump_clock):
    memory, ended = CoderMemory(100), []

    async def upload(name, reader):
        try:
            async with memory.uploading((40,)) as held:
                await held.watched(reader).receive_parts()
                await held.watched(reader).receive_parts()
        except ExhaustedError as error:
            ended.append((name, str(error)))

    for name in ("longer", "shorter"):
        nursery.start_soon(upload, name, BlockingReader([b"some"], rest=b"more"))
        await trio.sleep(MIN_IDLE_S / 2)
    async with memory.reading(40):
        assert [name for name, _ in ended] == ["longer"]
        assert "global.max_coder_memory" in ended[0][1]
    assert memory.statistics()["ended"] == 1
    nursery.cancel_scope.cancel()


async def test_an_upload_that_waits_for_its_store_is_not_ended(nursery, autojump_clock):
    memory = CoderMemory(100)

    async def upload():
        async with memory.uploading((100,)) as held:
            await held.watched(BytesReader(b"some")).receive_parts()
            await trio.sleep(PATIENCE_S * 0.9)

    nursery.start_soon(upload)
    await BLOCKED()
    async with memory.reading(100):
        assert memory.statistics()["ended"] == 0


async def test_an_upload_gets_what_it_would_like_only_of_the_first_half():
    memory = CoderMemory(100)
    async with memory.uploading((50, 10)) as first:
        assert first.count == 50
        async with trio.open_nursery() as nursery:
            seen = []

            async def upload():
                async with memory.uploading((50, 10)) as held:
                    seen.append(held.count)

            nursery.start_soon(upload)
        assert seen == [10]


async def test_who_can_do_without_gets_some_of_the_first_half_or_none_and_never_waits(nursery):
    memory = CoderMemory(101)
    with memory.spare(51) as all_of_it, memory.spare(1) as more:
        assert (all_of_it, more, memory.used) == (True, False, 51)
    with memory.spare(52) as too_much:
        assert not too_much and memory.used == 0
    holder, waits = Holder(memory, 1), Holder(memory, 101)
    for each in (holder, waits):
        nursery.start_soon(each)
        await BLOCKED()
    with memory.spare(1) as before_who_waits:
        assert not before_who_waits and memory.used == 1
    for each in (holder, waits):
        each.leave.set()
    await BLOCKED()
    assert memory.used == 0 and not memory._requests


async def test_who_could_have_done_without_does_not_wait_for_more_and_gives_it_back_to_who_waits(nursery):
    memory = CoderMemory(100)
    go_on, leave = trio.Event(), trio.Event()

    async def hold():
        with memory.spare(50) as granted:
            assert granted
            await go_on.wait()
            async with memory.reading(60):
                assert memory.used == 110
                await leave.wait()

    waits = Holder(memory, 90)
    nursery.start_soon(hold)
    await BLOCKED()
    nursery.start_soon(waits)
    await BLOCKED()
    assert memory.used == 50
    go_on.set()
    await BLOCKED()
    assert memory.used == 110
    leave.set()
    await BLOCKED()
    assert memory.used == 90
    waits.leave.set()
    await BLOCKED()
    with pytest.raises(OSError, match="failed"), memory.spare(50):
        raise OSError("failed")
    assert memory.used == 0 and not memory._requests


async def test_who_gives_up_waiting_leaves_no_trace_even_if_it_was_just_granted(nursery):
    memory = CoderMemory(100)
    holder = Holder(memory, 100)
    nursery.start_soon(holder)
    await BLOCKED()
    scope, other = trio.CancelScope(), Holder(memory, 30)

    async def give_up():
        with scope:
            async with memory.reading(80):
                raise AssertionError("cancelled before")

    nursery.start_soon(give_up)
    await BLOCKED()
    nursery.start_soon(other)
    await BLOCKED()
    holder.leave.set()
    scope.cancel()
    await BLOCKED()
    assert memory.used == 30 and other.log == [""]
    other.leave.set()


async def test_who_gives_up_waiting_makes_way_for_those_behind(nursery):
    memory = CoderMemory(100)
    holder, large, small = Holder(memory, 60), Holder(memory, 80), Holder(memory, 30)
    scope = trio.CancelScope()

    async def wait_in_front():
        with scope:
            await large()

    for each in (holder, wait_in_front, small):
        nursery.start_soon(each)
        await BLOCKED()
    assert not small.log
    scope.cancel()
    await BLOCKED()
    assert small.log and not large.log and memory.used == 90
    holder.leave.set()
    small.leave.set()


async def test_a_hundred_uploads_that_stall_in_dedup_hold_no_more_than_the_memory(nursery, autojump_clock):
    memory = CoderMemory(16 * 1024 * 1024)
    context = BareContext(coder_memory=memory)
    store = DedupStore(
        DedupOptions(index_store=context.spec(MemoryStore(MemoryOptions(), context)),
                     content_store=context.spec(MemoryStore(MemoryOptions(), context))), context,
    )  # fmt: skip
    ended, rest = [], bytes(10_000_000)

    async def stall():
        reader = BlockingReader([b"x"], rest=rest)
        try:
            await store.write(digest_of(b"never"), reader)
        except ExhaustedError:
            ended.append(reader)

    for _ in range(100):
        nursery.start_soon(stall)
    await BLOCKED()
    assert 0 < memory.used <= memory.limit
    data = b"small" * 1000
    await store.write(digest_of(data), BytesReader(data))
    assert await read(store, digest_of(data)) == data
    assert ended and memory.used <= memory.limit
    nursery.cancel_scope.cancel()


async def test_both_sides_of_fast_slow_are_one_request():
    """Each of many uploads would else hold the part of its one side, and wait for that of the other."""
    memory = CoderMemory(1024 * 1024)
    context = BareContext(coder_memory=memory)

    def dedup():
        return DedupStore(
            DedupOptions(index_store=context.spec(MemoryStore(MemoryOptions(), context)),
                         content_store=context.spec(MemoryStore(MemoryOptions(), context))), context,
        )  # fmt: skip

    store = FastSlowStore(FastSlowOptions(fast=context.spec(dedup()), slow=context.spec(dedup())), context)
    data = b"fast and slow" * 1000
    async with started(store, context), trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(store.write, digest_of(data), BytesReader(data))
    assert await read(store, digest_of(data)) == data
    assert memory.used == 0


def test_what_nobody_configures_is_a_gibibyte_and_half_a_minute_of_patience():
    assert CoderMemory().limit == 1 << 30
    assert (PATIENCE_S, MIN_IDLE_S) == (30, 5)


async def test_of_uploads_that_all_wait_for_their_clients_the_longest_makes_room_and_no_more_than_are_needed(
    nursery, autojump_clock
):
    memory, ended = CoderMemory(120), []

    async def upload(number):
        try:
            async with memory.uploading((40,)) as held:
                await held.watched(BlockingReader([])).receive_parts()
        except ExhaustedError:
            ended.append(number)

    for number in range(3):
        nursery.start_soon(upload, number)
        await trio.sleep(1)
    await trio.sleep(MIN_IDLE_S * 3)
    async with memory.reading(50):
        assert sorted(ended) == [0, 1], "two of 40 for one of 50"
    assert memory.statistics()["ended"] == 2
    nursery.cancel_scope.cancel()


async def test_while_an_upload_that_has_to_make_room_still_ends_no_other_has_to(nursery, autojump_clock):
    memory, ends = CoderMemory(80), []

    async def upload(name, takes):
        try:
            async with memory.uploading((40,)) as held:
                held.waiting_since = trio.current_time()
                with trio.CancelScope(shield=bool(takes)):
                    await trio.sleep(takes or 1000)
            ends.append((name, "done"))
        except ExhaustedError:
            ends.append((name, "refused"))

    nursery.start_soon(upload, "slow to end", MIN_IDLE_S * 3)
    await trio.sleep(1)
    nursery.start_soon(upload, "idle", 0)
    await trio.sleep(MIN_IDLE_S)
    async with memory.reading(40):
        assert ends == [("slow to end", "done")], "nothing stopped it, so it is no failure"
    assert memory.statistics()["ended"] == 1
    nursery.cancel_scope.cancel()


async def test_who_held_some_and_gave_it_back_waits_like_anybody(nursery):
    memory, again, admitted = CoderMemory(100), trio.Event(), []
    holder = Holder(memory, 100)

    async def ask_twice():
        with memory.together():
            async with memory.reading(10):
                pass
            await again.wait()
            async with memory.reading(50):
                admitted.append(50)

    for each in (ask_twice, holder):
        nursery.start_soon(each)
        await BLOCKED()
    again.set()
    await BLOCKED()
    assert admitted == []
    holder.leave.set()
    await BLOCKED()
    assert admitted == [50] and memory.used == 0


async def test_a_watched_reader_is_like_the_one_that_it_watches():
    """Of the same size, so that what never fits is refused at once, and rewound by who tries again."""
    async with CoderMemory(100).uploading((40,)) as held:
        watched = held.watched(BytesReader(b"some bytes"))
        assert watched.size == 10 and watched.can_rewind
        assert b"".join(await watched.receive_parts(4)) == b"some"
        await watched.rewind()
        assert b"".join(await watched.receive_parts()) == b"some bytes"
        assert not held.watched(BlockingReader([b"some"])).can_rewind


async def test_an_upload_whose_client_failed_once_is_not_taken_for_one_that_waits(nursery, autojump_clock):
    """Its store tries again, or keeps what has come: that takes as long as it takes."""
    memory = CoderMemory(100)

    class Failing(BlockingReader):
        async def receive_parts(self, max_bytes=1):
            raise OSError("reset")

    async def upload():
        async with memory.uploading((100,)) as held:
            with pytest.raises(OSError, match="reset"):
                await held.watched(Failing([])).receive_parts()
            await trio.sleep(PATIENCE_S * 0.9)

    nursery.start_soon(upload)
    await BLOCKED()
    async with memory.reading(100):
        assert memory.statistics()["ended"] == 0


async def test_one_of_a_request_that_waited_in_vain_leaves_the_others_as_they_were(nursery, autojump_clock):
    memory = CoderMemory(100)
    holder = Holder(memory, 100)
    nursery.start_soon(holder)
    await BLOCKED()
    with memory.together():
        with pytest.raises(ExhaustedError):
            async with memory.reading(1):
                pass
        holder.leave.set()
        await BLOCKED()
        assert memory.statistics() == {"bytes": 0, "max_bytes": 100, "holders": 0, "waiting": 0, "ended": 0}
        async with memory.reading(100):
            assert memory.statistics()["holders"] == 1
            async with memory.reading(50):
                assert memory.used == 150, "who holds some does not wait, whatever was before"


async def test_a_request_that_holds_some_twice_is_one_holder_until_it_holds_none():
    memory, seen = CoderMemory(100), []
    async with memory.reading(10):
        async with memory.reading(10):
            seen.append(memory.statistics()["holders"])
        seen.append(memory.statistics()["holders"])
    assert [*seen, memory.statistics()["holders"]] == [1, 1, 0]


async def test_who_comes_when_others_have_long_held_all_of_it_has_patience_of_its_own(nursery, autojump_clock):
    memory = CoderMemory(100)

    async def hold():
        async with memory.reading(100):
            await trio.sleep(PATIENCE_S * 1.5)

    nursery.start_soon(hold)
    await trio.sleep(PATIENCE_S * 1.2)
    async with memory.reading(1):
        assert memory.used == 1


async def test_what_belongs_together_is_over_however_its_block_ends():
    memory = CoderMemory(100)
    with pytest.raises(OSError, match="failed"), memory.together():
        raise OSError("failed")
    with trio.CancelScope() as scope, memory.together():
        scope.cancel()
        await trio.sleep_forever()
    assert not memory._requests


async def test_an_upload_that_is_slow_to_end_has_to_make_room_once(nursery, autojump_clock):
    memory = CoderMemory(80)

    async def upload():
        async with memory.uploading((40,)) as held:
            held.waiting_since = trio.current_time()
            with trio.CancelScope(shield=True):
                await trio.sleep(MIN_IDLE_S * 3)

    nursery.start_soon(upload)
    nursery.start_soon(Holder(memory, 40))
    await trio.sleep(MIN_IDLE_S)
    with trio.move_on_after(PATIENCE_S / 2):
        async with memory.reading(80):  # which needs the other half, too
            pytest.fail("somebody holds the other half")
    assert memory.statistics()["ended"] == 1
    nursery.cancel_scope.cancel()


async def test_what_is_free_need_not_be_given_up_by_anybody(nursery, autojump_clock):
    memory, ended = CoderMemory(120), []

    async def upload(number):
        try:
            async with memory.uploading((40,)) as held:
                await held.watched(BlockingReader([])).receive_parts()
        except ExhaustedError:
            ended.append(number)

    for number in range(2):
        nursery.start_soon(upload, number)
        await trio.sleep(1)
    await trio.sleep(MIN_IDLE_S * 3)
    async with memory.reading(70):
        assert ended == [0], "one of 40, as 40 are free"
    nursery.cancel_scope.cancel()
