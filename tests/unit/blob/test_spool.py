"""Readers that begin again: which can, for how long, and that they then deliver the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.blob.file import open_file
from nl.blob.hashing import digest_of
from nl.blob.reader import BytesReader
from nl.blob.spool import SpoolingReader
from nl.blob.verify import VerifyingReader
from nl.errors import InternalError, UploadMismatchError
from nl.testing import PartsReader, drain, split

DATA = bytes(range(200))


@given(step=st.integers(1, 60), before=st.lists(st.integers(1, 60), max_size=6), after=st.integers(1, 300))
async def test_what_has_been_read_comes_again(step, before, after):
    reader = SpoolingReader(PartsReader(split(DATA, step)), limit=len(DATA))
    for _ in range(2):
        for count in before:
            await reader.receive_parts(count)
        assert reader.can_rewind
        await reader.rewind()
    assert await drain(reader, after) == DATA
    await reader.rewind()
    assert await drain(reader, after) == DATA


async def test_beyond_its_limit_a_spool_keeps_nothing_and_goes_on():
    reader = SpoolingReader(PartsReader(split(DATA, 50)), limit=99)
    got = b"".join(map(bytes, await reader.receive_parts(90)))
    assert reader.can_rewind
    got += b"".join(map(bytes, await reader.receive_parts(10)))
    assert not reader.can_rewind
    with pytest.raises(InternalError, match="99 bytes"):
        await reader.rewind()
    assert got + await drain(reader, taken=len(got)) == DATA


async def test_a_checked_reader_begins_again_with_its_check(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    async with open_file(str(tmp_path / "file")) as file:
        for source in (BytesReader(DATA), file, SpoolingReader(PartsReader([DATA]), limit=1000)):
            reader = VerifyingReader(source, digest_of(DATA))
            await reader.receive_parts(50)
            await reader.rewind()
            assert await drain(reader) == DATA
            await reader.rewind()
            assert await drain(reader) == DATA
            wrong = VerifyingReader(source, digest_of(DATA[::-1]))
            for _ in range(2):
                assert wrong.can_rewind
                await wrong.rewind()
                with pytest.raises(UploadMismatchError):
                    await drain(wrong)


async def test_what_comes_once_says_so():
    for reader in (PartsReader([DATA]), VerifyingReader(PartsReader([DATA]), digest_of(DATA))):
        assert not reader.can_rewind
        with pytest.raises(InternalError, match="cannot be rewound"):
            await reader.rewind()


@pytest.mark.parametrize("size", [200, -1])
async def test_a_spool_knows_what_its_source_knows_and_asks_it_for_nothing_after_its_end(size):
    source = PartsReader([DATA], size=size)
    reader = SpoolingReader(source, limit=1000)
    assert reader.size == size
    for _ in range(3):
        assert await drain(reader) == DATA
        assert source.calls == 2
        await reader.rewind()


async def test_what_a_spool_keeps_are_copies_that_stay_what_they_were():
    reader = SpoolingReader(PartsReader(split(DATA, 50)), limit=200)
    await drain(reader)  # by now the source has scribbled over what it handed out
    await reader.rewind()
    first = await reader.receive_parts(10)
    assert await drain(reader, taken=10) == DATA[10:]
    assert b"".join(first) == DATA[:10]
