"""Action results at rest: readable by any protobuf parser, and no damaged one is ever taken for a result."""

from contextlib import asynccontextmanager

import pytest
import trio
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from nl.cas.action_results import (
    MAX_ACTION_RESULT_BYTES,
    check_size,
    drop_inlined,
    load_action_result,
    read_value,
    seal,
    store_action_result,
    unseal,
)
from nl.cas.large import READ_IN_PLACE_BYTES
from nl.errors import BlobNotFoundError, CorruptBlobError, ExhaustedError, TooLargeError
from nl.model.digest import ActionKey, Digest, DigestFunction
from nl.pb import reapi
from nl.pb.codec import decode, encode
from nl.plugin import CHUNK, MAX_WHOLE
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext, PartsReader, split

ACTION = Digest("ab" * 32, 142)
RESULT = encode(
    reapi.ActionResult(
        output_files=[
            reapi.OutputFile(path=f"out/{name}", digest=reapi.Digest(hash=name * 64, size_bytes=9)) for name in "abc"
        ],
        exit_code=3,
        stdout_raw=b"hello",
    )
)


def make_store():
    return MemoryStore(MemoryOptions(), BareContext())


@given(st.binary())
def test_a_sealed_value_comes_back_as_it_was(data):
    assert unseal(seal(data)) == data


def test_a_sealed_value_is_an_action_result_to_any_parser():
    result = decode(reapi.ActionResult, seal(RESULT))
    assert [file.path for file in result.output_files] == ["out/a", "out/b", "out/c"]
    assert result.exit_code == 3
    foreign = descriptor_pb2.FileDescriptorSet()
    foreign.ParseFromString(seal(b""))
    assert foreign.ByteSize() == len(seal(b""))


def test_a_sealed_value_cut_short_anywhere_is_corrupt():
    value = seal(RESULT)
    for length in range(len(value)):
        with pytest.raises(CorruptBlobError):
            unseal(value[:length])


def test_a_value_with_a_flipped_bit_is_corrupt():
    value = bytearray(seal(RESULT))
    for at in range(len(value) * 8):
        value[at // 8] ^= 1 << at % 8
        with pytest.raises(CorruptBlobError):
            unseal(value)
        value[at // 8] ^= 1 << at % 8


def test_values_that_others_wrote_are_taken_if_they_decode():
    assert unseal(memoryview(RESULT)) == RESULT
    with pytest.raises(CorruptBlobError, match="not an ActionResult"):
        unseal(RESULT[:-1])
    with pytest.raises(CorruptBlobError, match="empty"):
        unseal(b"")
    assert unseal(b"\x7d\0\0\0\0") == b"\x7d\0\0\0\0", "a field that only later versions know"
    for tag in (0x0A, 0x0F, 0x80):
        with pytest.raises(CorruptBlobError, match="starts with a field of no ActionResult"):
            unseal(bytes([tag]) + b"\0" * 5)


async def test_an_empty_result_is_stored_and_loaded():
    store = make_store()
    await store_action_result(store, ACTION, b"")
    assert await load_action_result(store, ACTION) == b""


async def test_a_result_is_stored_under_an_action_key_in_place_of_the_last():
    store = make_store()
    with pytest.raises(BlobNotFoundError):
        await load_action_result(store, ACTION)
    await store_action_result(store, ACTION, RESULT)
    await store_action_result(store, ACTION, RESULT + encode(reapi.ActionResult(exit_code=4)))
    assert decode(reapi.ActionResult, await load_action_result(store, ActionKey(*ACTION))).exit_code == 4
    assert await store.has([ACTION]) == [None]


async def test_a_damaged_result_is_corrupt_until_the_next_update():
    store = make_store()
    await store.put(ActionKey(*ACTION), seal(RESULT)[:-3])
    with pytest.raises(CorruptBlobError):
        await load_action_result(store, ACTION)
    await store_action_result(store, ACTION, RESULT)
    assert await load_action_result(store, ACTION) == RESULT


async def test_a_result_that_could_not_be_read_again_is_not_stored():
    store = MemoryStore(MemoryOptions(), BareContext())
    action = Digest("a" * 64, 1)
    await store_action_result(store, action, b"\x32\x00" * (MAX_ACTION_RESULT_BYTES // 2))
    assert len(await load_action_result(store, action)) == MAX_ACTION_RESULT_BYTES
    with pytest.raises(ExhaustedError, match=f"{action}.*at most {MAX_ACTION_RESULT_BYTES}"):
        await store_action_result(store, action, b"x" * (MAX_ACTION_RESULT_BYTES + 1))
    assert len(await load_action_result(store, action)) == MAX_ACTION_RESULT_BYTES


def test_what_was_sealed_once_is_read_for_ever():
    """The bytes at rest are an interface: to later versions, and to other servers on the same store."""
    sealed = bytes.fromhex("8ab51810ffd2b38b328fe2e10d03587fb8dad5dd2003")
    assert seal(b"\x20\x03") == sealed
    assert unseal(sealed) == b"\x20\x03"


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_a_result_belongs_to_the_action_of_its_function_and_not_to_the_blob_of_equal_name(function):
    store, action = make_store(), Digest("ab" * 32, 142, function)
    await store_action_result(store, action, RESULT)
    assert await store.has([ActionKey(*action), action]) == [len(seal(RESULT)), None]
    assert await load_action_result(store, action) == await load_action_result(store, ActionKey(*action)) == RESULT
    for other in DigestFunction:
        if other is not function:
            with pytest.raises(BlobNotFoundError):
                await load_action_result(store, Digest("ab" * 32, 142, other))


async def test_the_log_can_say_which_action_has_a_damaged_result():
    store = make_store()
    await store.put(ActionKey(*ACTION), b"")
    with pytest.raises(CorruptBlobError) as caught:
        await load_action_result(store, ACTION)
    assert caught.value.__notes__ == [f"action {ACTION}"]


async def test_a_value_that_is_larger_than_any_result_is_corrupt_and_not_read_to_its_end():
    class Counted(MemoryStore):
        handed_out = 0

        def open(self, key, *, offset=0, length=None):
            return Counting(super().open(key), self)

    class Counting:
        def __init__(self, opened, store):
            self.opened, self.store = opened, store

        async def __aenter__(self):
            self.reader = await self.opened.__aenter__()
            return self

        async def __aexit__(self, *exc):
            return None

        async def receive_parts(self, *args):
            parts = await self.reader.receive_parts(*args)
            self.store.handed_out += sum(map(len, parts))
            return parts

    store = Counted(MemoryOptions(), BareContext())
    most = len(seal(b"")) + MAX_ACTION_RESULT_BYTES
    for size in (most, most + 1, 3 * most):
        await store.put(ActionKey(*ACTION), bytes(size))
        store.handed_out = 0
        if size == most:
            assert len(await read_value(store, ActionKey(*ACTION))) == most
        else:
            with pytest.raises(CorruptBlobError, match=f"larger than the limit of {MAX_ACTION_RESULT_BYTES} bytes"):
                await read_value(store, ActionKey(*ACTION))
            assert store.handed_out < most + 1024 * 1024


async def test_a_large_result_is_read_also_from_a_store_that_uses_its_buffers_again():
    class Reusing(MemoryStore):
        @asynccontextmanager
        async def open(self, key, *, offset=0, length=None):
            yield PartsReader(split(bytes(self._find(key)), CHUNK))

    store = Reusing(MemoryOptions(), BareContext())
    large = encode(reapi.ActionResult(stdout_raw=bytes(range(256)) * (MAX_WHOLE // 256)))
    await store_action_result(store, ACTION, large)
    assert await load_action_result(store, ACTION) == large


async def test_only_large_results_are_looked_into_in_a_thread():
    """A thread is a checkpoint, where a cancellation is met; so few bytes cost none."""
    store = make_store()
    for printed, completes in ((READ_IN_PLACE_BYTES - 100, True), (READ_IN_PLACE_BYTES, False)):
        await store_action_result(store, ACTION, encode(reapi.ActionResult(stdout_raw=bytes(printed))))
        with trio.CancelScope() as scope:
            scope.cancel()
            await load_action_result(store, ACTION)
        assert scope.cancelled_caught is not completes


def test_the_size_of_a_result_is_bounded_to_the_byte_and_the_error_says_what_to_do():
    assert MAX_ACTION_RESULT_BYTES == 16 * 1024 * 1024, "what the service takes in a message, too"
    check_size(ACTION, MAX_ACTION_RESULT_BYTES)
    with pytest.raises(TooLargeError, match=f"^the result of action {ACTION} has .* declare output directories"):
        check_size(ACTION, MAX_ACTION_RESULT_BYTES + 1)


def test_contents_that_are_named_by_digest_too_are_left_out_and_others_stay():
    digest = reapi.Digest(hash="a" * 64, size_bytes=1)

    def result(**digests):
        return reapi.ActionResult(
            stdout_raw=b"o",
            stderr_raw=b"e",
            output_files=[
                reapi.OutputFile(path="both", contents=b"1", digest=digest),
                reapi.OutputFile(path="only", contents=b"2"),
            ],
            **digests,
        )

    for digests, out, err in (
        ({}, b"o", b"e"), ({"stdout_digest": digest}, b"", b"e"), ({"stderr_digest": digest}, b"o", b""),
    ):  # fmt: skip
        dropped = result(**digests)
        drop_inlined(dropped)
        assert (dropped.stdout_raw, dropped.stderr_raw) == (out, err)
        assert [each.contents for each in dropped.output_files] == [b"", b"2"]
