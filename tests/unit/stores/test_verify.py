
import pytest

from nl.blob.hashing import digest_of
from nl.plugin import (
    ActionKey,
    BlobSizeLimit,
    BytesReader,
    Deletes,
    Digest,
    DigestFunction,
    Discards,
    EncodedBlobs,
    LocalFiles,
    Pins,
    Removals,
    Scans,
    TooLargeError,
    UploadMismatchError,
    VerifyingReader,
)
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.verify import VerifyOptions, VerifyStore
from nl.testing import BareContext, PartsReader, StoreConformance, find, split


def make_store(context, *, size, hash):
    memory = MemoryStore(MemoryOptions(), context)
    return VerifyStore(VerifyOptions(backend=context.spec(memory), verify_size=size, verify_hash=hash), context)


class TestVerifyBothConformance(StoreConformance):
    def make_store(self, context, folder):
        return make_store(context, size=True, hash=True)


class TestVerifyNothingConformance(StoreConformance):
    def make_store(self, context, folder):
        return make_store(context, size=False, hash=False)


def ways_to_upload(store):
    return {
        "put": store.put,
        "write": lambda key, data: store.write(key, PartsReader(split(data, 7))),
        "write of unknown size": lambda key, data: store.write(key, PartsReader(split(data, 7), size=-1)),
    }


WAYS = ["put", "write", "write of unknown size"]
DATA = bytes(range(100))
WRONG_HASH = bytes(range(1, 101))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("function", list(DigestFunction))
async def test_right_bytes_of_either_function_pass(way, function):
    store = make_store(BareContext(), size=True, hash=True)
    digest = digest_of(DATA, function)
    await ways_to_upload(store)[way](digest, DATA)
    assert await find(store, digest) == DATA


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b""])
async def test_a_wrong_size_is_refused_counted_and_not_stored(way, data):
    store = make_store(BareContext(), size=True, hash=False)
    with pytest.raises(UploadMismatchError, match="expected 100 bytes"):
        await ways_to_upload(store)[way](digest_of(DATA), data)
    assert await find(store, digest_of(DATA)) is None
    assert store.statistics() == {"size_verification_failures": 1, "hash_verification_failures": 0}


@pytest.mark.parametrize("way", WAYS)
async def test_a_wrong_hash_is_refused_counted_and_not_stored(way):
    store = make_store(BareContext(), size=False, hash=True)
    with pytest.raises(UploadMismatchError, match="another hash"):
        await ways_to_upload(store)[way](digest_of(DATA), WRONG_HASH)
    assert await find(store, digest_of(DATA)) is None
    assert store.statistics() == {"size_verification_failures": 0, "hash_verification_failures": 1}


@pytest.mark.parametrize("way", WAYS)
async def test_only_what_is_asked_for_is_checked(way):
    for store, data in (
        (make_store(BareContext(), size=True, hash=False), WRONG_HASH),
        (make_store(BareContext(), size=False, hash=False), DATA[:5]),
    ):
        await ways_to_upload(store)[way](digest_of(DATA), data)
        assert bytes(await store.get(digest_of(DATA))) == data


async def test_too_many_bytes_are_refused_before_all_have_come():
    store = make_store(BareContext(), size=True, hash=False)
    source = PartsReader(split(bytes(10_000), 10), size=-1)
    with pytest.raises(UploadMismatchError):
        await store.write(Digest("0" * 64, 100), _InTens(source))
    assert source.calls < 20


class _InTens(PartsReader):
    def __init__(self, reader):
        super().__init__([], size=-1)
        self._reader = reader

    async def receive_parts(self, max_bytes=10):
        return await self._reader.receive_parts(10)


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_said_about_an_action_is_not_checked_against_it(way):
    store = make_store(BareContext(), size=True, hash=True)
    await ways_to_upload(store)[way](ActionKey("ab" * 32, 1), DATA)
    assert await find(store, ActionKey("ab" * 32, 1)) == DATA


async def test_bytes_checked_already_are_not_hashed_again():
    store = make_store(BareContext(), size=True, hash=True)
    reader = VerifyingReader(BytesReader(DATA), digest_of(DATA))
    seen = []
    store._backend.write = lambda key, got: _note(seen, got)
    await store.write(digest_of(DATA), reader)
    assert seen == [reader]


async def _note(seen, reader):
    seen.append(reader)


def test_local_files_would_get_past_the_check_so_there_are_none():
    assert make_store(BareContext(), size=True, hash=True).capability(LocalFiles) is None


async def test_of_many_each_is_checked_and_the_right_ones_are_stored_in_one_trip():
    store = make_store(BareContext(), size=True, hash=True)
    trips, real = [], store._backend.put_many

    async def put_many(blobs):
        trips.append([key for key, _ in blobs])
        return [TooLargeError("full") if key == digest_of(b"large") else result
                for (key, _), result in zip(blobs, await real(blobs), strict=True)]  # fmt: skip

    store._backend.put_many = put_many
    right, large, action = digest_of(DATA), digest_of(b"large"), ActionKey("ab" * 32, 1)
    failed = await store.put_many([
        (digest_of(b"one"), b"two"), (right, DATA), (digest_of(b"short"), b"sho"), (large, b"large"), (action, b"x"),
    ])  # fmt: skip
    kinds = [type(each) for each in failed]
    assert kinds == [UploadMismatchError, type(None), UploadMismatchError, TooLargeError, type(None)]
    assert trips == [[right, large, action]]
    assert store.statistics() == {"size_verification_failures": 1, "hash_verification_failures": 1}
    assert await find(store, digest_of(b"one")) is None


@pytest.mark.parametrize("size", [True, False])
async def test_an_upload_that_says_another_size_is_refused_before_a_byte_is_read_if_sizes_are_checked(size):
    store = make_store(BareContext(), size=size, hash=True)
    source = PartsReader([DATA[:-1]])
    with pytest.raises(UploadMismatchError, match="99 bytes" if size else "another hash"):
        await store.write(digest_of(DATA), source)
    assert (source.calls == 0) == size


async def test_bytes_that_were_checked_as_another_blob_are_checked_again():
    store = make_store(BareContext(), size=True, hash=True)
    reader = VerifyingReader(BytesReader(WRONG_HASH), digest_of(WRONG_HASH))
    with pytest.raises(UploadMismatchError, match="another hash"):
        await store.write(digest_of(DATA), reader)


async def test_as_many_bytes_as_the_digest_says_are_not_too_many():
    store = make_store(BareContext(), size=True, hash=False)
    source = PartsReader([DATA], size=-1)
    await store.write(digest_of(DATA), source)
    assert store.statistics() == {"size_verification_failures": 0, "hash_verification_failures": 0}


def test_what_the_backend_can_do_beyond_uploads_stays_possible():
    store = make_store(BareContext(), size=True, hash=True)
    for kind in (Deletes, Removals):
        assert store.capability(kind) is store.backend.capability(kind) is not None
    store._backend.capability = lambda kind: kind
    for kind in (BlobSizeLimit, Deletes, Removals, Scans, Pins):
        assert store.capability(kind) is kind
    for kind in (LocalFiles, EncodedBlobs, Discards):
        assert store.capability(kind) is None


def test_nothing_is_checked_unless_the_config_says_so():
    options = VerifyOptions(backend=BareContext().spec(MemoryStore(MemoryOptions(), BareContext())))
    assert (options.verify_size, options.verify_hash) == (False, False)
