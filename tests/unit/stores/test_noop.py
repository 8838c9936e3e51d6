import pytest

from nl.blob.hashing import digest_of
from nl.plugin import ActionKey, BytesReader, Discards, UploadMismatchError, VerifyingReader
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


async def test_a_bad_upload_is_noticed_all_the_same(store):
    digest = digest_of(b"good")
    with pytest.raises(UploadMismatchError):
        await store.write(digest, VerifyingReader(BytesReader(b"evil"), digest))


def test_it_says_that_it_keeps_nothing(store):
    assert store.capability(Discards).discards_everything()
