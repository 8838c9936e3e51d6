import pytest
from hypothesis import given
from hypothesis import strategies as st

from nl.blob.slice import Opened, Opening, SliceReader, clamp, slice_bytes
from nl.errors import InternalError, InvalidRequestError, RangeError
from nl.testing import PartsReader, drain, split

RANGES = {"data": st.binary(max_size=60), "offset": st.integers(0, 60), "length": st.none() | st.integers(0, 100)}


@given(**RANGES, step=st.integers(1, 20), most=st.integers(1, 20))
async def test_both_ways_of_slicing_agree_with_python(data, offset, length, step, most):
    offset = min(offset, len(data))
    wanted = data[offset:] if length is None else data[offset : offset + length]
    assert await drain(slice_bytes(data, offset=offset, length=length), most) == wanted
    sliced = SliceReader(PartsReader(split(data, step)), offset=offset, length=length)
    assert sliced.size == len(wanted)
    assert await drain(sliced, most) == wanted


@pytest.mark.parametrize("offset", [-1, 11, 2**62])
def test_an_offset_outside_is_a_range_error(offset):
    for refuse in (lambda: clamp(10, offset, 1), lambda: slice_bytes(bytes(10), offset=offset)):
        with pytest.raises(RangeError):
            refuse()


def test_a_negative_length_is_the_callers_fault():
    with pytest.raises(InvalidRequestError):
        clamp(10, 0, -1)


def test_a_reader_of_unknown_size_is_not_sliced():
    with pytest.raises(InternalError):
        SliceReader(PartsReader([b"abc"], size=-1))


async def test_a_source_that_ends_before_its_size_is_an_error_not_a_short_read():
    for offset in (0, 5):
        with pytest.raises(InternalError):
            await drain(SliceReader(PartsReader([b"abc"], size=10), offset=offset))


async def test_opening_looks_only_when_it_is_entered():
    looked = []

    def find():
        looked.append(1)
        return slice_bytes(b"abc")

    opened = Opened(find)
    assert not looked
    async with opened as reader:
        assert await drain(reader) == b"abc"


async def test_opening_asks_when_it_is_entered_and_ends_once_what_was_opened_however_it_is_left():
    said = []

    async def end():
        said.append("end")

    async def find():
        said.append("find")
        return slice_bytes(b"abc"), end

    opened = Opening(find)
    assert said == []
    async with opened as reader:
        assert said == ["find"]
        assert await drain(reader) == b"abc"
    assert said == ["find", "end"]
    with pytest.raises(KeyError):
        async with Opening(find):
            raise KeyError
    assert said == ["find", "end"] * 2


async def test_where_nothing_is_to_be_ended_or_was_found_nothing_is():
    async def find():
        return slice_bytes(b"abc"), None

    async with Opening(find) as reader:
        assert await drain(reader) == b"abc"

    async def refuse():
        raise RangeError("beyond the end")

    with pytest.raises(RangeError):
        async with Opening(refuse):
            pass
