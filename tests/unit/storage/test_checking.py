"""What `nl stores check` finds out, of stores that work and of those that do not, each in its way."""

import pytest
import trio

from nl.config.loader import load_value
from nl.config.types import Options, StoreSpec
from nl.errors import ConfigError, InvalidRequestError, PermissionDeniedError, UnavailableError
from nl.plugin import digest_of
from nl.storage import checking
from nl.storage.builder import BuiltStore, build_stores
from nl.storage.checking import check_store, stores_to_check
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


async def test_what_takes_no_blobs_is_asked_for_its_health_and_works():
    class Results(Backend):
        async def has(self, keys):
            raise InvalidRequestError("only action results")

    store = Results()
    found = await check(store)
    assert found.works and found.text == "takes no blobs: only asked for its health"
    assert not store.written


async def test_what_worked_before_something_failed_is_said_too():
    found = await check(Forgetful())
    assert found.text.startswith("asked in ") and ", written in " in found.text
    assert found.text.endswith(" ms; a blob was written and is gone at once: is there room for any?")
    assert (found.name, found.kind) == ("CAS.slow", "kind")
    assert (await check(Away())).text == "connection refused by 10.0.0.1"


async def test_each_question_has_its_own_time_and_the_start_too(autojump_clock):
    class Slow(Backend):
        async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
            await trio.sleep(9)
            task_status.started()
            await trio.sleep_forever()

        async def check(self):
            await trio.sleep(9)

        async def has(self, keys):
            await trio.sleep(9)
            return [None]

        async def put(self, key, data):
            await trio.sleep(9)
            await super().put(key, data)

        async def get(self, key):
            await trio.sleep(9)
            return await super().get(key)

    began = trio.current_time()
    found = await check(Slow())
    assert found.works, found.text
    assert trio.current_time() - began == pytest.approx(45)
    assert "asked in 9000.0 ms, written in 9000.0 ms, read in 9000.0 ms" in found.text


async def test_a_probe_that_cannot_be_taken_out_keeps_nobody_waiting_for_ever(autojump_clock):
    class Stuck(Backend):
        async def delete(self, keys):
            await trio.sleep_forever()

    began = trio.current_time()
    await check(Stuck())
    assert trio.current_time() - began == pytest.approx(10)


def test_those_that_stand_on_others_are_not_asked_themselves():
    config = load_value({"stores": [
        {"name": "A", "verify": {"backend": {"memory": {}}}}, {"name": "B", "ref_store": {"name": "A"}},
        {"name": "C", "noop": {}},
    ], "workers": [{"local": {"cas_fast_slow_store": "A", "work_directory": "/w"}}]}, env={})  # fmt: skip
    assert [built.name for built in stores_to_check(build_stores(config.stores))] == ["A.backend", "C"]


async def test_the_probe_is_taken_out_also_if_whoever_asked_has_given_up():
    class Stuck(Backend):
        def __init__(self):
            super().__init__()
            self.is_read = trio.Event()

        async def get(self, key):
            self.is_read.set()
            await trio.sleep_forever()

        async def delete(self, keys):
            await trio.lowlevel.checkpoint()
            await super().delete(keys)

    store = Stuck()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(check, store)
        await store.is_read.wait()
        assert await store.has(store.written) != [None]
        nursery.cancel_scope.cancel()
    assert await store.has(store.written) == [None]
