"""The format, held against objects made by hand from its description."""

import struct

import pytest
import trio
from blake3 import blake3

from nl.plugin import CHUNK, ActionKey, CodingError, DigestFunction, ForeignKey, digest_of
from nl.stores.compression.lz4_format import (
    HEAD_BYTES,
    TAIL_BYTES,
    BlocksDecoder,
    Lz4Decoder,
    Lz4Encoder,
    decoded_size,
)
from nl.stores.compression.lz4_seal import Blocks, seal_bytes
from nl.stores.compression.options import CompressionAlgorithm, Lz4Options
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.testing import BareContext, find, read, started
from nl.testing.observing import same
from tests.unit.stores.compression.kinds import make_store


def literal(data):
    """An LZ4 block that holds `data`, which is short, as literals: a token, the bytes."""
    assert len(data) < 15
    return bytes([len(data) << 4]) + data


def by_hand(data, block_size, *, kind=0, size=None):
    blocks = [literal(data[at : at + block_size]) for at in range(0, len(data), block_size)]
    lengths = [len(block) for block in blocks[:-1]]
    header = b"\x01" + struct.pack("<I", block_size) + struct.pack("<I", kind)
    header += struct.pack("<Q", len(data) if size is None else size)
    body = b"".join(b"\x00" + struct.pack("<I", len(block)) + block for block in blocks)
    footer = struct.pack("<Q", len(lengths)) + b"".join(struct.pack("<I", each) for each in lengths)
    footer += struct.pack("<I", len(lengths)) + struct.pack("<Q", len(data)) + struct.pack("<I", block_size) + b"\x01"
    return header + body + b"\x01" + struct.pack("<I", len(footer)) + footer


DATA = b"abcdefghijklmnopqrstuvwxyz"
VECTOR = bytes.fromhex(
    "01 0a000000 00000000 1a00000000000000"
    "00 0b000000 a0 6162636465666768696a"
    "00 0b000000 a0 6b6c6d6e6f7071727374"
    "00 07000000 60 75767778797a"
    "01 21000000 0200000000000000 0b000000 0b000000 02000000 1a00000000000000 0a000000 01"
)


def decode(data, *, most=1 << 20, step=1 << 20, max_block_size=1 << 16):
    decoder = Lz4Decoder(max_block_size=max_block_size)
    out = []
    for at in range(0, len(data), step):
        assert decoder.needs_input
        decoder.feed([data[at : at + step]])
        while not decoder.needs_input:
            out += decoder.decode(most)
    decoder.finish()
    return b"".join(out)


def sealed_by_hand(data, block_size):
    """What this kind of store writes."""
    blocks = [literal(data[at : at + block_size]) for at in range(0, len(data), block_size)]
    header = b"\x02" + struct.pack("<IIQ", block_size, 0, len(data))
    body = b"".join(b"\x00" + struct.pack("<I", len(block)) + block for block in blocks)
    seal = b"".join(struct.pack("<I", len(block)) + blake3(block).digest(16) for block in blocks)
    end = struct.pack("<IQIB", len(blocks), len(data), block_size, 2)
    seal += blake3(seal + end).digest(16) + end
    return header + body + b"\x02" + struct.pack("<I", len(seal)) + seal


SEALED = sealed_by_hand(DATA, 10)


def test_the_vector_is_what_is_made_by_hand():
    assert by_hand(DATA, 10) == VECTOR


@pytest.mark.parametrize(("sealed", "expected"), [(False, VECTOR), (True, SEALED)], ids=["NativeLink's", "sealed"])
def test_the_encoder_makes_the_vectors_however_the_blob_comes(sealed, expected):
    encoder = Lz4Encoder(10, size=26, sealed=sealed)
    assert b"".join([*encoder.encode([DATA[:3], DATA[3:25], DATA[25:]]), *encoder.finish()]) == expected


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize("most", [1, 15, 1000])
@pytest.mark.parametrize("data", [VECTOR, SEALED], ids=["NativeLink's", "sealed"])
def test_the_vectors_are_decoded_however_they_come(data, step, most):
    assert decode(data, step=step, most=most) == DATA


def test_the_end_of_either_tells_the_decoded_size():
    assert decoded_size(VECTOR[-TAIL_BYTES:]) == decoded_size(SEALED[-TAIL_BYTES:]) == 26
    with pytest.raises(CodingError, match="its last byte is 3"):
        decoded_size(SEALED[-TAIL_BYTES:-1] + b"\x03")


def test_the_seal_tells_where_each_block_is_and_checks_it():
    blocks = Blocks(SEALED[-seal_bytes(26, 10) :], head_bytes=HEAD_BYTES, stored_size=len(SEALED))
    assert (blocks.size, blocks.block_size) == (26, 10)
    assert [blocks.around(*each) for each in ((0, 1), (9, 1), (9, 2), (10, 10), (0, 26), (25, 1))] == [
        range(1), range(1), range(2), range(1, 2), range(3), range(2, 3),
    ]  # fmt: skip
    assert (blocks.decoded(range(1, 3)), blocks.decoded(range(3))) == (16, 26)
    for number in range(3):
        block = literal(DATA[10 * number : 10 * number + 10])
        assert SEALED[blocks.start(number) : blocks.start(number + 1)] == b"\0" + struct.pack("<I", len(block)) + block
        blocks.check(number, block)
        for wrong in (block[:-1], block + b"x", bytes([block[0] ^ 1]) + block[1:]):
            with pytest.raises(CodingError, match=f"its block {number} is not what it was"):
                blocks.check(number, wrong)


@pytest.mark.parametrize("at", range(len(SEALED) - seal_bytes(26, 10) + 5, len(SEALED)))
def test_a_changed_seal_is_never_believed(at):
    wrong = SEALED[:at] + bytes([SEALED[at] ^ 4]) + SEALED[at + 1 :]
    with pytest.raises(CodingError):
        Blocks(wrong[-seal_bytes(26, 10) :], head_bytes=HEAD_BYTES, stored_size=len(SEALED))


def test_a_seal_is_that_of_its_object():
    tail = SEALED[-seal_bytes(26, 10) :]
    for wrong, stored in ((tail, len(SEALED) + 1), (tail[20:], len(SEALED)), (tail[-5:], len(SEALED)),
                          (VECTOR[-len(tail) :], len(VECTOR))):
        with pytest.raises(CodingError):
            Blocks(wrong, head_bytes=HEAD_BYTES, stored_size=stored)
    with pytest.raises(CodingError, match="longer than expected"):
        Blocks(tail[30:], head_bytes=HEAD_BYTES, stored_size=len(SEALED))


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("most", [1, 1000])
def test_some_blocks_are_decoded_and_no_others(step, most):
    blocks = Blocks(SEALED[-seal_bytes(26, 10) :], head_bytes=HEAD_BYTES, stored_size=len(SEALED))
    for numbers in (range(1), range(1, 3), range(3)):
        part = SEALED[blocks.start(numbers.start) : blocks.start(numbers.stop)]
        decoder, out = BlocksDecoder(blocks, numbers), b""
        for at in range(0, len(part), step):
            decoder.feed([part[at : at + step]])
            while not decoder.needs_input:
                out += b"".join(decoder.decode(most))
        decoder.finish()
        assert out == DATA[10 * numbers.start : 10 * numbers.stop]
    decoder = BlocksDecoder(blocks, range(2))
    decoder.feed([SEALED[blocks.start(0) : blocks.start(2) - 1]])
    decoder.decode(1000)
    with pytest.raises(CodingError, match="not where its seal says"):
        decoder.finish()


@pytest.mark.parametrize(("block_size", "quick"), [(CHUNK, True), (CHUNK + 1, False)])
def test_blocks_that_take_longer_than_a_hop_to_a_thread_are_left_to_one(block_size, quick):
    encoder = Lz4Encoder(block_size, size=10, sealed=True)
    whole = b"".join([*encoder.encode([DATA[:10]]), *encoder.finish()])
    for step in (1, HEAD_BYTES, len(whole)):
        decoder = Lz4Decoder(max_block_size=block_size)
        assert not decoder.is_quick
        for at in range(0, len(whole) - 1, step):
            decoder.feed([whole[at : at + step]])
            if at + step >= HEAD_BYTES:
                assert decoder.is_quick is quick
            decoder.decode(1000)
        assert decoder.is_quick is quick
    blocks = Blocks(whole[-seal_bytes(10, block_size) :], head_bytes=HEAD_BYTES, stored_size=len(whole))
    assert BlocksDecoder(blocks, range(1)).is_quick is quick


def test_what_nativelink_has_written_is_hashed_besides_and_left_to_a_thread():
    decoder = Lz4Decoder(max_block_size=10)
    decoder.feed([VECTOR])
    assert not decoder.is_quick
    decoder.decode(1)
    assert not decoder.is_quick and not decoder.is_sealed


def test_sizes_around_whole_blocks():
    for size in (0, 1, 9, 10, 11, 20, 21):
        data = DATA[:size]
        for sealed, expected in ((False, by_hand(data, 10)), (True, sealed_by_hand(data, 10))):
            encoder = Lz4Encoder(10, size=size, sealed=sealed)
            encoded = b"".join([*encoder.encode([data]), *encoder.finish()])
            assert encoded == expected
            assert decode(encoded) == data


def test_an_empty_last_block_and_a_size_that_was_only_an_upper_bound_are_read():
    whole = by_hand(DATA[:20], 10, kind=1, size=999)
    assert decode(whole) == DATA[:20]
    blocks = [literal(DATA[:10]), literal(b"")]
    header = b"\x01" + struct.pack("<IIQ", 10, 0, 10)
    body = b"".join(b"\x00" + struct.pack("<I", len(block)) + block for block in blocks)
    footer = struct.pack("<QIIQIB", 1, 11, 1, 10, 10, 1)
    assert decode(header + body + b"\x01" + struct.pack("<I", len(footer)) + footer) == DATA[:10]


@pytest.mark.parametrize("at", range(len(VECTOR)))
def test_a_changed_byte_is_an_error_or_shows_in_what_comes_out_or_says_nothing(at):
    """What says nothing: the kind of the size, where the size is right; half of a block's last token."""
    mute = {5: 0xFF, 22: 0x0F, 38: 0x0F, 54: 0x0F}.get(at, 0)
    for bit in range(8):
        wrong = VECTOR[:at] + bytes([VECTOR[at] ^ (1 << bit)]) + VECTOR[at + 1 :]
        try:
            assert decode(wrong) != DATA or mute & (1 << bit)
        except CodingError:
            pass


@pytest.mark.parametrize("at", range(len(SEALED)))
def test_a_changed_byte_of_a_sealed_object_is_an_error(at):
    """But for the kind of the size in its header, where the size is right."""
    for bit in range(8):
        wrong = SEALED[:at] + bytes([SEALED[at] ^ (1 << bit)]) + SEALED[at + 1 :]
        if (at, bit) == (5, 0):
            assert decode(wrong) == DATA
            continue
        with pytest.raises(CodingError):
            decode(wrong)


@pytest.mark.parametrize("whole", [VECTOR, SEALED], ids=["NativeLink's", "sealed"])
def test_a_cut_is_an_error(whole):
    for length in range(len(whole)):
        with pytest.raises(CodingError):
            decode(whole[:length])
    with pytest.raises(CodingError):
        decode(whole + b"x")


@pytest.mark.parametrize("make", [by_hand, sealed_by_hand])
@pytest.mark.parametrize("blocks", [0, 2])
def test_nothing_may_follow_the_end_not_even_another(make, blocks):
    whole = make(DATA[: 10 * blocks], 10)
    end = whole[HEAD_BYTES + 16 * blocks :]
    assert end[0] == whole[0], "a footer, or a seal"
    for extra in (end, b"\x00" + struct.pack("<I", 3) + literal(b"zz") + end, bytes(5)):
        decoder = Lz4Decoder(max_block_size=1 << 16)
        decoder.feed([whole + extra])
        with pytest.raises(CodingError, match="follows"):
            while not decoder.needs_input:
                decoder.decode(1 << 20)
            decoder.finish()


def test_a_seal_of_blocks_without_a_size_is_none():
    with pytest.raises(CodingError, match="does not end with a seal"):
        Blocks(SEALED[:-5] + bytes(4) + SEALED[-1:], head_bytes=HEAD_BYTES, stored_size=len(SEALED))


def test_a_seal_tells_where_blocks_are_beyond_four_gibibytes():
    count, size = 70, 64 << 20
    entries, end = (struct.pack("<I", size) + bytes(16)) * count, struct.pack("<IQIB", count, count * size, size, 2)
    content = entries + blake3(entries + end).digest(16) + end
    seal = HEAD_BYTES + count * (5 + size)
    blocks = Blocks(content, head_bytes=HEAD_BYTES, stored_size=seal + 5 + len(content))
    assert blocks.start(count) == seal > 4 << 30


def test_a_header_that_makes_no_sense_is_refused_at_once():
    for wrong in (
        b"\x01" + struct.pack("<IIQ", 0, 0, 26), b"\x01" + struct.pack("<IIQ", 10, 2, 26),
        b"\x03" + struct.pack("<IIQ", 10, 0, 26),
    ):  # fmt: skip
        with pytest.raises(CodingError, match="does not begin like"):
            decode(wrong + VECTOR[HEAD_BYTES:])


def test_a_size_in_the_header_that_is_too_small_contradicts_the_end():
    for kind, size in ((0, 25), (0, 27), (1, 25)):
        with pytest.raises(CodingError, match="header contradicts"):
            decode(by_hand(DATA, 10, kind=kind, size=size))
    assert decode(by_hand(DATA, 10, kind=1, size=26)) == DATA


def test_nothing_is_waited_for_that_no_object_can_have():
    """Lengths are checked when they are read, not when so many bytes have come."""
    header = b"\x01" + struct.pack("<IIQ", 1024, 1, 1 << 40)
    for frame in (b"\x00" + struct.pack("<I", 1 << 31), b"\x01" + struct.pack("<I", 1 << 31), b"\x02\0\0\0\0"):
        decoder = Lz4Decoder(max_block_size=1024)
        decoder.feed([header + frame])
        with pytest.raises(CodingError):
            decoder.decode(1000)
    decoder = Lz4Decoder(max_block_size=1024)
    decoder.feed([b"\x01" + struct.pack("<IIQ", 1 << 31, 1, 1 << 40)])
    with pytest.raises(CodingError, match="max_decode_block_size"):
        decoder.decode(1000)


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_a_folder_that_nativelink_has_filled_opens(tmp_path, function):
    """Blobs under the plain names of their digests; what is written is found beside them, and they are left alone."""
    digest = digest_of(DATA, function)
    folder = tmp_path / "content" / "d"
    folder.mkdir(parents=True)
    (folder / f"{digest.hash}-{digest.size}").write_bytes(VECTOR)
    action = digest_of(b"an action")
    (folder / f"{action.hash}-{action.size}").write_bytes(by_hand(b"a result", 8))
    options = FilesystemOptions(content_path=str(tmp_path / "content"), temp_path=str(tmp_path / "temp"))
    for block_size in (1024, 4096):
        context = BareContext()
        backend = FilesystemStore(options, context)
        store = make_store(CompressionAlgorithm(lz4=Lz4Options(block_size=block_size)), context, backend)
        async with started(store, context):
            with trio.fail_after(20):
                while backend.statistics()["state"] != "exact":
                    await trio.sleep(0.01)
            assert await find(store, digest) == DATA
            assert await read(store, digest, offset=5, length=7) == DATA[5:12]
            assert await find(store, ActionKey(*action)) == b"a result"
            assert await store.get_many([digest]) == [DATA]
            await store.put(digest_of(b"new"), b"new")
            assert await find(store, digest_of(b"new")) == b"new"
            assert backend.statistics()["corrupt_blobs"] == 0
    assert (folder / f"{digest.hash}-{digest.size}").read_bytes() == VECTOR


async def test_a_bucket_that_nativelink_has_filled_opens_unless_that_is_turned_off():
    store = make_store("lz4")
    digest = digest_of(DATA)
    await store.backend.put(ForeignKey(digest.hash, digest.size), VECTOR)
    assert same(await find(store, digest), DATA)
    options = Lz4Options(find_nativelink_blobs=False)
    assert await find(make_store(CompressionAlgorithm(lz4=options), backend=store.backend), digest) is None
