"""Readers that encode and decode, by coders whose every step can be seen."""

import os
import threading
import weakref

import pytest
import trio
import trio.testing

from nl.blob.coding import (
    BATCH,
    INLINE,
    OUTPUT,
    CodingError,
    Decoder,
    DecodingReader,
    Encoder,
    EncodingReader,
    Ready,
    code,
    gather,
)
from nl.blob.zstd import RawEncoder, ZstdDecoder, ZstdEncoder, compress, decompress, library
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
async def test_another_size_than_expected_is_wrong_and_never_handed_out(size):
    reader = decoding(compress(bytes(100_000)), size)
    got = 0
    with pytest.raises(InvalidRequestError, match="bytes come out of it"):
        while parts := await reader.receive_parts():
            got += sum(map(len, parts))
    assert got <= size


@pytest.mark.parametrize("size", [0, 1_000_000])
async def test_a_bomb_is_noticed_when_it_exceeds_its_size_not_when_it_is_unpacked(size):
    bomb = compress(bytes(1 << 27))
    notes = []
    with pytest.raises(InvalidRequestError):
        await drain(decoding(bomb, size, note=lambda part: notes.append(len(part))))
    assert sum(notes) <= size + OUTPUT < 2_000_000


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


# --- where coding is done, and how much is held


class Steps(Decoder):
    """Hands out what it was fed, and notes where it is asked to."""

    def __init__(self, places=None):
        self.places = [] if places is None else places
        self.input = b""
        self.fed = []
        self.ended = False

    def feed(self, parts):
        assert self.needs_input
        self.input = b"".join(parts)
        self.fed.append(len(self.input))

    @property
    def needs_input(self):
        return not self.input

    def decode(self, most):
        self.places.append((most, trio.lowlevel.in_trio_run()))
        piece, self.input = self.input[:most], self.input[most:]
        return [piece]

    def finish(self):
        self.ended = True


@pytest.mark.parametrize(("size", "here"), [(INLINE, True), (INLINE + 1, False)])
async def test_a_small_blob_is_decoded_where_it_is_and_any_other_in_a_thread(size, here):
    data = make_blob(size)
    for known in (size, -1):
        decoder = Steps()
        reader = DecodingReader(BytesReader(data), decoder, size=known, failure=InvalidRequestError)
        assert same(await drain(reader), data)
        assert decoder.ended
        assert decoder.places == [(OUTPUT, here and known >= 0)], "what is not known may become large"


async def test_a_decoder_says_how_much_pays_for_a_hop_and_how_much_may_come_of_it():
    class Larger(Steps):
        batch, output = 2 * BATCH, 3 * BATCH

    data, decoder = make_blob(5 * BATCH), Larger()
    reader = DecodingReader(BytesReader(data), decoder, size=len(data), failure=InvalidRequestError)
    assert same(await drain(reader), data)
    assert decoder.fed == [2 * BATCH, 2 * BATCH, BATCH]
    assert decoder.places == [(3 * BATCH, False)] * 3


async def test_an_encoder_says_how_much_pays_for_a_hop_too():
    class Larger(Encoder):
        batch = 3 * BATCH
        sizes: list[int] = []

        def encode(self, parts):
            self.sizes.append(sum(map(len, parts)))
            return list(map(bytes, parts))

        def finish(self):
            return []

    data = make_blob(4 * BATCH)
    assert same(await drain(EncodingReader(PartsReader(split(data, BATCH // 4)), Larger())), data)
    assert Larger.sizes == [3 * BATCH, BATCH]


async def test_a_small_blob_of_much_input_is_decoded_in_a_thread():
    decoder = Steps()
    reader = DecodingReader(BytesReader(bytes(INLINE + 1)), decoder, size=10, failure=InvalidRequestError)
    with pytest.raises(InvalidRequestError, match="more than 10 bytes"):
        await drain(reader)
    assert decoder.places == [(OUTPUT, False)]


@pytest.mark.parametrize("side", ["encoding", "decoding"])
async def test_threads_are_those_of_the_limiter_that_was_given(side):
    limiter = trio.CapacityLimiter(3)
    taken = []

    class Noting(Encoder):
        def encode(self, parts):
            taken.append(limiter.borrowed_tokens)
            return list(map(bytes, parts))

        def finish(self):
            taken.append(limiter.borrowed_tokens)
            return []

    class Asking(Steps):
        def decode(self, most):
            taken.append(limiter.borrowed_tokens)
            return super().decode(most)

    data = make_blob(2 * BATCH)
    reader = (
        EncodingReader(BytesReader(data), Noting(), threads=limiter) if side == "encoding" else
        DecodingReader(BytesReader(data), Asking(), size=len(data), failure=InvalidRequestError, threads=limiter)
    )  # fmt: skip
    assert same(await drain(reader), data)
    assert len(taken) >= 2 and set(taken) == {1}


async def test_what_is_coded_at_once_decides_where():
    for size, here in ((0, True), (INLINE, True), (INLINE + 1, False)):
        assert await code(trio.lowlevel.in_trio_run, size=size, threads=None) is here
    assert INLINE == 64 * 1024 and BATCH == 4 * INLINE, "a hop to a thread costs as much as coding so many"


async def test_coding_that_has_begun_is_waited_for_by_whoever_gives_up():
    """The coder is in use as long as its thread runs, and who gives up may use it, or close what it reads from."""
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        go_on.wait(60)
        ended.append(1)

    async with trio.open_nursery() as nursery:

        async def wait_for_it():
            try:
                await code(work, size=INLINE + 1, threads=None)
            finally:
                ended.append(2)

        nursery.start_soon(wait_for_it)
        await trio.to_thread.run_sync(begun.wait, 60)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert not ended
            go_on.set()
    assert ended == [1, 2]


async def test_what_is_gathered_is_a_batch_or_a_few_more_and_stays_valid():
    for size, step, expected in (
        (3 * BATCH, BATCH, [BATCH, BATCH, BATCH]),
        (2 * BATCH, BATCH - 1, [2 * BATCH - 2, 2]),
        (BATCH // 2, 1000, [BATCH // 2]),
    ):
        data = make_blob(size)
        source, got = PartsReader([data]), []

        class Stepping(PartsReader):
            async def receive_parts(self, max_bytes=CHUNK):
                return await source.receive_parts(min(max_bytes, step))  # noqa: B023

        reader = Stepping([], size=-1)
        while parts := await gather(reader):
            got.append(b"".join(parts))
        assert [len(each) for each in got] == expected
        assert same(b"".join(got), data)


async def test_what_comes_at_once_is_not_copied_however_large_a_batch_is():
    whole = make_blob(3 * BATCH)
    (view,) = await gather(BytesReader(whole), least=2 * BATCH)
    assert view.obj is whole and len(view) == 2 * BATCH


async def test_a_source_that_has_given_all_is_not_asked_for_more():
    source = PartsReader([b"abc"])
    assert b"".join(await gather(source)) == b"abc"
    assert source.calls == 1


async def test_what_was_taken_from_the_source_is_counted():
    reader = EncodingReader(PartsReader(split(bytes(3 * BATCH + 77), 1000)), ZstdEncoder())
    assert reader.taken == 0 and reader.size == -1
    await drain(reader)
    assert reader.taken == 3 * BATCH + 77


async def test_a_comparison_is_made_once_at_the_end_also_where_the_size_is_not_known():
    data = make_blob(100_000)
    for size in (len(data), -1):
        compared = []
        reader = decoding(compress(data), size, compare=lambda compared=compared: compared.append(1))
        assert same(await drain(reader), data)
        assert compared == [1]


async def test_what_is_missing_at_the_end_is_the_failure_of_whoever_knows_the_key():
    encoded = compress(make_blob(100_000))
    for wrong, size, problem in ((encoded[:-1], 100_000, "ends within a zstd frame"), (b"", 5, "no zstd frame in it")):
        with pytest.raises(InvalidRequestError, match=problem):
            await drain(decoding(wrong, size))
    with pytest.raises(InvalidRequestError, match="^100000 bytes come out of it, 100001 were expected$"):
        await drain(decoding(encoded, 100_001))


async def test_what_is_broken_in_the_middle_is_the_failure_of_whoever_knows_the_key_too():
    for wrong in (b"no frame at all", compress(make_blob(90_000)) + b"\xff" * 50):
        with pytest.raises(InvalidRequestError, match="not a zstd frame, or a broken one"):
            await drain(decoding(wrong, 100_000))


async def test_all_that_is_decoded_is_noted_in_however_many_buffers_it_comes():
    frames, noted = b"".join(compress(b"%d" % number) for number in range(20)), []
    reader = decoding(frames, 30, note=noted.append)
    assert await drain(reader) == b"".join(map(bytes, noted)) == b"".join(b"%d" % number for number in range(20))


@pytest.mark.parametrize("size", [100_000, -1])
async def test_a_comparison_that_has_failed_fails_again_and_never_lets_the_last_bytes_out(size):
    def compare():
        raise InvalidRequestError("not what its digest says")

    reader, got = decoding(compress(make_blob(100_000)), size, compare=compare), 0
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="not what"):
            while parts := await reader.receive_parts():
                got += sum(map(len, parts))
    assert size < 0 or not got


def test_what_is_ready_stays_valid_once_it_is_kept():
    lent = [bytearray(b"ab"), bytearray(b"cd"), bytearray(b"ef")]
    ready = Ready()
    ready.put(lent)
    assert b"".join(ready.take(3)) == b"abc"
    ready.keep()
    for each in lent:
        each[:] = b"\xee\xee"
    ready.put([b"g"])
    assert b"".join(ready.take(99)) == b"defg"
    assert not ready and ready.take(99) == []


def test_what_was_handed_out_is_not_held():
    class Held(bytearray):
        """Can be referred to weakly."""

    ready = Ready()
    first, second = Held(b"ab"), Held(b"cd")
    gone = weakref.ref(first)
    ready.put([first, second])
    del first
    assert ready.take(2) == [b"ab"]
    assert gone() is None
    for _ in range(1000):
        ready.put([b"x"])
        ready.take(1)
    assert len(ready._parts) < 10


# --- zstd


def test_a_frame_says_how_large_its_content_is_if_that_is_known():
    zstd = library()
    data = make_blob(5000)

    def said(encoder):
        frame = b"".join([*encoder.encode([data[:1000], data[1000:]]), *encoder.finish()])
        assert decompress(frame, 5000) == data
        return zstd.get_frame_info(frame).decompressed_size

    assert said(ZstdEncoder(size=5000)) == said(RawEncoder(size=5000)) == 5000
    assert said(ZstdEncoder()) is None
    assert zstd.get_frame_info(compress(data)).decompressed_size == 5000


def test_the_level_is_the_one_that_was_asked_for_and_else_the_fast_one():
    words = [make_blob(8, seed=n).hex().encode() for n in range(300)]
    data = b" ".join(words[n * n * 7 % 300] + words[n % 7] for n in range(5000))

    def size_at(**level):
        encoder = ZstdEncoder(**level)
        return len(b"".join([*encoder.encode([data]), *encoder.finish()]))

    assert size_at() == size_at(level=1) > size_at(level=19)
    assert len(compress(data)) == len(compress(data, 1)) > len(compress(data, 19))


def test_a_frame_that_needs_more_history_than_every_decoder_has_is_refused():
    zstd = library()
    data = make_blob(1000) * 20_000

    def frame(window_log):
        options = {zstd.CompressionParameter.window_log: window_log}
        compressor = zstd.ZstdCompressor(options=options)
        return compressor.compress(data) + compressor.flush()  # no size in it: or the window would be cut to that

    assert decompress(frame(23), len(data)) == data
    for wrong in (frame(24), compress(b"") + frame(24)):
        with pytest.raises(CodingError, match="not a zstd frame"):
            decompress(wrong, len(data))
    decoder = ZstdDecoder(window_log=24)
    decoder.feed([frame(24)])
    assert decoder.decode(10)


def test_raw_frames_cost_three_bytes_for_128_kib():
    data = make_blob(300 * 1024)
    encoder = RawEncoder(size=len(data))
    coded = encoder.encode([data])
    assert sum(map(len, coded)) == 14 + len(data) + 3 * 3
    assert all(part.obj is data for part in coded[1::2]), "and no copy"
    empty = RawEncoder(size=0)
    assert decompress(b"".join([*empty.encode([]), *empty.finish()]), 0) == b""


@pytest.mark.parametrize(("size", "problem"), [(2, "more than 2 bytes"), (4, "3 bytes come out of it, 4 were")])
def test_a_whole_blob_of_another_size_is_wrong(size, problem):
    with pytest.raises(CodingError, match=problem):
        decompress(compress(b"abc"), size)


def test_a_bomb_is_not_unpacked_either_where_a_blob_comes_whole(monkeypatch):
    made = []

    class Noting(ZstdDecoder):
        def decode(self, most):
            decoded = super().decode(most)
            made.append(sum(map(len, decoded)))
            return decoded

    monkeypatch.setattr("nl.blob.zstd.ZstdDecoder", Noting)
    with pytest.raises(CodingError, match="more than 1000 bytes"):
        decompress(compress(bytes(1 << 24)), 1000)
    assert sum(made) <= 1001


def test_a_whole_blob_whose_frame_does_not_end_is_wrong_even_if_all_its_bytes_are_there():
    encoder = RawEncoder(size=1000)
    data = make_blob(1000)
    *parts, end = encoder.encode([data]) + encoder.finish()
    assert decompress(b"".join([*parts, end]), 1000) == data
    with pytest.raises(CodingError, match="ends within a zstd frame"):
        decompress(b"".join(parts), 1000)
