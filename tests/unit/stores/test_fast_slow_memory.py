"""What the two sides of an upload hold, and that it is free when it has ended, without the cycle collector."""

import gc
import weakref

import pytest
import trio

from nl.errors import ExhaustedError, UnavailableError
from nl.plugin import CHUNK, BytesReader, CoderMemory, digest_of
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, PartsReader, started

DATA = b"some bytes" * 1000


class Coder:
    """Stands for what takes memory."""


class Coding(MemoryStore):
    """Has a coder while it writes; fails with `error`, halfway."""

    def __init__(self, held, error=None):
        super().__init__(MemoryOptions(), BareContext())
        self.held = held
        self.error = error

    async def write(self, key, reader):
        coder = Coder()
        self.held.append(weakref.ref(coder))
        if self.error is not None:
            await reader.receive_parts()
            raise self.error("halfway")
        await super().write(key, reader)


class Source(PartsReader):
    """A reader that has a coder, too."""

    def __init__(self, held, parts):
        super().__init__(parts)
        self.coder = Coder()
        held.append(weakref.ref(self.coder))


class Broken(Source):
    """Ends in the middle."""

    async def receive_parts(self, max_bytes=CHUNK):
        if self.calls:
            raise UnavailableError("gone")
        return await super().receive_parts(max_bytes)


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("fails", ["nothing", "the source", "the slow store", "the fast store", "with a bug"])
async def test_what_was_held_is_free(fails, no_collector):
    held, context = [], BareContext()
    slow = Coding(held, {"the slow store": ExhaustedError, "with a bug": ZeroDivisionError}.get(fails))
    fast = Coding(held, ExhaustedError if fails == "the fast store" else None)
    store = FastSlowStore(FastSlowOptions(fast=context.spec(fast), slow=context.spec(slow)), context)

    async def upload():
        kind = Broken if fails == "the source" else Source
        try:
            await store.write(digest_of(2 * DATA), kind(held, [DATA, DATA]))
        except (ExhaustedError, UnavailableError, ZeroDivisionError) as error:
            return type(error)
        return None

    async with started(store, context):
        expected = {
            "the source": UnavailableError, "the slow store": ExhaustedError, "with a bug": ZeroDivisionError,
        }.get(fails)  # fmt: skip
        assert await upload() is expected
        await trio.sleep(0)
        assert len(held) >= 2 and [each() for each in held] == [None] * len(held)


async def test_what_both_sides_of_an_upload_hold_of_the_coders_memory_is_held_by_one_request():
    memory = CoderMemory(100)
    fast_holds = trio.Event()

    class Holding(MemoryStore):
        first = False

        async def write(self, key, reader):
            if not self.first:
                await fast_holds.wait()
            async with memory.reading(100):
                fast_holds.set()
                await super().write(key, reader)

    context = BareContext("CAS", coder_memory=memory)
    fast, slow = Holding(MemoryOptions(), context), Holding(MemoryOptions(), context)
    fast.first = True
    store = FastSlowStore(FastSlowOptions(fast=context.spec(fast), slow=context.spec(slow)), context)
    digest = digest_of(b"blob")
    async with started(store, context):
        with trio.fail_after(60):
            await store.write(digest, BytesReader(b"blob"))
    assert await fast.has([digest]) == await slow.has([digest]) == [4]
