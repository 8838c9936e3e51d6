"""Readers that encode and decode, by coders whose every step can be seen."""

import os

import pytest
import trio

from nl.blob.coding import BATCH, OUTPUT, CodingError, DecodingReader, Encoder, EncodingReader, Ready, gather
from nl.blob.zstd import RawEncoder, ZstdDecoder, ZstdEncoder, compress, decompress
from nl.errors import InvalidRequestError
from nl.plugin import CHUNK, BytesReader, UnavailableError
from nl.testing import FailingReader, PartsReader, drain, split
from nl.testing.observing import make_blob, same


def decoding(encoded, size, **more):
    reader = encoded if hasattr(encoded, "receive_parts") else BytesReader(encoded)
    return DecodingReader(reader, ZstdDecoder(), size=size, failure=InvalidRequestError, **more)


@pytest.mark.parametrize("size", [0, 1, 1000, BATCH - 1, BATCH + 1, 3_000_000])
@pytest.mark.parametrize("step", [999, CHUNK])
async def test_what_is_encoded_decodes_to_what_it_was_however_it_comes(size, step):
    data = make_blob(size // 2) + bytes(size - size // 2)
    for encoder in (ZstdEncoder(), ZstdEncoder(19, size=size), RawEncoder(size=size)):
        encoded = await drain(EncodingReader(PartsReader(split(data, step)), encoder))
        assert same(decompress(encoded, size), data)
        for known in (size, -1):
            assert same(await drain(decoding(PartsReader(split(encoded, step)), known), 7777), data)


async def test_a_batch_is_coded_in_a_thread_and_what_is_small_where_it_is():
    places = []

    class Noting(Encoder):
        def encode(self, parts):
            places.append((sum(map(len, parts)), trio.lowlevel.in_trio_run()))
            return list(map(bytes, parts))

        def finish(self):
            return []

    data = make_blob(BATCH + 5000)
    assert same(await drain(EncodingReader(PartsReader(split(data, 1000)), Noting())), data)
    assert all(size >= BATCH and not here for size, here in places[:-1])
    assert places[-1][1]
    assert len(places) == 2


async def test_the_last_bytes_come_when_all_is_right():
    data = make_blob(700_000)
    seen = bytearray()

    def refuse():
        assert seen == data
        raise InvalidRequestError("not this one")

    reader = decoding(compress(data), len(data), note=seen.extend, compare=refuse)
    got = 0
    with pytest.raises(InvalidRequestError, match="not this one"):
        while parts := await reader.receive_parts():
            got += sum(map(len, parts))
    assert got < len(data)


@pytest.mark.parametrize("size", [99_999, 100_001, 0])
async def test_another_size_than_expected_is_wrong(size):
    with pytest.raises(InvalidRequestError, match="bytes come out of it"):
        await drain(decoding(compress(bytes(100_000)), size))


async def test_a_bomb_is_noticed_when_it_exceeds_its_size_not_when_it_is_unpacked():
    bomb = compress(bytes(1 << 30))
    notes = []
    with pytest.raises(InvalidRequestError):
        await drain(decoding(bomb, 1_000_000, note=lambda part: notes.append(len(part))))
    assert sum(notes) <= 1_000_000 + OUTPUT


async def test_errors_of_the_source_pass_through():
    encoded = compress(make_blob(500_000))
    source = FailingReader([encoded[:100_000]], UnavailableError("cut"), size=len(encoded))
    with pytest.raises(UnavailableError, match="cut"):
        await drain(decoding(source, 500_000))


def test_thousands_of_empty_frames_are_not_worth_the_work():
    assert decompress(compress(b"") * 900 + compress(b"end"), 3) == b"end"
    with pytest.raises(CodingError, match="far too many"):
        decompress(compress(b"") * 20_000, 0)


def test_frames_that_say_nothing_may_stand_between_those_that_do():
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    assert decompress(skipped + compress(b"one") + skipped + compress(b"two") + skipped, 6) == b"onetwo"


@pytest.mark.parametrize(
    "wrong", [b"", b"\x28\xb5\x2f\xfd", compress(b"x" * 100)[:-1], b"garbage", compress(b"x") + b"y"]
)
def test_what_is_no_whole_frame_is_an_error(wrong):
    with pytest.raises(CodingError):
        decompress(wrong, 1 if wrong.endswith(b"y") else 100)


async def test_gathering_copies_only_what_trickles_in():
    whole = os.urandom(BATCH)
    (view,) = await gather(BytesReader(whole))
    assert view.obj is whole
    parts = await gather(PartsReader(split(whole, 1000)))
    assert same(b"".join(parts), whole)


def test_ready_buffers_are_handed_out_in_any_pieces():
    ready = Ready()
    ready.put([b"abc", b"", b"defg"])
    got = []
    while ready:
        got.append(b"".join(ready.take(2)))
    assert got == [b"ab", b"cd", b"ef", b"g"]
