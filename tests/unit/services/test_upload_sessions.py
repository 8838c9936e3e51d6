"""What a session tells the call that feeds it, when the two do not end together."""

import array
import gc
import hashlib
import weakref
from math import inf

import pytest
import trio

from nl.blob.reader import read_all
from nl.errors import (
    CancelledError,
    Code,
    DeadlineError,
    ExhaustedError,
    InvalidRequestError,
    NlError,
    UnavailableError,
)
from nl.model.digest import Digest
from nl.services.uploads import RELEASE_GRACE_S, State, UploadSession
from nl.services.write_messages import WriteMessages

DATA = b"0123456789"
DIGEST = Digest(hashlib.sha256(DATA).hexdigest(), len(DATA))


class Message:
    """As `nl.services.write_messages.WriteMessage`, with all its bytes at hand."""

    resource_name = ""
    finish = True

    def __init__(self, data, offset=0):
        self.offset = offset
        self._parts = [data] if data else []

    async def receive_parts(self, max_bytes):
        return (self._parts.pop(),) if self._parts else ()


class Silent:
    """A stream that brings nothing more."""

    def take_body(self, max_bytes):
        return None

    async def receive_body(self):
        await trio.sleep_forever()


def Silence(idle_s=300.0):  # noqa: N802  reads as what it is
    return WriteMessages(Silent(), idle_s=idle_s)


class SlowStore:
    """Takes what there is, and then takes `drop_s` to drop it."""

    def __init__(self, drop_s=0.0):
        self.drop_s = drop_s
        self.stored = None

    async def write(self, digest, reader):
        try:
            self.stored = await read_all(reader)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.drop_s)


def new_session(persist_s=60.0):
    return UploadSession(DIGEST, persist_s=persist_s)


def unfinished():
    message = Message(DATA[:4])
    message.finish = False
    return message


async def test_an_upload_that_ends_with_its_service_is_not_taken_for_stored(autojump_clock):
    session, answers = new_session(), []

    async def feed():
        try:
            answers.append(await session.feed(Silence(), unfinished()))
        except UnavailableError as error:
            answers.append(error.message)

    async with trio.open_nursery() as calls, trio.open_nursery() as service:
        service.start_soon(session.run, SlowStore())
        calls.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        service.cancel_scope.cancel()
    assert answers == ["the server is shutting down"]


async def test_a_session_that_waited_in_vain_says_so_before_the_store_has_dropped_it(autojump_clock):
    session = new_session(persist_s=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, SlowStore(drop_s=10.0))
        with trio.move_on_after(0.5):
            await session.feed(Silence(), unfinished())
        assert (session.attached, session.state) == (False, State.PARKED)
        await trio.sleep(2.0)
        assert (session.state, session.joinable) == (State.EXPIRED, False)
        with pytest.raises(CancelledError, match="not resumed within 1 s"):
            await session.feed(Silence(), unfinished())
        assert session.done


@pytest.mark.parametrize("steps", range(12))
async def test_a_call_cancelled_at_any_step_leaves_a_session_that_another_completes(steps, autojump_clock):
    session, store = new_session(), SlowStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_after, scope, steps)
            await session.feed(Silence(), unfinished())
        assert scope.cancelled_caught
        assert not session.attached
        rest = Message(DATA[session.committed :], session.committed)
        await session.feed(Silence(), rest)
    assert store.stored == DATA


async def cancel_after(scope, steps):
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("steps", range(8))
async def test_two_calls_that_want_the_same_session_take_turns(steps, autojump_clock):
    session, store, ends = new_session(), SlowStore(), []

    async def feed(message):
        try:
            await session.feed(Silence(), message)
            ends.append("stored")
        except NlError as error:
            ends.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        nursery.start_soon(feed, unfinished())
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        nursery.start_soon(feed, unfinished())
        nursery.start_soon(feed, Message(DATA))
        await trio.testing.wait_all_tasks_blocked()
        if "stored" not in ends:  # the last to come was one that does not bring everything
            nursery.start_soon(feed, Message(DATA))
    assert store.stored == DATA
    assert ends.count("stored") >= 1
    assert not session.attached


async def test_a_parked_session_holds_neither_the_call_nor_its_buffers(autojump_clock):
    session, handed = new_session(), []

    class KeepingStore:
        """As stores do: the last buffers stay in a variable until there are new ones."""

        async def write(self, digest, reader):
            while parts := await reader.receive_parts():
                handed.append(parts)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, KeepingStore())
        message = Message(memoryview(bytearray(DATA[:4])))
        message.finish = False
        calls = [Silence()]
        known = weakref.ref(message)
        with trio.move_on_after(1):
            await session.feed(calls[0], message)
        del message
        assert (session.state, session.committed) == (State.PARKED, 4)
        assert handed == [[]]
        gc.collect()
        assert known() is None
        nursery.cancel_scope.cancel()


async def test_an_upload_whose_client_sends_nothing_more_ends_and_names_the_option(autojump_clock):
    session, store = new_session(), SlowStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        began = trio.current_time()
        with pytest.raises(DeadlineError, match="no progress for 7 s .*idle_upload_timeout_s"):
            await session.feed(Silence(idle_s=7.0), unfinished())
        assert trio.current_time() - began == 7.0
        assert (session.state, store.stored) == (State.ENDED, None)


async def test_a_slow_store_is_not_taken_for_a_silent_client(autojump_clock):
    session = new_session()

    class Slow:
        stored = b""

        async def write(self, digest, reader):
            while parts := await reader.receive_parts():
                await trio.sleep(100)
                self.stored += b"".join(parts)

    store = Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        await session.feed(Silence(idle_s=7.0), Message(DATA))
    assert store.stored == DATA


async def test_a_session_that_is_given_up_for_a_reason_tells_the_call_that_feeds_it(autojump_clock):
    session = new_session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, SlowStore(drop_s=3.0))
        nursery.start_soon(give_up_in, 2.0, session)
        with pytest.raises(ExhaustedError, match="its place was needed"):
            await session.feed(Silence(), unfinished())
        assert trio.current_time() >= 5.0
        assert session.done


async def give_up_in(seconds, session):
    await trio.sleep(seconds)
    session.give_up(ExhaustedError("its place was needed"))


async def test_a_call_is_held_until_the_store_is_done_with_its_buffers_but_not_for_ever(autojump_clock):
    session = new_session()

    class Stuck:
        async def write(self, digest, reader):
            await reader.receive_parts()
            await trio.sleep(100 * RELEASE_GRACE_S)  # for ever, but for a test that is to fail and not to hang

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, Stuck())
        began = trio.current_time()
        with trio.move_on_after(1.0):
            await session.feed(Silence(), unfinished())
        assert trio.current_time() - began == 1.0 + RELEASE_GRACE_S
        assert session.done


async def test_since_when_a_session_waits_for_its_client(autojump_clock):
    session = new_session()
    assert session.waiting_since == inf
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, SlowStore())
        await trio.testing.wait_all_tasks_blocked()
        assert session.waiting_since == trio.current_time()
        await trio.sleep(3)
        assert session.waiting_since == trio.current_time() - 3
        with trio.move_on_after(5):
            await session.feed(Silence(), unfinished())
        await trio.sleep(1)
        assert session.waiting_since == trio.current_time() - 1, "since the call has gone"
        nursery.cancel_scope.cancel()
    assert session.waiting_since == inf


async def test_while_a_call_feeds_it_a_session_waits_as_long_as_the_call_does(autojump_clock):
    session = new_session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, SlowStore())
        await trio.sleep(2)
        messages = Silence()
        nursery.start_soon(session.feed, messages, unfinished())
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(3)
        assert session.waiting_since == messages.waiting_since == trio.current_time() - 3
        nursery.cancel_scope.cancel()


class Gate:
    """Takes a piece, and asks for the next when it is let."""

    def __init__(self):
        self.opened = trio.Event()
        self.stored = []

    async def write(self, digest, reader):
        while parts := await reader.receive_parts():
            self.stored.append(b"".join(parts))
            await self.opened.wait()


async def test_a_call_whose_session_another_takes_over_is_told_so_and_not_that_it_ended_too_early(autojump_clock):
    session, store, ends = new_session(), Gate(), []

    async def feed():
        with pytest.raises(NlError, match="goes on in another call") as caught:
            await session.feed(Silence(), unfinished())
        ends.append(caught.value.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(session.feed, Silence(), Message(DATA[4:], 4))
        await trio.testing.wait_all_tasks_blocked()
        assert session.state is State.RELEASING
        store.opened.set()
    assert (ends, b"".join(store.stored)) == ([Code.ABORTED], DATA)


class Ended:
    """A stream whose client has half-closed."""

    def take_body(self, max_bytes):
        return None

    async def receive_body(self):
        return None


@pytest.mark.parametrize("size", [0, 4, 9])
async def test_a_call_that_ends_too_early_is_told_how_much_came(size):
    session = new_session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, SlowStore())
        message = Message(DATA[:size])
        message.finish = False
        with pytest.raises(InvalidRequestError, match=f"ended after {size} of 10 bytes without finish_write"):
            await session.feed(WriteMessages(Ended(), idle_s=1.0), message)
        assert (session.state, session.committed) == (State.PARKED, size)
        nursery.cancel_scope.cancel()


async def test_one_that_ends_without_finish_write_after_the_last_byte_is_as_good():
    session, store = new_session(), SlowStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        message = Message(DATA)
        message.finish = False
        await session.feed(WriteMessages(Ended(), idle_s=1.0), message)
    assert store.stored == DATA


async def test_finish_write_before_the_last_byte_ends_the_upload():
    session = new_session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, SlowStore())
        with pytest.raises(InvalidRequestError, match="finish_write came after 4 of 10 bytes"):
            await session.feed(Silence(), Message(DATA[:4]))
    assert session.done


@pytest.mark.parametrize("offset", [-1, 5])
async def test_an_offset_that_leaves_a_gap_ends_the_call_and_leaves_the_session(autojump_clock, offset):
    session, store = new_session(), SlowStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        with trio.move_on_after(1):
            await session.feed(Silence(), unfinished())
        problem = f"{offset} is negative" if offset < 0 else f"{offset} leaves a gap after the 4 bytes received"
        with pytest.raises(InvalidRequestError, match=problem):
            await session.feed(Silence(), Message(DATA[5:], offset))
        assert session.state is State.PARKED
        await session.feed(Silence(), Message(DATA[4:], 4))
    assert store.stored == DATA


@pytest.mark.parametrize("again", range(5))
async def test_bytes_that_come_a_second_time_are_taken_once(autojump_clock, again):
    session, store = new_session(), SlowStore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        with trio.move_on_after(1):
            await session.feed(Silence(), unfinished())
        rest = Message(b"", again)
        rest._parts = [DATA[6:], DATA[again:6]]  # handed out from the end
        await session.feed(Silence(), rest)
    assert store.stored == DATA


@pytest.mark.parametrize("given_up", [True, False])
async def test_a_session_that_is_given_up_without_a_reason_says_that_it_was(autojump_clock, given_up):
    session = new_session(persist_s=60.0 if given_up else 5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, SlowStore())
        await trio.sleep(1)
        if given_up:
            session.give_up()
        await trio.sleep(10)
        assert session.done
        with pytest.raises(CancelledError, match="was given up" if given_up else "was not resumed within 5 s"):
            await session.feed(Silence(), Message(DATA))


class Failing:
    """Fails while it has bytes in hand, two seconds later."""

    def __init__(self, error):
        self.error = error

    async def write(self, digest, reader):
        await reader.receive_parts()
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        raise self.error


@pytest.mark.parametrize("error", [ValueError("a bug"), ExhaustedError("full")])
async def test_what_a_store_fails_with_is_told_to_the_call_that_feeds_it_and_is_in_no_log(
    autojump_clock, caplog, error
):
    session = new_session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, Failing(error))
        with pytest.raises(type(error)):
            await session.feed(Silence(), Message(DATA))
    assert caplog.records == []


@pytest.mark.parametrize(("error", "lines"), [(ValueError("a bug"), 1), (ExhaustedError("full"), 0)])
async def test_a_bug_that_no_call_is_told_of_is_in_the_log(autojump_clock, caplog, error, lines):
    class FailingWhenAsked(Failing):
        async def write(self, digest, reader):
            try:
                await read_all(reader)
            except CancelledError:
                raise self.error from None

    session = new_session(persist_s=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, FailingWhenAsked(error))
    assert [f"a parked upload of {DIGEST} failed" == record.getMessage() for record in caplog.records] == [True] * lines


async def test_the_first_reason_to_give_a_session_up_is_the_one_that_is_told(autojump_clock):
    session = new_session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, SlowStore())
        await trio.testing.wait_all_tasks_blocked()
        for reason in (ExhaustedError("the first"), ExhaustedError("the second"), None):
            session.give_up(reason)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ExhaustedError, match="the first"):
            await session.feed(Silence(), Message(DATA))


async def test_a_call_that_waits_for_its_client_is_told_that_another_has_taken_over(autojump_clock):
    session, store, ends = new_session(), SlowStore(), []

    async def feed():
        with pytest.raises(NlError, match="goes on in another call") as caught:
            await session.feed(Silence(), unfinished())
        ends.append((caught.value.code, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, store)
        nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        assert session.state is State.FED
        again = Message(DATA[4:6], 4)
        again.finish = False
        with trio.move_on_after(5):
            began = trio.current_time()
            await session.feed(Silence(), again)
        assert ends == [(Code.ABORTED, began)], "at once, and not when the other has ended"
        await session.feed(Silence(), Message(DATA[6:], 6))
    assert store.stored == DATA


class Passing:
    """Takes everything and keeps nothing."""

    async def write(self, digest, reader):
        while await reader.receive_parts():
            pass


async def test_nothing_of_a_message_is_kept_while_the_next_one_is_waited_for():
    owner = array.array("B", DATA[:4])
    kept, session, messages = weakref.ref(owner), new_session(), Silence()
    first = Message(memoryview(owner))
    first.finish = False
    del owner
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run, Passing())
        nursery.start_soon(session.feed, messages, first)
        del first
        await trio.testing.wait_all_tasks_blocked()
        assert (session.state, session.committed, messages.waiting_since < inf) == (State.FED, 4, True)
        gc.collect()
        assert kept() is None
        nursery.cancel_scope.cancel()


async def test_what_the_store_held_is_free_when_it_has_failed_without_the_cycle_collector():
    """A thousand uploads that were ended to make room kept their buffers."""

    class Buffer:
        pass

    class FullStore:
        async def write(self, digest, reader):
            await self.fill(Buffer(), reader)

        async def fill(self, buffer, reader):
            buffers.append(weakref.ref(buffer))
            await reader.receive_parts()
            try:
                raise OSError("no room")
            except OSError as error:
                raise ExhaustedError("no room") from error

    buffers = []
    session = new_session()
    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run, FullStore())
            with pytest.raises(ExhaustedError, match="no room"):
                await session.feed(Silence(), unfinished())
        assert [buffer() for buffer in buffers] == [None]
    finally:
        gc.enable()
