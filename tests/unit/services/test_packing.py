"""Blobs that come and go packed: what is taken, what is refused and how, and what is worth packing."""

import hashlib
import os

import pytest

from nl.blob.reader import BytesReader, read_all
from nl.blob.zstd import compress, decompress
from nl.errors import InvalidRequestError, UploadMismatchError
from nl.model.digest import Digest
from nl.pb.hot import WriteHead
from nl.services.packing import LEAST_PACKED, CheckedUpload, PackedTarget, PackedUpload, Packing, most_packed
from nl.services.write_messages import WriteMessage
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext

DATA = b"0123456789" * 30_000


def digest_of(data, size=None):
    return Digest(hashlib.sha256(data).hexdigest(), len(data) if size is None else size)


def plain_target():
    return PackedTarget.of(MemoryStore(MemoryOptions(), BareContext("CAS")))


@pytest.mark.parametrize(("size", "is_packed"), [(LEAST_PACKED - 1, False), (LEAST_PACKED, True), (5000, True)])
async def test_what_is_too_small_to_be_worth_it_comes_plain(size, is_packed):
    target, data = plain_target(), bytes(size)
    await target.store.put(digest_of(data), data)
    got, packed = await Packing().read(target, digest_of(data))
    assert packed is is_packed
    assert (decompress(got, size) if packed else got) == data


async def test_what_does_not_get_smaller_comes_plain():
    target, data = plain_target(), os.urandom(5000)
    await target.store.put(digest_of(data), data)
    assert await Packing().read(target, digest_of(data)) == (data, False)


def test_blobs_below_256_bytes_are_not_packed():
    assert LEAST_PACKED == 256


async def checked(data, digest, *, piece=1 << 20):
    upload = CheckedUpload(BytesReader(data), digest, threads=Packing().threads)
    got = b""
    while parts := await upload.receive_parts(piece):
        got += b"".join(parts)
    return got


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 100, 3000])
async def test_a_packed_upload_that_is_right_passes_as_it_is(piece, size):
    frames = compress(DATA[:size])
    assert await checked(frames, digest_of(DATA[:size]), piece=piece) == frames


async def test_so_does_a_large_one_in_several_frames():
    frames = compress(DATA[:100_000]) + compress(DATA[100_000:])
    assert await checked(frames, digest_of(DATA)) == frames


@pytest.mark.parametrize("beyond", [1, 1000])
async def test_one_that_unpacks_to_more_than_its_digest_says_is_refused(beyond):
    with pytest.raises(UploadMismatchError, match="unpacks to more bytes than its digest says"):
        await checked(compress(DATA), digest_of(DATA, len(DATA) - beyond))


async def test_one_that_unpacks_to_less_is_refused_with_both_sizes():
    with pytest.raises(UploadMismatchError, match="unpacks to 300000 bytes, its digest says 300001"):
        await checked(compress(DATA), digest_of(DATA, len(DATA) + 1))


async def test_one_that_unpacks_to_something_else_is_refused_with_what_it_is():
    other = DATA[:-1] + b"x"
    with pytest.raises(UploadMismatchError, match=f"have the SHA256 hash {digest_of(other).hash}"):
        await checked(compress(other), digest_of(DATA))


@pytest.mark.parametrize("frames", [b"no frame at all", compress(DATA)[:-1], b""])
async def test_one_that_is_broken_is_refused_by_its_digest(frames):
    with pytest.raises(InvalidRequestError, match=f"{digest_of(DATA).hash}.*: the upload is wrong: "):
        await checked(frames, digest_of(DATA))


class Messages:
    """The messages of a Write, one after the other."""

    def __init__(self, *messages):
        self._messages = list(messages)

    async def receive_message(self):
        return self._messages.pop(0) if self._messages else None


def message(data, offset, *, finish=False):
    head = WriteHead("", offset, finish, 0, len(data))
    return WriteMessage(head, None, size=len(data), first=[data] if data else [], rest=None)


def upload_of(first, *others):
    return PackedUpload(digest_of(DATA), Messages(*others), first)


async def test_the_messages_of_a_packed_upload_join_on_and_are_counted():
    upload = upload_of(message(b"abc", 0), message(b"", 3), message(b"de", 3), message(b"f", 5, finish=True))
    assert (upload.size, upload.committed) == (-1, 0)
    assert await read_all(upload) == b"abcdef"
    assert upload.committed == 6


async def test_one_that_comes_in_one_message_has_a_size():
    upload = upload_of(message(b"abc", 0, finish=True))
    assert upload.size == 3
    assert await read_all(upload) == b"abc"
    assert not await upload.receive_parts()


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_packed_upload_begins_at_its_beginning(offset):
    with pytest.raises(InvalidRequestError, match=f"write_offset {offset} came after 0 packed bytes; .*be resumed"):
        upload_of(message(b"abc", offset))


@pytest.mark.parametrize("offset", [0, 2, 4])
async def test_and_goes_on_where_it_is(offset):
    upload = upload_of(message(b"abc", 0), message(b"d", offset, finish=True))
    with pytest.raises(InvalidRequestError, match=f"write_offset {offset} came after 3 packed bytes"):
        await read_all(upload)


async def test_one_that_ends_too_early_is_told_how_much_came():
    with pytest.raises(InvalidRequestError, match="ended after 3 packed bytes without finish_write"):
        await read_all(upload_of(message(b"abc", 0)))


def padded(data, size):
    """The blob, packed, in `size` bytes: before it stands a frame that is to be skipped, and stands for nothing."""
    frame = compress(data)
    empty = size - len(frame) - 8
    return b"\x50\x2a\x4d\x18" + empty.to_bytes(4, "little") + bytes(empty) + frame


@pytest.mark.parametrize("beyond", [0, 1])
async def test_what_stands_for_nothing_is_not_kept_without_end(beyond):
    digest = digest_of(DATA)
    frames = padded(DATA, most_packed(digest) + beyond)
    assert 2 * len(DATA) < most_packed(digest) < 3 * len(DATA)
    upload = upload_of(message(frames[:9], 0), message(frames[9:], 9, finish=True))
    if beyond:
        for refused in (read_all(upload), Packing().unpack(frames, digest)):
            with pytest.raises(InvalidRequestError, match=f"packed form has more than {most_packed(digest)} bytes"):
                await refused
    else:
        assert await read_all(upload) == frames
        assert await Packing().unpack(frames, digest) == DATA
