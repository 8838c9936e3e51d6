import pytest

from nl.blob.hashing import digest_of
from nl.plugin import (
    ActionKey,
    BlobNotFoundError,
    BytesReader,
    Deletes,
    Discards,
    LocalFiles,
    RangeError,
    UploadMismatchError,
    VerifyingReader,
)
from nl.stores.noop import NoopOptions, NoopStore
from nl.testing import BareContext, ForgetfulStoreConformance


class TestNoopConformance(ForgetfulStoreConformance):
    def make_store(self, context, folder):
        return NoopStore(NoopOptions(), context)


@pytest.fixture
def store():
    return NoopStore(NoopOptions(), BareContext("CAS.fast"))


async def test_what_is_written_is_gone(store):
    digest = digest_of(b"gone")
    await store.put(digest, b"gone")
    await store.write(ActionKey(*digest), BytesReader(b"gone"))
    assert await store.has([digest, ActionKey(*digest), "name"]) == [None, None, None]


async def test_the_result_of_an_action_of_no_bytes_is_not_there_as_the_empty_blob_is(store):
    action = ActionKey(*digest_of(b""))
    assert await store.has([action]) == [None]
    with pytest.raises(BlobNotFoundError):
        await store.get(action)


async def test_a_bad_upload_is_noticed_all_the_same(store):
    digest = digest_of(b"good")
    with pytest.raises(UploadMismatchError):
        await store.write(digest, VerifyingReader(BytesReader(b"evil"), digest))


def test_it_says_that_it_keeps_nothing(store):
    assert store.capability(Discards).discards_everything()


async def test_of_the_empty_blob_there_is_one_range(store):
    async with store.open(digest_of(b""), offset=0, length=5) as reader:
        assert await reader.receive_parts() == ()
    with pytest.raises(RangeError):
        async with store.open(digest_of(b""), offset=1):
            pass
    for attempt in (store.get(digest_of(b"gone")), store.open(digest_of(b"gone")).__aenter__()):
        with pytest.raises(BlobNotFoundError, match="the noop store 'CAS.fast'"):
            await attempt


async def test_what_is_deleted_is_no_error_as_nothing_is_there(store):
    await store.capability(Deletes).delete([digest_of(b"gone")])
    assert store.capability(LocalFiles) is None
