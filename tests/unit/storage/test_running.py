"""The life of stores: in which order they start and end, and what becomes of one that fails."""

import logging
from types import SimpleNamespace

import pytest
import trio

from nl.config.types import Options, StoreSpec
from nl.errors import ConfigError, PluginError, UnavailableError
from nl.plugin import BytesReader, Deletes, EncodedBlobs, LocalFiles, Opened, Scans, digest_of
from nl.storage.builder import BuiltStore, StoreGraph
from nl.storage.running import running_stores
from nl.storage.wrapper import StoreWrapper
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext

BLOB = digest_of(b"blob")


class Living(MemoryStore):
    """Writes down its life; `fails` is when and with what it ends."""

    def __init__(self, name, log, *, before=None, after=None, at_the_end=None):
        super().__init__(MemoryOptions(), BareContext(name))
        self.name, self.log = name, log
        self.before, self.after, self.at_the_end = before, after, at_the_end
        self.fail_now = trio.Event()

    async def touch(self, keys):
        """Its own, that asks nobody."""

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        if self.before is not None:
            raise self.before
        self.log.append(f"{self.name} starts")
        task_status.started()
        try:
            if self.after is not None:
                await self.fail_now.wait()
                raise self.after
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.log.append(f"{self.name} ends")
            if self.at_the_end is not None:
                raise self.at_the_end


def graph(*stores):
    return StoreGraph(
        [
            BuiltStore(store.name, "living", store, StoreSpec("living", Options(), f"stores[{number}]"))
            for number, store in enumerate(stores)
        ]
    )


async def test_children_start_first_and_end_last():
    log = []
    async with running_stores(graph(*(Living(name, log) for name in ("A.slow", "A.fast", "A")))):
        log.append("serving")
    assert log == [
        "A.slow starts", "A.fast starts", "A starts", "serving", "A ends", "A.fast ends", "A.slow ends",
    ]  # fmt: skip


async def test_a_store_that_fails_is_one_line_and_unavailable_and_the_others_go_on(caplog):
    log = []
    backend, failing = Living("B", log), Living("A", log, after=ValueError("no such bucket\nsecond line"))
    async with running_stores(graph(backend, failing)):
        await failing.put(BLOB, b"blob")
        failing.fail_now.set()
        await trio.testing.wait_all_tasks_blocked()
        await backend.put(BLOB, b"blob")
        for ask in (
            lambda: failing.has([BLOB]), lambda: failing.get(BLOB), lambda: failing.put(BLOB, b"blob"),
            lambda: failing.get_many([BLOB]), lambda: failing.put_many([(BLOB, b"blob")]), failing.check,
            lambda: failing.touch([BLOB]), lambda: failing.write(BLOB, None), failing.open(BLOB).__aenter__,
        ):  # fmt: skip
            with pytest.raises(UnavailableError, match=r"store A has failed \(ValueError: no such bucket\)"):
                await ask()
        assert await backend.get(BLOB) == b"blob"
    [line] = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert line.getMessage().startswith("stores[1].living: the store A has failed")
    assert "\n" not in line.getMessage() and line.exc_info is None


class Offering(Living):
    """With a capability that is an object of its own, as callers keep it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.offered = Offer()

    def capability(self, kind):
        return self.offered if kind is Deletes else None


class Offer:
    async def delete(self, keys):
        pass


async def test_capabilities_that_were_handed_out_fail_with_their_store():
    failing = Offering("A", [], after=OSError("gone"))
    kept = failing.capability(Deletes)
    async with running_stores(graph(failing)):
        await kept.delete([BLOB])
        failing.fail_now.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(UnavailableError, match="store A has failed"):
            await kept.delete([BLOB])


async def test_a_store_that_fails_in_a_nursery_of_its_own_is_told_by_what_really_failed(caplog):
    failing = Living("A", [], after=ExceptionGroup("tasks", [ExceptionGroup("more", [KeyError("row")])]))
    async with running_stores(graph(failing)):
        failing.fail_now.set()
        await trio.testing.wait_all_tasks_blocked()
    assert "KeyError: 'row'" in caplog.text


async def test_options_that_only_starting_shows_to_be_wrong_get_their_place():
    with pytest.raises(ConfigError) as caught:
        async with running_stores(graph(Living("A", [], before=ConfigError("bucket", "there is none")))):
            pytest.fail("it is not to be started")
    assert str(caught.value) == "stores[0].living.bucket: there is none"


async def test_whatever_else_keeps_a_store_from_starting_is_the_kinds_failure_and_ends_those_that_run():
    log = []
    with pytest.raises(PluginError, match=r"stores\[1\].living: the store kind living cannot start: OSError: boom"):
        async with running_stores(graph(Living("B", log), Living("A", log, before=OSError("boom")))):
            pytest.fail("it is not to be started")
    assert log == ["B starts", "B ends"]


async def test_a_store_that_ends_before_it_is_ready_is_a_failure():
    class Mute(Living):
        async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
            return

    with pytest.raises(PluginError, match="ended before it was ready"):
        async with running_stores(graph(Mute("A", []))):
            pytest.fail("it is not to be started")


async def test_a_failure_while_it_ends_is_said_and_the_others_end_well(caplog):
    log = []
    async with running_stores(graph(Living("B", log), Living("A", log, at_the_end=OSError("flush failed")))):
        pass
    assert log[-2:] == ["A ends", "B ends"]
    assert "flush failed" in caplog.text


async def test_being_cancelled_ends_all():
    log = []
    with trio.CancelScope() as scope:
        async with running_stores(graph(Living("B", log), Living("A", log))):
            scope.cancel()
            await trio.sleep_forever()
    assert sorted(log) == ["A ends", "A starts", "B ends", "B starts"]


async def nothing(*args, **kwargs):
    return None


OFFERS = {
    LocalFiles: ("link_files", "adopt_file"), Deletes: ("delete",), Scans: ("scan",),
    EncodedBlobs: ("write_encoded", "open_encoded"),
}  # fmt: skip


class Offers(Living):
    """Has an object for each capability; one way of `open_encoded` is enough for all."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.offers = {kind: SimpleNamespace(**dict.fromkeys(ways, nothing)) for kind, ways in OFFERS.items()}
        self.offers[EncodedBlobs].open_encoded = lambda *args, **kwargs: Opened(lambda: BytesReader(b"packed"))

    def capability(self, kind):
        return self.offers.get(kind)


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind, ways in OFFERS.items() for way in ways])
async def test_whatever_a_failed_store_offered_is_unavailable(kind, way):
    failing = Offers("A", [], after=OSError("gone"))
    kept = failing.capability(kind)

    async def use():
        using = getattr(kept, way)([BLOB], "its arguments")
        if way == "open_encoded":
            async with using:
                pass
        else:
            await using

    async with running_stores(graph(failing)):
        await failing.put(BLOB, b"blob")
        await use()
        failing.fail_now.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(UnavailableError, match=r"the store A has failed \(OSError: gone\); the server has to be"):
            await use()


class Halt(BaseException):
    """Nobody's to handle."""


async def test_a_failure_of_one_of_its_tasks_while_a_store_ends_is_said_and_its_cancellation_goes_on(caplog):
    class Flushing(Living):
        async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.flush_at_the_end)
                await trio.testing.wait_all_tasks_blocked()
                task_status.started()
                await trio.sleep_forever()

        async def flush_at_the_end(self):
            try:
                await trio.sleep_forever()
            finally:
                raise self.at_the_end

    log = []
    failing = Flushing("A", log, at_the_end=OSError("flush failed"))
    with trio.CancelScope() as scope:
        async with running_stores(graph(Living("B", log), failing)):
            log.append("serving")
    assert not scope.cancelled_caught and log == ["B starts", "serving", "B ends"]
    [record] = caplog.records
    assert record.getMessage() == "stores[1].living: OSError: flush failed while the store was ending"
    with pytest.RaisesGroup(Halt, flatten_subgroups=True):
        async with running_stores(graph(Flushing("A", log, at_the_end=Halt()))):
            pass
    assert caplog.records == [record], "what is nobody's to handle is not said to be a failure of the store"


async def test_what_is_wrong_with_an_option_as_a_whole_has_the_place_of_the_store():
    for error, text in (
        (ConfigError("", "makes no sense"), "stores[0].living: makes no sense"),
        (PluginError("stores[0].living", "has no library"), "stores[0].living: has no library"),
    ):
        with pytest.raises(ConfigError) as caught:
            async with running_stores(graph(Living("A", [], before=error))):
                pytest.fail("it is not to be started")
        assert str(caught.value) == text
        assert type(caught.value) is type(error)


async def test_what_is_found_wrong_with_the_options_once_a_store_runs_ends_that_store_only(caplog):
    failing = Living("A", [], after=ConfigError("token_file", "is empty now; expected a token"))
    async with running_stores(graph(failing)):
        failing.fail_now.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(UnavailableError, match="store A has failed"):
            await failing.get(BLOB)
    [record] = caplog.records
    assert "stores[0].living: the store A has failed" in record.getMessage()
    assert "ConfigError: token_file: is empty now; expected a token" in record.getMessage()


async def test_what_a_failed_store_passed_on_of_its_backend_still_works_for_others():
    class Wrapping(StoreWrapper):
        name = "A"

        def __init__(self, backend):
            super().__init__(backend)
            self.fail_now = trio.Event()

        def capability(self, kind):
            return own if kind is Scans else self.backend.capability(kind)

        async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
            task_status.started()
            await self.fail_now.wait()
            raise OSError("gone")

    own = SimpleNamespace(scan=nothing)

    backend = Offers("B", [])
    failing = Wrapping(backend)
    async with running_stores(graph(backend, failing)):
        failing.fail_now.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(UnavailableError):
            await failing.get(BLOB)
        with pytest.raises(UnavailableError):
            await own.scan()
        for kind in (LocalFiles, Deletes, Scans):
            await getattr(backend.capability(kind), OFFERS[kind][0])([])
