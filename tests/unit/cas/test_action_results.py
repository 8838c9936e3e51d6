"""Action results at rest: readable by any protobuf parser, and no damaged one is ever taken for a result."""

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from nl.cas.action_results import (
    MAX_ACTION_RESULT_BYTES,
    load_action_result,
    seal,
    store_action_result,
    unseal,
)
from nl.errors import BlobNotFoundError, CorruptBlobError, ExhaustedError
from nl.model.digest import ActionKey, Digest
from nl.pb import reapi
from nl.pb.codec import decode, encode
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.testing import BareContext

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
