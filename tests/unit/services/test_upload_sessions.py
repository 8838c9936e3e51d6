"""What a session tells the call that feeds it, when the two do not end together."""

import gc
import hashlib
import weakref

import pytest
import trio

from nl.blob.reader import read_all
from nl.errors import CancelledError, DeadlineError, ExhaustedError, NlError, UnavailableError
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
