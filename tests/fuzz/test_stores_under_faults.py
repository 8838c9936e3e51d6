"""Kinds that stand in front of others, over backends that fail as they like: never a wrong byte, nothing lost.

Each history has uploads, reads and questions, while backends refuse, break off in the middle, lose answers or (where
the kind promises to notice) answer with other bytes. Whatever happens, an answer is right or an NlError; what was
acknowledged is there when the backends work again.
"""

from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nl.plugin import (
    CHUNK,
    SMALL,
    ActionKey,
    CorruptBlobError,
    Digest,
    ExhaustedError,
    NlError,
    UnavailableError,
    digest_of,
)
from nl.stores.cache_metrics import CacheMetricsOptions, CacheMetricsStore
from nl.stores.compression import CompressionStore
from nl.stores.compression.options import CompressionAlgorithm, CompressionOptions, Lz4Options, ZstdOptions
from nl.stores.existence_cache import ExistenceCacheOptions, ExistenceCacheStore
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.shard import ShardOptions, ShardPart, ShardStore
from nl.stores.size_partitioning import SizePartitioningOptions, SizePartitioningStore
from nl.stores.verify import VerifyOptions, VerifyStore
from nl.testing import BareContext, Fault, FaultyStore, PartsReader, find, make_blob, read, same, split, started

BLOBS = [make_blob(size, seed=3) for size in (200, 5000, SMALL + 1, CHUNK + 9)]
DIGESTS = [digest_of(blob) for blob in BLOBS]
ACTION = ActionKey(*DIGESTS[0])
ERRORS = [UnavailableError("away"), ExhaustedError("full"), CorruptBlobError("rotten")]


def fast_slow(context, backends):
    return FastSlowStore(FastSlowOptions(fast=context.spec(backends[0]), slow=context.spec(backends[1])), context)


def shard(context, backends):
    return ShardStore(ShardOptions(stores=tuple(ShardPart(store=context.spec(each)) for each in backends)), context)


def by_size(context, backends):
    lower, upper = map(context.spec, backends)
    return SizePartitioningStore(SizePartitioningOptions(size=5000, lower_store=lower, upper_store=upper), context)


def verify(context, backends):
    options = VerifyOptions(backend=context.spec(backends[0]), verify_size=True, verify_hash=True)
    return VerifyStore(options, context)


def existence(context, backends):
    return ExistenceCacheStore(ExistenceCacheOptions(backend=context.spec(backends[0])), context)


def metrics(context, backends):
    return CacheMetricsStore(CacheMetricsOptions(cache_type="cas", backend=context.spec(backends[0])), context)


def compressed(algorithm):
    def make(context, backends):
        options = CompressionOptions(backend=context.spec(backends[0]), compression_algorithm=algorithm)
        return CompressionStore(options, context)

    return make


KINDS = {
    "fast_slow": fast_slow, "shard": shard, "size_partitioning": by_size, "verify": verify,
    "existence_cache": existence, "cache_metrics": metrics,
    "lz4": compressed(CompressionAlgorithm(lz4=Lz4Options())),
    "zstd": compressed(CompressionAlgorithm(zstd=ZstdOptions())),
}  # fmt: skip
NOTICES_LIES = {"fast_slow", "lz4", "zstd"}
"""Kinds that check what they read: of `fast_slow` what it fills its fast store with."""

faults = st.builds(
    Fault, error=st.sampled_from(ERRORS), after_bytes=st.sampled_from([0, 0, 1, 100, 4999, SMALL]),
    delay_s=st.sampled_from([0, 0, 0.001]), acknowledged=st.booleans(),
)
lies = st.just(Fault(lies=True))
operations = st.sampled_from(["has", "touch", "get", "open", "put", "write"])
plans = st.tuples(st.just("plan"), st.integers(0, 1), operations, st.lists(st.none() | faults, max_size=3))
blobs = st.integers(0, len(BLOBS) - 1)
steps = st.one_of(
    plans, plans,
    st.tuples(st.sampled_from(["put", "write", "read", "get", "has", "get many", "put many"]), blobs),
    st.tuples(st.sampled_from(["put action", "get action"]), st.integers(0, 5)),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(history=st.lists(steps, min_size=5, max_size=40))
async def test_answers_are_right_or_errors_and_what_is_acknowledged_stays(kind, history):
    async with Run(kind) as run:
        for step in history:
            await run.step(*step)
        await run.compare()


@pytest.mark.parametrize("kind", sorted(NOTICES_LIES))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(lied=st.lists(st.tuples(st.sampled_from(["get", "open"]), st.booleans()), max_size=4),
       history=st.lists(st.tuples(st.sampled_from(["read", "get", "get many"]), blobs), min_size=3, max_size=20))
async def test_other_bytes_from_a_backend_never_get_out(kind, lied, history):
    async with Run(kind) as run:
        backend = run.backends[-1]
        for digest, blob in zip(DIGESTS, BLOBS, strict=True):
            await run.store.put(digest, blob)
            if kind == "fast_slow":
                await run.backends[0].backend.delete([digest])
        for operation, does in lied:
            backend.plan(operation, Fault(lies=True) if does else None)
        for step in history:
            await run.step(*step)


class Run:
    """A store over faulty ones, and what is known of it."""

    def __init__(self, kind):
        self.context = BareContext()
        self.backends = [FaultyStore(MemoryStore(MemoryOptions(), self.context)) for _ in range(2)]
        self.store = KINDS[kind](self.context, self.backends)
        self.acknowledged = set()
        self.values = {None}
        """What the action's result may be: the last one that was acknowledged, or one whose upload failed since."""
        self.stack = AsyncExitStack()

    async def __aenter__(self):
        await self.stack.enter_async_context(started(self.store, self.context))
        return self

    async def __aexit__(self, *args):
        await self.stack.aclose()

    async def step(self, what, *arguments):
        try:
            await getattr(self, what.replace(" ", "_"))(*arguments)
        except NlError:
            pass

    async def plan(self, number, operation, planned):
        self.backends[number].plan(operation, *planned)

    async def put(self, number):
        await self.store.put(DIGESTS[number], BLOBS[number])
        self.acknowledged.add(number)

    async def write(self, number):
        await self.store.write(DIGESTS[number], PartsReader(split(BLOBS[number], 7777)))
        self.acknowledged.add(number)

    async def put_many(self, number):
        numbers = sorted({number, 0})
        failed = await self.store.put_many([(DIGESTS[each], BLOBS[each]) for each in numbers])
        self.acknowledged.update(each for each, error in zip(numbers, failed, strict=True) if error is None)

    async def get(self, number):
        assert same(await self.store.get(DIGESTS[number]), BLOBS[number])

    async def read(self, number):
        assert same(await read(self.store, DIGESTS[number]), BLOBS[number])
        assert same(await read(self.store, DIGESTS[number], offset=100, length=50), BLOBS[number][100:150])

    async def get_many(self, number):
        for digest, got in zip(DIGESTS[number:], await self.store.get_many(DIGESTS[number:]), strict=True):
            if not isinstance(got, NlError):
                assert same(got, BLOBS[DIGESTS.index(digest)])

    async def has(self, number):
        sizes = await self.store.has(DIGESTS)
        assert all(size in (None, digest.size) for size, digest in zip(sizes, DIGESTS, strict=True))
        assert all(sizes[each] is not None for each in self.acknowledged)

    async def put_action(self, version):
        value = make_blob(100, seed=version)
        try:
            await self.store.put(ACTION, value)
        except NlError:
            self.values.add(value)
            raise
        self.values = {value}

    async def get_action(self, _):
        value = bytes(await self.store.get(ACTION))
        assert value in self.values

    async def compare(self):
        """With backends that work again."""
        for backend in self.backends:
            backend.heal()
        for number in self.acknowledged:
            assert same(await find(self.store, DIGESTS[number]), BLOBS[number])
        assert await find(self.store, ACTION) in self.values
        for number, digest in enumerate(DIGESTS):
            assert isinstance(digest, Digest)
            await self.put(number)
        await self.put_action(99)
        for digest, blob in zip(DIGESTS, BLOBS, strict=True):
            assert same(await find(self.store, digest), blob)
        assert await find(self.store, ACTION) == make_blob(100, seed=99)
