"""Blobs that come and go as zstd, with a foreign client, over stores that keep zstd and stores that do not."""

import os
import queue
import random

import grpc
import pytest
import trio

from nl.blob.zstd import compress, decompress
from nl.services import packed_reads
from nl.stores.compression import CompressionOptions, CompressionStore
from nl.stores.compression.options import CompressionAlgorithm, Lz4Options, ZstdOptions
from nl.testing import BareContext
from tests.support.foreign import BYTES, BYTESTREAM, REAPI, chunks, connect, digest, digest3, read_name, upload_name
from tests.support.serving import memory_store, serving

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ZSTD = 1
SIZES = (1, 3000, 70_000, 3_000_001)


def store_of(kind):
    if kind == "plain":
        return memory_store()
    context = BareContext()
    algorithm = CompressionAlgorithm(zstd=ZstdOptions()) if kind == "zstd" else CompressionAlgorithm(lz4=Lz4Options())
    return CompressionStore(
        CompressionOptions(backend=context.spec(memory_store()), compression_algorithm=algorithm), context
    )


@pytest.fixture(params=["plain", "zstd", "lz4"])
async def served(request):
    async with serving(store=store_of(request.param)) as running:
        yield running


@pytest.fixture(params=["plain", "zstd"])
async def kept(request):
    async with serving(store=store_of(request.param)) as running:
        yield running


def text(size):
    chance = random.Random(size)
    words = [chance.randbytes(3).hex().encode() for _ in range(300)]
    return b" ".join(chance.choice(words) for _ in range(size // 7 + 1))[:size]


def packed(name):
    return name.replace("blobs/", "compressed-blobs/zstd/", 1)


async def fails(code, call):
    with pytest.raises(grpc.RpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    return caught.value.details()


def frames_of(data):
    """As clients make them: one frame, and several."""
    yield compress(data, 3)
    yield compress(data[: len(data) // 2], 9) + compress(data[len(data) // 2 :], 1)


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_uploaded_packed_is_read_in_either_form(served, size):
    for at, make_digest in enumerate((digest, digest3)):
        data = text(size) + bytes([at])
        of = make_digest(data)
        function = "blake3" if at else ""
        frames = list(frames_of(data))[at]
        name = packed(upload_name(of, function=function))
        assert await served.client.write(chunks(name, frames, size=100_000)) == len(frames)
        assert b"".join(await served.client.read(read_name(of, function=function))) == data
        got = b"".join(await served.client.read(packed(read_name(of, function=function))))
        assert decompress(got, len(data)) == data
        assert await served.client.status(name) == (len(data), True)
        again = chunks(packed(upload_name(of, function=function)), frames, size=100_000)
        assert await served.client.write(again) == -1, "REAPI: -1 where a compressed blob was there already"


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_uploaded_plain_is_read_packed(served, size):
    data = text(size)
    of = digest(data)
    assert await served.client.write(chunks(upload_name(of), data, size=1 << 20)) == size
    messages = await served.client.read(packed(read_name(of)))
    assert decompress(b"".join(messages), size) == data
    assert sum(map(len, messages)) < size * 0.8 + 100
    for offset in (1, size // 2, size - 1, size):
        rest = b"".join(await served.client.read(packed(read_name(of)), offset=offset))
        assert decompress(rest, size - offset) == data[offset:]


async def test_what_does_not_shrink_goes_both_ways_too(served):
    data = os.urandom(1_000_000)
    of = digest(data)
    frames = compress(data)
    assert await served.client.write(chunks(packed(upload_name(of)), frames, size=1 << 20)) == len(frames)
    assert decompress(b"".join(await served.client.read(packed(read_name(of)))), len(data)) == data


async def test_a_zstd_store_passes_on_the_bytes_that_it_got():
    async with serving(store=store_of("zstd")) as served:
        for size in SIZES:
            data = text(size)
            of = digest(data)
            frames = list(frames_of(data))[1]
            await served.client.write(chunks(packed(upload_name(of)), frames, size=100_000))
            assert b"".join(await served.client.read(packed(read_name(of)))) == frames
        assert served.store.statistics()["passed_in_packed"] == len(SIZES)


async def test_the_empty_blob_goes_both_ways(served):
    of = digest(b"")
    assert decompress(b"".join(await served.client.read(packed(read_name(of)))), 0) == b""
    assert await served.client.write(chunks(packed(upload_name(of)), compress(b""), size=100)) == -1


def wrong_uploads(data):
    good = compress(data)
    yield "garbage", os.urandom(len(good))
    yield "plain", data
    yield "nothing", b""
    yield "cut", good[:-1]
    yield "cut early", good[: len(good) // 2]
    yield "followed by garbage", good + b"garbage"
    yield "another blob", compress(data[:-1] + b"x")
    yield "a shorter blob", compress(data[:-1])
    yield "a longer blob", compress(data + b"x")
    yield "a bomb", compress(bytes(50_000_000))


@pytest.mark.parametrize("size", [3000, 400_000])
async def test_wrong_packed_uploads_are_the_clients_fault_and_leave_nothing(served, size):
    data = text(size)
    of = digest(data)
    for what, frames in wrong_uploads(data):
        name = packed(upload_name(of))
        for piece in (1 << 20, 20_000):
            details = await fails(INVALID, served.client.write(chunks(name, frames, size=piece)))
            assert of.hash in details, what
        request = REAPI.BatchUpdateBlobsRequest()
        request.requests.add(digest=of, data=frames, compressor=ZSTD)
        [refused] = await served.client.update_request(request)
        assert refused.status.code == INVALID.value[0], what
        assert await served.client.missing([of]) == [of], what
    good = compress(data)
    assert await served.client.write(chunks(packed(upload_name(of)), good, size=20_000)) == len(good)


async def test_a_frame_that_needs_too_much_memory_is_refused(kept):
    data = text(100_000)
    of = digest(data)
    head = b"\x28\xb5\x2f\xfd\x00" + bytes([(30 - 10) << 3])  # a window of 1 GiB
    frames = head + (1 | len(data[:1000]) << 3).to_bytes(3, "little") + data[:1000]
    await fails(INVALID, kept.client.write(chunks(packed(upload_name(of)), frames, size=1 << 20)))


async def test_offsets_of_a_packed_upload_count_packed_bytes_and_it_cannot_be_resumed(kept):
    data = text(500_000)
    of = digest(data)
    frames = compress(data)
    name = packed(upload_name(of))
    messages = chunks(name, frames, size=50_000)
    await fails(INVALID, kept.client.write(messages[1:]))
    gap = [messages[0], *messages[2:]]
    assert "after 50000 packed bytes" in await fails(INVALID, kept.client.write(gap))
    assert "without finish_write" in await fails(INVALID, kept.client.write(messages[:-1]))
    assert await kept.client.status(name) == (0, False)
    assert await kept.client.write(messages) == len(frames)


async def test_wrong_packed_reads_have_one_right_status(kept):
    data = text(1000)
    of = await kept.client.put(data)
    name = packed(read_name(of))
    await fails(INVALID, kept.client.read(name, limit=5))
    await fails(INVALID, kept.client.read(name, offset=-1))
    await fails(grpc.StatusCode.OUT_OF_RANGE, kept.client.read(name, offset=1001))
    await fails(grpc.StatusCode.NOT_FOUND, kept.client.read(packed(read_name(digest(b"never")))))
    await fails(INVALID, kept.client.read(name.replace("zstd", "deflate")))


async def test_batches_are_packed_where_that_is_accepted_and_makes_them_smaller(served):
    blobs = [text(5), text(5000), os.urandom(5000), text(200_000)]
    request = REAPI.BatchUpdateBlobsRequest()
    for data in blobs:
        request.requests.add(digest=digest(data), data=compress(data), compressor=ZSTD)
    assert [each.status.code for each in await served.client.update_request(request)] == [0] * 4
    plain = await served.client.batch_read(map(digest, blobs))
    assert [(each.compressor, each.data) for each in plain] == [(0, data) for data in blobs]
    got = await served.client.batch_read(map(digest, blobs), acceptable_compressors=[ZSTD])
    assert [each.compressor for each in got] == [0, ZSTD, 0, ZSTD]
    for each, data in zip(got, blobs, strict=True):
        assert (decompress(each.data, len(data)) if each.compressor else each.data) == data
        assert each.digest == digest(data)
    [missing] = await served.client.batch_read([digest(b"never")], acceptable_compressors=[ZSTD])
    assert missing.status.code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_what_a_batch_unpacks_to_is_bounded(kept):
    blobs = [bytes([at]) * (4 << 20) for at in range(10)]
    request = REAPI.BatchUpdateBlobsRequest()
    for data in blobs:
        request.requests.add(digest=digest(data), data=compress(data), compressor=ZSTD)
    request.requests.add(digest=digest(b"plain"), data=b"plain")
    *statuses, plain = [each.status for each in await kept.client.update_request(request)]
    assert [each.code for each in statuses] == [0] * 7 + [INVALID.value[0]] * 3
    assert "by itself" in statuses[-1].message
    assert plain.code == 0


async def test_where_too_many_pack_at_once_frames_are_sent_unpacked(monkeypatch):
    monkeypatch.setattr(packed_reads, "MAX_PACKING", 0)
    async with serving() as served:
        data = text(900_000)
        of = digest(data)
        await served.client.write(chunks(upload_name(of), data, size=1 << 20))
        got = b"".join(await served.client.read(packed(read_name(of))))
        assert decompress(got, len(data)) == data
        assert len(data) < len(got) < len(data) + 1000


async def test_a_slow_reader_of_a_packed_blob_gets_it_whole(kept, monkeypatch):
    """It takes nothing until the server has closed its file, and then all."""
    monkeypatch.setattr(packed_reads, "PATIENCE_S", 0.05)
    data = os.urandom(8_000_000)
    of = digest(data)
    await kept.client.write(chunks(upload_name(of), data, size=1 << 20))
    async with connect(kept.port, **{"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 65536}) as client:
        call = client.channel.unary_stream(
            BYTES + "Read", lambda m: m.SerializeToString(), BYTESTREAM.ReadResponse.FromString
        )
        replies = call(BYTESTREAM.ReadRequest(resource_name=packed(read_name(of))), timeout=60)
        got = [await trio.to_thread.run_sync(lambda: next(replies).data)]
        with trio.fail_after(20):
            while kept.bytestream.statistics()["reads_open"]:
                await trio.sleep(0.01)
        got += await trio.to_thread.run_sync(lambda: [reply.data for reply in replies])
    assert decompress(b"".join(got), len(data)) == data
    assert kept.bytestream.statistics()["reads_reopened"] >= 1


async def test_a_client_that_leaves_a_packed_upload_leaves_nothing(kept):
    data = os.urandom(3_000_000)
    of = digest(data)
    first, *rest = chunks(packed(upload_name(of)), compress(data), size=600_000)
    call = kept.client.channel.stream_unary(
        BYTES + "Write", lambda m: m.SerializeToString(), BYTESTREAM.WriteResponse.FromString
    )
    waits = queue.SimpleQueue()
    waits.put(first)
    future = call.future(iter(waits.get, None), timeout=60)
    with trio.fail_after(20):
        while not kept.bytestream.statistics()["uploads_unpacking"]:
            await trio.sleep(0.01)
        future.cancel()
        waits.put(None)
        while kept.bytestream.statistics()["uploads_open"] or kept.bytestream.statistics()["uploads_unpacking"]:
            await trio.sleep(0.01)
    assert await kept.client.missing([of]) == [of]
