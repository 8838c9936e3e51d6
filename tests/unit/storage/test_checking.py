"""What `nl stores check` finds out, of stores that work and of those that do not, each in its way."""

import pytest
import trio

from nl.config.types import Options, StoreSpec
from nl.errors import ConfigError, PermissionDeniedError, UnavailableError
from nl.plugin import digest_of
from nl.storage import checking
from nl.storage.builder import BuiltStore
from nl.storage.checking import check_store
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.noop import NoopOptions, NoopStore
from nl.testing import BareContext


class Backend(MemoryStore):
    """A store that works; the others differ from it in one thing."""

    def __init__(self):
        super().__init__(MemoryOptions(), BareContext("B"))
        self.written = []

    async def put(self, key, data):
        self.written.append(key)
        await super().put(key, data)


class WithoutAnswer(Backend):
    async def has(self, keys):
        await trio.sleep_forever()


class WithoutStart(Backend):
    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        await trio.sleep_forever()


class WithoutBucket(Backend):
    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        raise ConfigError("bucket", "there is none of the name x; expected one")


class Away(Backend):
    async def check(self):
        raise UnavailableError("connection refused by 10.0.0.1")


class ReadOnly(Backend):
    async def put(self, key, data):
        raise PermissionDeniedError("the credentials may not write")


class Forgetful(Backend):
    async def put(self, key, data):
        pass


class Lying(Backend):
    async def get(self, key):
        return b"other bytes"


async def check(store, **kwargs):
    return await check_store(BuiltStore("CAS.slow", "kind", store, StoreSpec("kind", Options(), "stores[0]")), **kwargs)


async def test_a_store_that_works_is_written_to_read_and_left_as_it_was():
    store = Backend()
    found = await check(store)
    assert found.works
    assert all(word in found.text for word in ("asked in", "written in", "read in", " ms"))
    assert len(store.written) == 1
    assert await store.has(store.written) == [None]


async def test_asking_only_writes_nothing():
    store = Backend()
    assert (await check(store, writes=False)).works
    assert not store.written


@pytest.mark.parametrize(
    ("store", "text"),
    [
        (WithoutBucket, "stores[0].kind.bucket: there is none of the name x; expected one"),
        (Away, "connection refused by 10.0.0.1"),
        (WithoutAnswer, "no answer within 10 s"),
        (WithoutStart, "it did not start within 10 s"),
        (Forgetful, "gone at once"),
        (Lying, "other bytes than were written"),
    ],
)
async def test_what_is_wrong_is_one_line(store, text, autojump_clock):
    found = await check(store())
    assert not found.works
    assert text in found.text and "\n" not in found.text


async def test_a_store_that_may_only_be_read_works_and_says_so():
    found = await check(ReadOnly())
    assert found.works
    assert "read-only: the credentials may not write" in found.text


async def test_what_discards_everything_is_not_written_to():
    assert (await check(NoopStore(NoopOptions(), BareContext("N")))).works


async def test_the_probe_is_taken_out_even_if_reading_it_failed():
    store = Lying()
    await check(store)
    assert await store.has(store.written) == [None]
    assert await store.has([digest_of(b"")]) == [0]
    assert checking.TIMEOUT_S == 10
