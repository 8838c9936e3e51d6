"""Batches reach the store as one question, and each blob keeps its own outcome and its place."""

import gc

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nl.blob.off_loop import THREADS, threads
from nl.cas.large import MANY
from nl.errors import Code, UnavailableError
from nl.model.digest import Digest
from nl.pb import reapi
from nl.pb.codec import encode
from nl.pb.find_missing import FindMissingRequest
from nl.plugin import digest_of
from nl.services.bounded import EncodedBatchRead, EncodedBatchUpdate, EncodedFindMissing
from nl.services.cas import CasInstance, CasService
from nl.services.limits import UNPACKED_BATCH_BYTES
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext
from tests.unit.services.memory_stream import MemoryStream, call


class Counting(MemoryStore):
    """Counts how often it is asked for many; refuses one blob."""

    def __init__(self, refused=None):
        super().__init__(MemoryOptions(), BareContext("CAS"))
        self.trips = []
        self.refused = refused

    async def get_many(self, keys):
        self.trips.append(list(keys))
        return await super().get_many(keys)

    async def put_many(self, blobs):
        self.trips.append([key for key, _ in blobs])
        return await super().put_many(blobs)

    async def put(self, key, data):
        if key == self.refused:
            raise UnavailableError("not now")
        await super().put(key, data)


def message(digest):
    return reapi.Digest(hash=digest.hash, size_bytes=digest.size)


BLOBS = [b"blob %d" % number for number in range(6)]
DIGESTS = [digest_of(blob) for blob in BLOBS]


async def test_an_upload_is_one_trip_and_what_is_wrong_does_not_get_there():
    store = Counting(refused=DIGESTS[4])
    contents = [BLOBS[0], b"wrong!", BLOBS[2], BLOBS[3], BLOBS[4], BLOBS[5]]
    uploads = [
        reapi.BatchUpdateBlobsRequestRequest(digest=message(digest), data=data)
        for digest, data in zip(DIGESTS, contents, strict=True)
    ]
    uploads[3].digest = reapi.Digest(hash="no hash", size_bytes=6)
    [reply] = await call(CasService({"": CasInstance(store)}), "BatchUpdateBlobs",
                         reapi.BatchUpdateBlobsRequest(requests=uploads))  # fmt: skip
    codes = [0 if each.status is None else each.status.code for each in reply.responses]
    assert codes == [0, Code.INVALID_ARGUMENT, 0, Code.INVALID_ARGUMENT, Code.UNAVAILABLE, 0]
    assert store.trips == [[DIGESTS[0], DIGESTS[2], DIGESTS[4], DIGESTS[5]]]
    assert await store.has(DIGESTS) == [6, None, 6, None, None, 6]


async def test_a_read_is_one_trip_in_the_order_of_the_request():
    store = Counting()
    for digest, blob in list(zip(DIGESTS, BLOBS, strict=True))[:4]:
        await store.put(digest, blob)
    asked = [message(DIGESTS[3]), message(DIGESTS[5]), reapi.Digest(hash="no hash"), message(DIGESTS[0])]
    [reply] = await call(CasService({"": CasInstance(store)}), "BatchReadBlobs",
                         reapi.BatchReadBlobsRequest(digests=asked))  # fmt: skip
    assert [each.digest.hash for each in reply.responses] == [each.hash for each in asked]
    assert [0 if each.status is None else each.status.code for each in reply.responses] == [
        0, Code.NOT_FOUND, Code.INVALID_ARGUMENT, 0,
    ]  # fmt: skip
    assert [bytes(each.data) for each in reply.responses] == [BLOBS[3], b"", b"", BLOBS[0]]
    assert store.trips == [[DIGESTS[3], DIGESTS[5], DIGESTS[0]]]
    assert all(isinstance(key, Digest) for key in store.trips[0])


async def test_what_packed_blobs_unpack_to_is_bounded_together_and_no_size_takes_anything_off():
    sizes = [-(1 << 62), UNPACKED_BATCH_BYTES - 1, 2, 1, 1]
    request = reapi.BatchUpdateBlobsRequest(requests=[
        reapi.BatchUpdateBlobsRequestRequest(
            digest=reapi.Digest(hash=DIGESTS[0].hash, size_bytes=size), data=b"no frame",
            compressor=reapi.CompressorValue.ZSTD,
        )
        for size in sizes
    ])  # fmt: skip
    [reply] = await call(CasService({"": CasInstance(Counting())}), "BatchUpdateBlobs", request)
    assert [each.status.code for each in reply.responses] == [Code.INVALID_ARGUMENT] * len(sizes)
    too_many = ["does not fit into a batch any more" in each.status.message for each in reply.responses]
    assert too_many == [False, False, True, False, True]


class Unread(MemoryStream):
    """A call whose client takes nothing of the reply."""

    async def recv_message(self):
        return self.request

    async def send_parts(self, parts):
        await trio.sleep_forever()


def kept_of(kinds):
    gc.collect()
    return sum(isinstance(each, kinds) for each in gc.get_objects())


@pytest.mark.parametrize(("method", "kind", "request_of"), [
    ("FindMissingBlobs", EncodedFindMissing, lambda: reapi.FindMissingBlobsRequest(
        blob_digests=[message(digest) for digest in DIGESTS])),
    ("BatchReadBlobs", EncodedBatchRead, lambda: reapi.BatchReadBlobsRequest(
        digests=[message(digest) for digest in DIGESTS])),
    ("BatchUpdateBlobs", EncodedBatchUpdate, lambda: reapi.BatchUpdateBlobsRequest(
        requests=[reapi.BatchUpdateBlobsRequestRequest(digest=message(digest), data=b"x") for digest in DIGESTS])),
])  # fmt: skip
async def test_while_a_client_takes_the_reply_nothing_of_the_request_is_kept(method, kind, request_of):
    """What it does not take counts as held for it; a request, as objects, is twenty times as large."""
    service = CasService({"": CasInstance(Counting())})
    [(full, handler)] = [item for item in service.__mapping__().items() if item[0].endswith("/" + method)]
    kinds = (reapi.Digest, FindMissingRequest, kind)
    before = kept_of(kinds)
    stream = Unread(handler, full)
    stream.request = kind(encode(request_of()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.serve)
        await wait_all_tasks_blocked()
        del stream.request
        assert kept_of(kinds) <= before
        nursery.cancel_scope.cancel()


class TakesAllThreads(Counting):
    """What is done after the store was asked gets no thread, until `free` is called."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def take(self):
        for number in () if self.taken else range(THREADS):
            threads().acquire_on_behalf_of_nowait(number)
            self.taken.append(number)

    def free(self):
        while self.taken:
            threads().release_on_behalf_of(self.taken.pop())

    async def has(self, keys):
        self.take()
        return await super().has(keys)

    async def get_many(self, keys):
        self.take()
        return await super().get_many(keys)

    async def put_many(self, blobs):
        self.take()
        return await super().put_many(blobs)


def odd_names(count):
    """Digests as no real client writes them."""
    return b"".join(b"\x12\x44\x10\x01\x0a\x40%064x" % number for number in range(count))


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize(("method", "kind", "encoded", "few"), [
    ("FindMissingBlobs", EncodedFindMissing, odd_names, 20_000),
    ("BatchReadBlobs", EncodedBatchRead, odd_names, MANY),
    ("BatchUpdateBlobs", EncodedBatchUpdate, lambda count: b"\x12\x44\x0a\x42\x0a\x40%064x" % 1 * count, MANY),
])
async def test_the_reply_about_many_blobs_is_made_beside_the_loop(method, kind, encoded, few, beyond):
    """40,000 would be half a second."""
    store = TakesAllThreads()
    service = CasService({"": CasInstance(store)})
    [(full, handler)] = [item for item in service.__mapping__().items() if item[0].endswith("/" + method)]
    stream = Sent(handler, full)
    stream.request = kind(encoded(few + beyond))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler.func, stream)
        with trio.fail_after(20):
            while not store.taken:
                await trio.sleep(0.001)
        await wait_all_tasks_blocked()
        assert bool(stream.size) is (not beyond)
        store.free()
    assert stream.size > 60 * few


class Sent(Unread):
    """A call whose client takes all of the reply."""

    size = 0

    async def send_parts(self, parts):
        self.size = sum(map(len, parts))
