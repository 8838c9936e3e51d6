import pytest

from nl.blob.hashing import digest_of
from nl.plugin import Discards, LocalFiles
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.noop import NoopOptions, NoopStore
from nl.stores.ref_store import RefOptions, RefStore
from nl.testing import BareContext, StoreConformance


class TestRefStoreConformance(StoreConformance):
    def make_store(self, context, folder):
        context.named["MAIN"] = MemoryStore(MemoryOptions(), context)
        return RefStore(RefOptions(name="MAIN"), context)


async def test_the_store_may_be_defined_after_the_reference():
    context = BareContext()
    store = RefStore(RefOptions(name="LATER"), context)
    context.named["LATER"] = MemoryStore(MemoryOptions(), context)
    await store.put("key", b"value")
    assert await context.named["LATER"].get("key") == b"value"


@pytest.mark.parametrize(("kind", "options"), [(NoopStore, NoopOptions()), (MemoryStore, MemoryOptions())])
async def test_its_capabilities_are_those_of_the_store_it_names(kind, options):
    target = kind(options, BareContext())
    store = RefStore(RefOptions(name="X"), BareContext(named={"X": target}))
    for wanted in (Discards, LocalFiles):
        assert store.capability(wanted) is target.capability(wanted)


async def test_both_names_see_one_content():
    target = MemoryStore(MemoryOptions(), BareContext())
    store = RefStore(RefOptions(name="X"), BareContext(named={"X": target}))
    await target.put(digest_of(b"abc"), b"abc")
    assert await store.has([digest_of(b"abc")]) == [3]


def test_it_says_which_store_it_means():
    store = RefStore(RefOptions(name="X"), BareContext())
    assert store.statistics() == {"name": "X"}
