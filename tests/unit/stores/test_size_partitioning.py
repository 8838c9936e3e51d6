"""Which of the two stores has a blob, and that both are asked at once for many."""

from nl.plugin import ActionKey, BlobSizeLimit, EvictionPolicy, LocalFiles, digest_of
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.size_partitioning import SizePartitioningOptions, SizePartitioningStore
from nl.testing import BareContext, LocalFilesConformance, StoreConformance, make_blob


def make(context, lower, upper, *, size=100):
    options = SizePartitioningOptions(size=size, lower_store=context.spec(lower), upper_store=context.spec(upper))
    return SizePartitioningStore(options, context)


def memory(context, **policy):
    return MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy(**policy)), context)


def filesystem(context, folder):
    return FilesystemStore(FilesystemOptions(content_path=str(folder / "c"), temp_path=str(folder / "t")), context)


class TestSizePartitioningConformance(StoreConformance):
    def make_store(self, context, folder):
        return make(context, memory(context), memory(context), size=1000)


class TestSizePartitioningOfFoldersConformance(LocalFilesConformance, StoreConformance):
    def make_store(self, context, folder):
        return make(context, filesystem(context, folder / "1"), filesystem(context, folder / "2"), size=20)


async def test_the_size_of_the_digest_decides():
    context = BareContext()
    lower, upper = memory(context), memory(context)
    store = make(context, lower, upper)
    small, exact, large = (digest_of(make_blob(size)) for size in (99, 100, 5000))
    assert await store.put_many([(digest, make_blob(digest.size)) for digest in (small, exact, large)]) == [None] * 3
    assert await lower.has([small, exact, large]) == [99, None, None]
    assert await upper.has([small, exact, large]) == [None, 100, 5000]
    assert await store.has([large, small, exact, large]) == [5000, 99, 100, 5000]


async def test_action_results_go_by_the_size_of_their_action_and_names_are_small():
    context = BareContext()
    lower, upper = memory(context), memory(context)
    store = make(context, lower, upper)
    small, large = ActionKey("ab" * 32, 99), ActionKey("cd" * 32, 100)
    for key in (small, large, "name"):
        await store.put(key, b"value")
    assert await lower.has([small, large, "name"]) == [5, None, 5]
    assert await upper.has([small, large, "name"]) == [None, 5, None]


async def test_what_can_be_kept_is_what_the_store_of_large_blobs_can_keep():
    context = BareContext()
    store = make(context, memory(context, max_bytes=10_000), memory(context, max_bytes=50_000))
    assert store.capability(BlobSizeLimit).max_blob_bytes() == store.parts[1].max_blob_bytes()
    assert make(context, memory(context, max_bytes=10_000), memory(context)).capability(BlobSizeLimit) is None


def test_files_are_handed_out_only_where_both_can(tmp_path):
    context = BareContext()
    store = make(context, memory(context), filesystem(context, tmp_path))
    assert store.capability(LocalFiles) is None
