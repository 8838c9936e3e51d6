"""Which shard has a blob, that shares follow weights, and that the shards together act as one store."""

import hashlib
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nl.config.loader import load_text
from nl.errors import ConfigError
from nl.plugin import ActionKey, BlobSizeLimit, Deletes, Digest, EvictionPolicy, Removals, digest_of
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.shard import ShardOptions, ShardPart, ShardStore
from nl.testing import BareContext, StoreConformance

digests = st.builds(Digest, st.binary(min_size=32, max_size=32).map(bytes.hex), st.integers(0, 2**63 - 1))


def make(context, *weights, policy=None):
    stores = [MemoryStore(MemoryOptions(eviction_policy=policy or EvictionPolicy()), context) for _ in weights]
    parts = [ShardPart(store=context.spec(store), weight=weight) for store, weight in zip(stores, weights, strict=True)]
    return ShardStore(ShardOptions(stores=tuple(parts)), context)


class TestShardConformance(StoreConformance):
    def make_store(self, context, folder):
        return make(context, 1, 2, None)


class TestShardOfOneConformance(StoreConformance):
    def make_store(self, context, folder):
        return make(context, 7)


@given(digests)
def test_a_digest_lies_where_its_words_say(digest):
    """The rule in the reference: all words of hash and size, as little-endian numbers of 32 bits, XORed."""
    raw = bytes.fromhex(digest.hash) + struct.pack("<Q", digest.size)
    point = 0
    for at in range(0, 40, 4):
        point ^= int.from_bytes(raw[at : at + 4], "little")
    store = make(BareContext(), 1, 2, 1)
    ends = [0xFFFFFFFF // 4, 0xFFFFFFFF // 4 + 0xFFFFFFFF * 2 // 4, 0xFFFFFFFF]
    assert store.part_of(digest) == next(number for number, end in enumerate(ends) if point <= end)
    assert store.part_of(ActionKey(*digest)) == store.part_of(digest)


def test_shares_follow_weights_and_a_weight_of_0_gets_nothing():
    store = make(BareContext(), 3, 0, 1)
    counts = [0, 0, 0]
    for number in range(4000):
        counts[store.part_of(Digest(hashlib.sha256(b"%d" % number).hexdigest(), number))] += 1
    assert counts[1] == 0
    assert 2850 < counts[0] < 3150 and sum(counts) == 4000


async def test_many_go_to_their_shards_and_come_back_in_order():
    store = make(BareContext(), 1, 1, 1)
    blobs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(100)]
    assert await store.put_many(blobs) == [None] * 100
    keys = [key for key, _ in blobs]
    held = [await part.has(keys) for part in store.parts]
    assert all(sizes.count(None) < 90 for sizes in held)
    assert sum(100 - sizes.count(None) for sizes in held) == 100
    assert await store.get_many(keys) == [data for _, data in blobs]
    assert await store.has(keys) == [len(data) for _, data in blobs]


async def test_news_of_removals_come_from_all_shards():
    store = make(BareContext(), 1, 1)
    feed = store.capability(Removals).watch_removals()
    blobs = [(digest_of(b"%d" % number), b"%d" % number) for number in range(20)]
    await store.put_many(blobs)
    assert feed.take() == ()
    await store.capability(Deletes).delete([key for key, _ in blobs])
    assert set(feed.take()) == {key for key, _ in blobs}
    store.parts[1]._removals.lost_track()
    assert feed.take() is None
    assert feed.take() == ()


def test_the_smallest_shard_says_how_large_a_blob_may_be():
    assert make(BareContext(), 1, 1).capability(BlobSizeLimit) is None
    limited = make(BareContext(), 1, 1, policy=EvictionPolicy(max_bytes=10_000))
    assert limited.capability(BlobSizeLimit).max_blob_bytes() == limited.parts[0].max_blob_bytes()


@pytest.mark.parametrize(
    ("stores", "problem"),
    [("[]", "the list is empty"), ("[{ store: { memory: {} }, weight: 0 }]", "all weights are 0")],
)
def test_shards_without_any_share_are_refused(stores, problem):
    with pytest.raises(ConfigError, match=rf"stores\[0\].shard.stores: {problem}"):
        load_text(f'{{ stores: [{{ name: "A", shard: {{ stores: {stores} }} }}], servers: [] }}')


@given(st.text())
@example("\ud800")
def test_a_name_lies_where_its_hash_says(name):
    point = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4], "little")
    store = make(BareContext(), 1, 3)
    assert store.part_of(name) == (0 if point <= 0xFFFFFFFF // 4 else 1)


def test_the_last_shard_goes_to_the_end_of_the_range_and_the_others_to_theirs_included():
    store = make(BareContext(), 1, 1, 1)
    third = 0xFFFFFFFF // 3
    for point, part in ((0, 0), (third, 0), (third + 1, 1), (2 * third, 1), (2 * third + 1, 2), (0xFFFFFFFF, 2)):
        assert store.part_of(Digest("0" * 64, point)) == part
        assert store.part_of(Digest("0" * 64, point << 32)) == part


def test_a_shard_without_a_weight_has_that_of_one():
    for weights in ((None, 1), (None, None), (5, 5)):
        assert make(BareContext(), *weights)._ends == [0x7FFFFFFF, 0xFFFFFFFF]
    assert ShardPart(store=BareContext().spec(MemoryStore(MemoryOptions(), BareContext()))).weight == 1


def test_shards_without_weights_have_shares():
    spec = BareContext().spec(MemoryStore(MemoryOptions(), BareContext()))
    ShardOptions(stores=(ShardPart(store=spec, weight=None),)).check()
