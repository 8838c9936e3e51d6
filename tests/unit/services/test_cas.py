"""The CAS service at its limits: how much a batch may be, how much is explained, how much is asked at once."""

import hashlib

import pytest

from nl.blob.zstd import decompress
from nl.errors import Code, InvalidRequestError, UnavailableError, UnimplementedError
from nl.model.digest import DigestFunction
from nl.pb import reapi
from nl.pb.codec import encode
from nl.plugin import digest_of
from nl.services import cas as module
from nl.services.cas import CasInstance, CasService
from nl.services.limits import (
    BATCH_BYTES,
    BATCH_UPDATE_BYTES,
    ENTRY_BYTES,
    MESSAGE_BYTES,
    REPLY_BYTES,
    UNPACKED_BATCH_BYTES,
)
from nl.storage.contract import MAX_WHOLE
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from tests.unit.services.memory_stream import call


class Counting(MemoryStore):
    """Remembers how many it was asked about at a time."""

    def __init__(self):
        super().__init__(MemoryOptions(), BareContext("CAS"))
        self.asked = []

    async def has(self, keys):
        self.asked.append(len(keys))
        return await super().has(keys)


@pytest.fixture
def store():
    return Counting()


@pytest.fixture
def service(store):
    return CasService({"": CasInstance(store)})


def message(digest):
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size)


def upload(data, digest=None):
    return reapi.BatchUpdateBlobsRequestRequest(digest=message(digest or digest_of(data)), data=data)


async def update(service, *uploads, function=0):
    request = reapi.BatchUpdateBlobsRequest(requests=uploads, digest_function=function)
    [reply] = await call(service, "BatchUpdateBlobs", request)
    return reply.responses


async def read(service, *digests):
    [reply] = await call(service, "BatchReadBlobs", reapi.BatchReadBlobsRequest(digests=digests))
    return reply.responses


def code_of(response):
    return Code(response.status.code if response.status is not None else 0)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
async def test_how_much_a_batch_of_uploads_may_be_together(service, beyond):
    half = BATCH_UPDATE_BYTES // 2
    uploads = [upload(bytes(half)), upload(b"x" * (half + beyond))]
    if beyond > 0:
        expected = f"{BATCH_UPDATE_BYTES + 1} bytes of blobs, more than {BATCH_UPDATE_BYTES}; .* is {BATCH_BYTES}$"
        with pytest.raises(InvalidRequestError, match=expected):
            await update(service, *uploads)
    else:
        assert [code_of(each) for each in await update(service, *uploads)] == [Code.OK, Code.OK]


async def test_each_failure_has_its_code_and_the_first_ones_a_text_that_is_not_too_long(service):
    responses = await update(service, *[upload(b"y", digest_of(b"x")) for _ in range(152)])
    assert {code_of(each) for each in responses} == {Code.INVALID_ARGUMENT}
    assert [bool(each.status.message) for each in responses] == [True] * 150 + [False] * 2


async def test_no_text_is_longer_than_it_may_be(service, store, monkeypatch):
    async def refuse(blobs):
        return [UnavailableError("x" * 1000) for _ in blobs]

    monkeypatch.setattr(store, "put_many", refuse)
    [response] = await update(service, upload(b"y"))
    assert response.status.message == "x" * 300


async def test_an_unknown_compressor_is_refused_and_a_plain_blob_beside_it_is_taken(service, store):
    other = upload(b"z")
    other.compressor = reapi.CompressorValue.DEFLATE
    refused, taken = await update(service, other, upload(b"y"))
    assert (code_of(refused), code_of(taken)) == (Code.INVALID_ARGUMENT, Code.OK)
    assert refused.status.message.endswith("compressor 2 is not offered by this server")
    assert await store.has([digest_of(b"y"), digest_of(b"z")]) == [1, None]


async def test_digests_are_of_the_function_that_the_request_names(service):
    [wrong] = await update(service, upload(b"y"), function=int(DigestFunction.BLAKE3))
    assert code_of(wrong) is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("beyond", [0, 1])
async def test_a_reply_has_room_for_what_its_digests_leave(service, store, beyond):
    sizes = [REPLY_BYTES - 3 * ENTRY_BYTES - 100, 100 + beyond, 1]
    blobs = [bytes([at]) * size for at, size in enumerate(sizes)]
    for blob in blobs:
        await store.put(digest_of(blob), blob)
    responses = await read(service, *[message(digest_of(blob)) for blob in blobs])
    expected = [Code.OK, Code.RESOURCE_EXHAUSTED, Code.OK] if beyond else [Code.OK, Code.OK, Code.RESOURCE_EXHAUSTED]
    assert [code_of(each) for each in responses] == expected
    assert any("does not fit into this reply any more: ask for it by itself" in each.status.message
               for each in responses if each.status is not None)  # fmt: skip
    assert REPLY_BYTES <= MAX_WHOLE, "whatever fits can be had whole"


@pytest.mark.parametrize("beyond", [0, 1])
async def test_digests_of_any_length_do_not_make_a_reply_too_long(service, beyond):
    wrong = reapi.Digest(hash="x" * (MESSAGE_BYTES - 1000))
    [response] = await read(service, wrong)
    length = len(encode(reapi.BatchReadBlobsResponse(responses=[response])))
    wrong.hash += "x" * (MESSAGE_BYTES - length + beyond)
    if beyond:
        with pytest.raises(InvalidRequestError, match=f"do not fit into {MESSAGE_BYTES} bytes"):
            await read(service, wrong)
    else:
        [response] = await read(service, wrong)
        assert code_of(response) is Code.INVALID_ARGUMENT
        assert len(encode(reapi.BatchReadBlobsResponse(responses=[response]))) == MESSAGE_BYTES


@pytest.mark.parametrize(("count", "trips"), [(3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])])
async def test_a_store_is_asked_about_so_many_at_once(service, store, monkeypatch, count, trips):
    monkeypatch.setattr(module, "_HAS_AT_ONCE", 3)
    digests = [digest_of(b"%d" % at) for at in range(count)]
    await store.put(digests[-1], b"%d" % (count - 1))
    request = reapi.FindMissingBlobsRequest(blob_digests=[message(each) for each in digests])
    [reply] = await call(service, "FindMissingBlobs", request)
    assert [each.hash for each in reply.missing_blob_digests] == [each.hash for each in digests[:-1]]
    assert store.asked == trips


async def test_a_wrong_digest_among_those_asked_about_is_told_with_its_field(service):
    with pytest.raises(InvalidRequestError, match="^blob_digests: invalid digest hash"):
        request = reapi.FindMissingBlobsRequest(blob_digests=[reapi.Digest(hash="A" * 64, size_bytes=1)])
        await call(service, "FindMissingBlobs", request)


async def test_get_tree_refuses_a_negative_page_size(service):
    root = reapi.Digest(hash=hashlib.sha256(b"").hexdigest())
    for size in (0, 1):
        assert await call(service, "GetTree", reapi.GetTreeRequest(root_digest=root, page_size=size))
    with pytest.raises(InvalidRequestError, match="page_size -1 is negative"):
        await call(service, "GetTree", reapi.GetTreeRequest(root_digest=root, page_size=-1))


@pytest.mark.parametrize("method", ["SplitBlob", "SpliceBlob"])
async def test_what_is_not_offered_says_so(service, method):
    announced = f"{method.replace('Blob', '').lower()}_blob_support is not announced"
    with pytest.raises(UnimplementedError, match=announced):
        await call(service, method, getattr(reapi, f"{method}Request")())


def test_what_clients_meet():
    """Figures that clients build upon: whoever changes one changes what they may send."""
    mib = 1024 * 1024
    assert (4 * mib, 2 * mib, 4 * mib - 65536) == (MESSAGE_BYTES, BATCH_BYTES, BATCH_UPDATE_BYTES)
    assert UNPACKED_BATCH_BYTES == 8 * BATCH_UPDATE_BYTES
    assert (module._HAS_AT_ONCE, module.ENTRY_BYTES) == (20_000, 84)
    digest = reapi.Digest(hash="a" * 64, size_bytes=2**62)
    entry = reapi.BatchReadBlobsResponseResponse(digest=digest, data=b"", status=None)
    assert len(encode(reapi.BatchReadBlobsResponse(responses=[entry]))) <= ENTRY_BYTES


async def test_a_blob_that_is_not_there_spoils_no_packed_batch(service, store):
    blobs = [bytes([at]) * 1000 for at in range(3)]
    for blob in blobs[::2]:
        await store.put(digest_of(blob), blob)
    request = reapi.BatchReadBlobsRequest(
        digests=[message(digest_of(blob)) for blob in blobs], acceptable_compressors=[reapi.CompressorValue.ZSTD]
    )
    [reply] = await call(service, "BatchReadBlobs", request)
    assert [code_of(each) for each in reply.responses] == [Code.OK, Code.NOT_FOUND, Code.OK]
    assert [int(each.compressor) for each in reply.responses] == [1, 0, 1]
    assert decompress(bytes(reply.responses[2].data), 1000) == blobs[2]
