"""The format, held against objects made by hand from its description."""

import struct

import pytest
import trio

from nl.plugin import ActionKey, CodingError, DigestFunction, ForeignKey, digest_of
from nl.stores.compression.lz4_format import Lz4Decoder, Lz4Encoder
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


def test_the_vector_is_what_is_made_by_hand_and_what_the_encoder_makes():
    assert by_hand(DATA, 10) == VECTOR
    encoder = Lz4Encoder(10, size=26)
    assert b"".join([*encoder.encode([DATA[:3], DATA[3:25], DATA[25:]]), *encoder.finish()]) == VECTOR


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize("most", [1, 15, 1000])
def test_the_vector_is_decoded_however_it_comes(step, most):
    assert decode(VECTOR, step=step, most=most) == DATA


def test_sizes_around_whole_blocks():
    for size in (0, 1, 9, 10, 11, 20, 21):
        data = DATA[:size]
        encoder = Lz4Encoder(10, size=size)
        encoded = b"".join([*encoder.encode([data]), *encoder.finish()])
        assert encoded == by_hand(data, 10)
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


@pytest.mark.parametrize("length", range(len(VECTOR)))
def test_a_cut_is_an_error(length):
    with pytest.raises(CodingError):
        decode(VECTOR[:length])


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
