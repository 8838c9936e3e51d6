"""Messages as bytes: cut into DATA frames without losing or copying; gzip, and never more than was allowed."""

import gzip

import pytest

from nl.errors import ExhaustedError, InvalidRequestError
from nl.rpc import frames as fr
from nl.rpc import messages

TEXT = bytes(range(256)) * 400


def test_what_others_have_packed_is_unpacked():
    assert messages.decompress(gzip.compress(TEXT), max_bytes=len(TEXT)) == TEXT
    assert messages.decompress(memoryview(gzip.compress(b"")), max_bytes=0) == b""


def test_one_byte_more_than_allowed_is_too_much():
    with pytest.raises(ExhaustedError, match=f"more than {len(TEXT) - 1} bytes"):
        messages.decompress(gzip.compress(TEXT), max_bytes=len(TEXT) - 1)


@pytest.mark.parametrize("broken", [
    b"", b"nonsense", gzip.compress(TEXT)[:-1], gzip.compress(TEXT) + b"x", gzip.compress(b"a") + gzip.compress(b"b"),
    gzip.compress(TEXT)[:-8] + bytes(8),
], ids=["nothing", "nonsense", "cut", "more behind it", "two members", "wrong checksum"])  # fmt: skip
def test_what_is_not_one_whole_stream_is_invalid(broken):
    with pytest.raises(InvalidRequestError, match="gzip"):
        messages.decompress(broken, max_bytes=len(TEXT))


@pytest.mark.parametrize("sizes", [[], [1], [100_000], [50_000, 50_000], [1] * 100])
def test_what_is_packed_is_one_stream_of_all_its_parts(sizes):
    parts = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    assert gzip.decompress(messages.compress(parts)) == b"".join(parts)


def parse(data):
    """Frames as (type, flags, payload)."""
    out, pos = [], 0
    while pos < len(data):
        high, low, kind, flags, _ = fr.HEADER.unpack_from(data, pos)
        stop = pos + fr.HEADER_SIZE + (high << 8 | low)
        out.append((kind, flags, data[pos + fr.HEADER_SIZE : stop]))
        pos = stop
    return out


@pytest.mark.parametrize("sizes", [[5, 40], [5, 1, 0, 100, 33], [5], [64], [5, 32, 27]])
@pytest.mark.parametrize("step", [1, 7, 32, 1000])
@pytest.mark.parametrize("end", [False, True])
def test_a_message_is_cut_into_frames_without_losing_or_copying(sizes, step, end):
    parts = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    cutter = messages.Cutter(parts)
    wire = b""
    while cutter.left:
        cut = cutter.cut(step, sid=3, max_frame=32, end_stream=end)
        frames = cut.parts
        wire += b"".join(frames)
        assert cut.sizes == [len(payload) for _, _, payload in parse(b"".join(frames))]
        assert all(memoryview(each).obj in parts for each in frames if isinstance(each, memoryview))
    cut = parse(wire)
    assert b"".join(payload for _, _, payload in cut) == b"".join(parts)
    assert all(0 < len(payload) <= 32 for _, _, payload in cut)
    assert [flags for _, flags, _ in cut] == [0] * (len(cut) - 1) + [int(end)]


@pytest.mark.parametrize("sent", range(120))
def test_a_cancelled_sender_completes_the_frame_it_began_and_drops_the_rest(sent):
    frames = messages.Cutter([b"p" * 5, b"x" * 70]).cut(75, sid=1, max_frame=32)
    wire = b"".join(frames.parts)
    sent = min(sent, len(wire))
    rest, dropped = frames.split(sent)
    kept = parse(wire[:sent] + rest)
    assert sum(len(payload) for _, _, payload in kept) + dropped == 75
    assert (wire[:sent] + rest) == wire[: sent + len(rest)]
