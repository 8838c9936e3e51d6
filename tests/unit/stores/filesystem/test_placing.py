"""Files that get their places: together or alone, with room made for them, and who is told where there is none."""

import shutil

from nl.blob.hashing import digest_of
from nl.plugin import Link, LocalFiles, UnavailableError
from nl.testing import make_blob

from .conftest import put
from .test_disk_space import BLOCK, fill, left


async def test_what_finds_no_room_among_smaller_ones_is_stored_too_and_room_is_made_for_it(place):
    """Where the first of a batch does not fit and the second would."""
    large = make_blob(3 * BLOCK)
    async with place.running(policy={"max_bytes": 4 * BLOCK}) as store:
        await fill(store, 3)
        blobs = [(digest_of(large), large), (digest_of(b"small"), b"small")]
        assert await store.put_many(blobs) == [None, None]
        assert await store.has([digest for digest, _ in blobs]) == [3 * BLOCK, 5]
        assert await store.get(digest_of(large)) == large
        assert store.statistics()["written_blobs"] == 5 and place.used() == 4 * BLOCK


async def test_a_batch_in_a_folder_that_was_deleted_fails_blob_by_blob(place):
    blobs = [(digest_of(blob), blob) for blob in (b"one", b"two")]
    async with place.running() as store:
        shutil.rmtree(place.content)
        failed = await store.put_many(blobs)
        assert [type(error) for error in failed] == [UnavailableError] * 2
        assert place.temp_files() == []


async def test_eviction_goes_as_far_below_the_bound_as_it_is_to_also_where_that_takes_several_turns(place):
    policy = {"max_bytes": 200 * BLOCK, "evict_bytes": 150 * BLOCK}
    async with place.running(policy=policy) as store:
        for number in range(200):
            await store.put(f"{number}", b"x")
        await put(store, b"one more")
        assert place.used() == 50 * BLOCK and store.statistics()["evicted_blobs"] == 151


async def test_a_variant_is_no_blob_where_blobs_are_counted(place):
    async with place.running(policy={"max_count": 2}) as store:
        digests = await fill(store, 2)
        links = [Link(digest, str(place.inputs / digest.hash), True) for digest in digests]
        assert await store.capability(LocalFiles).link_files(links) == []
        assert await left(store, digests) == 2 and store.statistics()["executables"] == 2
