"""Of several values for one key in a batch the last is kept, whatever stands in front of a backend of which one answer
is late: batches go side by side, and a value must not overtake another of its own key.
"""

from __future__ import annotations

import pytest

from nl.blob.hashing import digest_of
from nl.errors import ExhaustedError
from nl.plugin import ActionKey, Store
from nl.stores.cache_metrics import CacheMetricsOptions, CacheMetricsStore
from nl.stores.compression import CompressionOptions, CompressionStore
from nl.stores.compression.options import CompressionAlgorithm, Lz4Options
from nl.stores.dedup import DedupOptions, DedupStore
from nl.stores.existence_cache import ExistenceCacheOptions, ExistenceCacheStore
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.ref_store import RefOptions, RefStore
from nl.stores.shard import ShardOptions, ShardPart, ShardStore
from nl.stores.size_partitioning import SizePartitioningOptions, SizePartitioningStore
from nl.stores.verify import VerifyOptions, VerifyStore
from nl.testing import BareContext, started
from nl.testing.faults import Fault, FaultyStore

KEY, OTHER = (ActionKey(*digest_of(name)) for name in (b"one", b"other"))


def late() -> FaultyStore:
    """A backend that takes its time over the first value that it is given."""
    store = FaultyStore(MemoryStore(MemoryOptions(), BareContext()))
    store.plan("put", Fault(delay_s=60))
    return store


def memory() -> Store:
    return MemoryStore(MemoryOptions(), BareContext())


def ref(context: BareContext) -> Store:
    context.named["MAIN"] = late()
    return RefStore(RefOptions(name="MAIN"), context)


MAKE = {
    "no wrapper": lambda context: late(),
    "ref_store": ref,
    "verify": lambda context: VerifyStore(VerifyOptions(backend=context.spec(late())), context),
    "cache_metrics": lambda context: CacheMetricsStore(
        CacheMetricsOptions(cache_type="cas", backend=context.spec(late())), context),
    "existence_cache": lambda context: ExistenceCacheStore(
        ExistenceCacheOptions(backend=context.spec(late())), context),
    "compression": lambda context: CompressionStore(CompressionOptions(
        compression_algorithm=CompressionAlgorithm(lz4=Lz4Options()), backend=context.spec(late())), context),
    "dedup, lists": lambda context: DedupStore(
        DedupOptions(index_store=context.spec(late()), content_store=context.spec(memory())), context),
    "dedup, chunks": lambda context: DedupStore(
        DedupOptions(index_store=context.spec(memory()), content_store=context.spec(late())), context),
    "fast_slow, slow": lambda context: FastSlowStore(
        FastSlowOptions(fast=context.spec(memory()), slow=context.spec(late())), context),
    "fast_slow, fast": lambda context: FastSlowStore(
        FastSlowOptions(fast=context.spec(late()), slow=context.spec(memory())), context),
    "shard": lambda context: ShardStore(ShardOptions(stores=(ShardPart(store=context.spec(late())),)), context),
    "size_partitioning": lambda context: SizePartitioningStore(SizePartitioningOptions(
        size=1000, lower_store=context.spec(late()), upper_store=context.spec(late())), context),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKE)
async def test_the_last_of_several_values_is_kept_whichever_comes_to_an_end_first(autojump_clock, kind):
    context = BareContext()
    async with started(MAKE[kind](context), context) as store:
        blobs = [(KEY, b"first"), (OTHER, b"other"), (KEY, b"second"), (KEY, b"last")]
        assert await store.put_many(blobs) == [None] * 4
        assert [bytes(each) for each in await store.get_many([KEY, OTHER])] == [b"last", b"other"]


async def test_each_of_several_values_has_its_own_fate(autojump_clock):
    store = late()
    store.plan("put", None, Fault(ExhaustedError("no room")))
    first, other, last = await store.put_many([(KEY, b"first"), (OTHER, b"other"), (KEY, b"last")])
    assert (first, other, str(last)) == (None, None, "no room")
    assert await store.get(KEY) == b"first", "as after one put behind the other"
