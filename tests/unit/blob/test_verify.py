import hashlib
import os

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from nl.blob.hashing import digest_of, hash_bytes
from nl.blob.reader import BytesReader
from nl.blob.verify import VerifyingReader, check_bytes
from nl.errors import UploadMismatchError
from nl.model.digest import EMPTY, Digest, DigestFunction
from nl.testing import PartsReader, drain, split

FUNCTIONS = list(DigestFunction)


@pytest.mark.parametrize("function", FUNCTIONS)
@given(parts=st.lists(st.binary(max_size=50)))
async def test_right_bytes_pass_unchanged_however_they_are_split(function, parts):
    data = b"".join(parts)
    assert await drain(VerifyingReader(PartsReader(parts, size=-1), digest_of(data, function))) == data


@pytest.mark.parametrize("function", FUNCTIONS)
@given(data=st.binary(min_size=1, max_size=200), at=st.integers(0, 199), bit=st.integers(0, 7), step=st.integers(1, 50))
async def test_any_flipped_bit_is_found(function, data, at, bit, step):
    wrong = bytearray(data)
    wrong[at % len(data)] ^= 1 << bit
    reader = VerifyingReader(PartsReader(split(bytes(wrong), step)), digest_of(data, function))
    with pytest.raises(UploadMismatchError, match=function.name):
        await drain(reader)


async def test_the_last_byte_of_wrong_bytes_is_never_handed_out():
    reader = VerifyingReader(PartsReader([b"abc", b"d"]), Digest("0" * 64, 4))
    assert len(await reader.receive_parts(3)) == 1
    with pytest.raises(UploadMismatchError):
        await reader.receive_parts(3)


async def test_too_many_bytes_are_refused_as_soon_as_they_come():
    source = PartsReader(split(os.urandom(1000), 10), size=-1)
    with pytest.raises(UploadMismatchError, match="more bytes"):
        await drain(VerifyingReader(source, Digest("0" * 64, 55)))
    assert source.calls < 10


async def test_a_source_that_ends_early_is_refused():
    digest = digest_of(b"abcdef")
    with pytest.raises(UploadMismatchError, match="ended after 3 bytes"):
        await drain(VerifyingReader(PartsReader([b"abc"], size=-1), digest))


@pytest.mark.parametrize("size", [5, 7])
def test_a_source_that_announces_another_size_is_refused_before_a_byte_is_read(size):
    with pytest.raises(UploadMismatchError, match=f"has {size} bytes"):
        VerifyingReader(BytesReader(bytes(size)), Digest("0" * 64, 6))


def test_a_size_of_zero_with_another_hash_is_refused():
    with pytest.raises(UploadMismatchError):
        VerifyingReader(BytesReader(b""), Digest("0" * 64, 0))


async def test_no_byte_is_copied():
    data = os.urandom(1000)
    (part,) = await VerifyingReader(BytesReader(data), digest_of(data)).receive_parts()
    assert part.obj is data


def test_hashes_are_those_of_the_reference_libraries():
    data = os.urandom(1000)
    assert hash_bytes(DigestFunction.SHA256, data) == hashlib.sha256(data).hexdigest()
    assert hash_bytes(DigestFunction.BLAKE3, memoryview(data)) == blake3(data).hexdigest()
    assert {function: digest_of(b"", function) for function in FUNCTIONS} == EMPTY


def test_whole_blobs_are_checked_the_same_way():
    digest = digest_of(b"abc")
    check_bytes(memoryview(b"abc"), digest)
    for function in FUNCTIONS:
        digest = digest_of(b"abc", function)
        check_bytes(memoryview(b"abc"), digest)
        for wrong, problem in ((b"abd", f"have the {function.name} hash"), (b"ab", "has 2 bytes"), (b"abcd", "has 4")):
            with pytest.raises(UploadMismatchError, match=f"^{digest}: the upload.* {problem}"):
                check_bytes(wrong, digest)


async def test_a_single_byte_too_many_is_refused_with_the_part_that_it_comes_in():
    for parts in ([b"abcd"], [b"abc", b"d"]):
        reader = VerifyingReader(PartsReader(parts, size=-1), digest_of(b"abc"))
        if len(parts) == 2:
            assert await reader.receive_parts(3)
        with pytest.raises(UploadMismatchError, match="more bytes than its digest says"):
            await reader.receive_parts()
