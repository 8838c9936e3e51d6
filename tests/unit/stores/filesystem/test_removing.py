"""What is deleted on request, and that whoever wants to know hears of all that goes, whoever removed it."""

import os

import pytest

from nl.plugin import (
    ActionKey,
    Deletes,
    Digest,
    DigestFunction,
    InternalError,
    Link,
    LocalFiles,
    Removals,
    digest_of,
)
from nl.stores.existence_cache import ExistenceCacheOptions, ExistenceCacheStore
from nl.stores.filesystem import mirror
from nl.testing import BareContext, find, make_blob

from .conftest import put
from .test_disk_space import turns_of_others


async def test_a_deleted_blob_takes_its_executable_variant_and_its_bytes_with_it(place):
    async with place.running() as store:
        digest = await put(store, make_blob(10_000))
        await store.capability(LocalFiles).link_files([Link(digest, str(place.inputs / "tool"), True)])
        assert place.used() > 20_000
        await store.capability(Deletes).delete([digest])
        assert place.used() == 0 == store.statistics()["bytes"]
        assert os.path.exists(place.inputs / "tool")


async def test_what_another_process_has_stored_can_be_deleted(place):
    async with place.running() as store, place.running(name="OTHER") as other:
        digest = await put(other, b"from there")
        await store.capability(Deletes).delete([digest])
        assert await other.has([digest]) == [None]
        assert other.statistics()["bytes"] == 0


async def test_a_file_of_another_size_than_its_name_says_is_deleted_too(place):
    digest = digest_of(make_blob(500))
    place.lay(digest, b"cut short")
    async with place.running() as store:
        await store.capability(Deletes).delete([digest])
        assert not place.file(digest).exists()
        assert store.statistics()["bytes"] == 0


async def test_a_link_that_leads_nowhere_is_deleted_too(place):
    digest = digest_of(b"x")
    async with place.running() as store:
        place.file(digest).symlink_to(place.root / "nowhere")
        await store.capability(Deletes).delete([digest])
        assert not place.file(digest).is_symlink()


async def test_what_cannot_be_deleted_is_told_with_its_path(place):
    async with place.running() as store:
        (place.content / "s" / "name").mkdir()
        with pytest.raises(InternalError, match=f"cannot delete {place.content}/s/name"):
            await store.capability(Deletes).delete(["name"])


async def test_a_store_that_does_not_run_deletes_nothing(place):
    async with place.running() as store:
        digest = await put(store, b"x")
    with pytest.raises(InternalError, match="is used while it is not running"):
        await store.capability(Deletes).delete([digest])
    assert place.file(digest).exists()


async def test_where_much_is_deleted_others_have_their_turn_now_and_then(place):
    async with place.running() as store:
        names = [f"{number}" for number in range(256)]
        for name in names:
            await store.put(name, b"x")
        with turns_of_others() as turns:
            await store.capability(Deletes).delete(names)
        assert len(turns) >= 256 // 64 and place.used() == 0


async def test_what_had_gone_unseen_before_it_was_to_be_deleted_is_known_to_have_gone(place, monkeypatch):
    monkeypatch.setattr(mirror, "remote_file_system", lambda path: "nfs")
    async with place.running() as store:
        digest = await put(store, b"x")
        place.file(digest).unlink()
        await store.capability(Deletes).delete([digest])
        assert (store.statistics()["blobs"], store.statistics()["bytes"]) == (0, 0)


async def test_deleting_a_blake3_blob_finds_it_under_its_short_name_and_spares_others(place):
    data, other = make_blob(3000), make_blob(4000)
    digest, sha256 = digest_of(data, DigestFunction.BLAKE3), digest_of(other)
    short = place.lay(Digest(digest.hash, digest.size), data)
    place.lay(sha256, other)
    async with place.running() as store:
        await store.capability(Deletes).delete([digest, Digest(*sha256[:2], DigestFunction.BLAKE3)])
        assert not short.exists()
        assert await store.has([digest, sha256]) == [None, 4000]
        assert await store.get(sha256) == other


async def test_a_result_that_an_older_cache_left_among_the_blobs_is_deleted(place):
    action = ActionKey(*digest_of(b"an action"))
    place.lay(Digest(*action[:2]), b"a result of another size")
    async with place.running() as store:
        assert (await store.has([action]))[0] is not None
        await store.capability(Deletes).delete([action])
        assert await store.has([action]) == [None]


@pytest.mark.parametrize("length", [62, 63, 64, 65])
async def test_names_of_any_length_are_values_and_no_blobs(place, length):
    names = ["s" * length, "b" * length, "a" * length]
    async with place.running(policy={"max_count": 2}) as store:
        for name in names:
            await store.put(name, b"value of " + name.encode())
        assert [await find(store, name) for name in names] == [None, *(b"value of " + n.encode() for n in names[1:])]
        assert len(list((place.content / "s").iterdir())) == 2


async def test_news_tell_of_what_others_removed_before_anybody_can_ask(place):
    async with place.running() as store:
        feed = store.capability(Removals).watch_removals()
        digest = await put(store, b"goes")
        action = ActionKey(*digest_of(b"an action"))
        await store.put(action, b"a result")
        await store.put("a name/with %", b"value")
        assert set(feed.take() or ()) <= {digest, action, "a name/with %"}  # it was placed
        place.file(digest).unlink()
        assert set(feed.take()) == {digest, ActionKey(*digest)}, "whose result an older cache may have left there"
        next((place.content / "a").iterdir()).unlink()
        next((place.content / "s").iterdir()).unlink()
        assert set(feed.take()) == {action, "a name/with %"}
        assert feed.take() == ()


async def test_a_name_that_cannot_be_told_from_its_file_makes_everything_doubtful(place):
    async with place.running() as store:
        await store.put("x" * 1000, b"value")
        feed = store.capability(Removals).watch_removals()
        await store.capability(Deletes).delete(["x" * 1000])
        assert feed.take() is None


async def test_while_the_folder_is_listed_anew_anything_may_have_gone(place):
    async with place.running() as store:
        await put(store, b"one")
        feed = store.capability(Removals).watch_removals()
        store._mirror.is_exact = False
        assert feed.take() is None
        store._mirror.is_exact = True
        assert feed.take() == ()
        store._mirror.want_scan()
        assert feed.take() is None


async def test_what_goes_by_age_is_not_told(place):
    async with place.running(policy={"max_seconds": 60}) as store:
        assert store.capability(Removals) is None


async def test_an_existence_cache_in_front_of_a_shared_folder_is_never_wrong(place):
    async with place.running(policy={"max_bytes": 100_000}) as store, place.running(name="OTHER") as other:
        context = BareContext()
        cache = ExistenceCacheStore(ExistenceCacheOptions(backend=context.spec(store)), context)
        digests = [await put(cache, make_blob(9000, seed=number)) for number in range(8)]
        for number in range(20):
            assert await cache.has(digests) == await store.has(digests)
            await put(other, make_blob(9000, seed=100 + number))
            if number % 3 == 0:
                await other.capability(Deletes).delete([digests[number % 8]])
            assert await cache.has(digests) == await other.has(digests)
