"""Uploads in parts of the caller's size, and buffers cut where the caller says: nothing is lost, nothing too much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.blob.promised import PromisedSource
from nl.blob.reader import BytesReader, read_all, split_parts
from nl.errors import UploadMismatchError
from nl.testing import PartsReader, split

DATA = bytes(range(200))


@given(st.integers(1, 70), st.integers(1, 300), st.booleans())
async def test_parts_are_as_large_as_asked_but_for_the_last(step, room, known):
    source = PromisedSource(PartsReader(split(DATA, step)), len(DATA) if known else -1, "x")
    parts = []
    while not source.ended:
        parts.append(bytes(await source.take(bytearray(room))))
    assert b"".join(parts) == DATA
    assert all(len(part) == room for part in parts[:-1])
    assert source.taken == len(DATA)


@pytest.mark.parametrize(("promised", "problem"), [(199, "more than the 199 bytes"), (201, "ended after 200 bytes")])
async def test_what_is_not_as_promised_is_a_mismatch(promised, problem):
    source = PromisedSource(PartsReader(split(DATA, 50), size=-1), promised, "blob")
    with pytest.raises(UploadMismatchError, match=problem):
        while not source.ended:
            await source.take(bytearray(50))


async def test_it_begins_again_where_its_reader_can():
    source = PromisedSource(BytesReader(DATA), len(DATA), "x")
    await source.take(bytearray(150))
    assert await source.start_again()
    assert bytes(await source.take(bytearray(200))) == DATA and source.ended
    assert not await PromisedSource(PartsReader([DATA]), len(DATA), "x").start_again()


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=6), st.integers(0, 60))
def test_buffers_are_cut_at_a_byte(parts, count):
    head, rest = (b"".join(map(bytes, side)) for side in split_parts(parts, count))
    whole = b"".join(parts)
    assert (head, rest) == (whole[:count], whole[count:])


@pytest.mark.parametrize("size", [200, -1])
async def test_it_begins_again_also_after_its_end(size):
    source = PromisedSource(BytesReader(DATA), size, "x")
    for _ in range(2):
        assert bytes(await source.take(bytearray(150))) == DATA[:150] and source.taken == 150 and not source.ended
        assert bytes(await source.take(bytearray(150))) == DATA[150:] and source.taken == 200 and source.ended
        assert await source.start_again()
        assert (source.taken, source.ended) == (0, False)


async def test_a_promise_of_nothing_is_kept_by_an_empty_reader_only():
    source = PromisedSource(BytesReader(b""), 0, "x")
    assert await source.take(bytearray(5)) == b"" and source.ended
    with pytest.raises(UploadMismatchError, match="^x: the upload has more than the 0 bytes promised"):
        await PromisedSource(BytesReader(b"a"), 0, "x").take(bytearray(5))


async def test_a_buffer_of_the_caller_is_filled_in_place_and_only_cut_at_the_end():
    source = PromisedSource(PartsReader(split(DATA, 7)), 200, "x")
    buffer = bytearray(150)
    assert await source.take(buffer) is buffer and len(buffer) == 150
    assert await source.take(buffer) is buffer and len(buffer) == 50


def test_cutting_buffers_copies_nothing():
    parts = [bytes(10), bytes(10)]
    head, rest = split_parts(parts, 15)
    assert [memoryview(each).obj for each in (*head, *rest)] == [*parts, parts[1]]
    assert all(memoryview(each).obj is parts[1] for each in (head[1], rest[0]))
    assert split_parts(parts, 20) == (parts, ())
    assert split_parts(parts, 10) == (parts[:1], [memoryview(parts[1])])


async def test_what_is_read_whole_are_copies_of_buffers_that_are_used_again():
    assert await read_all(PartsReader([b"ab", b"cd", b"ef", b"gh", b"ij"])) == b"abcdefghij"
