"""Stores that are wrong in one way each: the conformance suite must find every one of them."""

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager

import pytest

from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    BlobNotFoundError,
    BytesReader,
    Store,
    TooLargeError,
    clamp,
    slice_bytes,
)
from nl.testing.capabilities import CapabilityConformance


class PlainStore(Store):
    """As simple as a right store can be; the broken ones differ from it in one method."""

    def __init__(self):
        self.blobs = {}

    async def has(self, keys):
        return [0 if key in EMPTY_DIGESTS else len(self.blobs[key]) if key in self.blobs else None for key in keys]

    def find(self, key):
        if key in EMPTY_DIGESTS:
            return b""
        if key not in self.blobs:
            raise BlobNotFoundError(key)
        return self.blobs[key]

    async def get(self, key):
        data = self.find(key)
        if len(data) > MAX_WHOLE:
            raise TooLargeError("too large")
        return data

    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        yield slice_bytes(self.find(key), offset=offset, length=length)

    async def put(self, key, data):
        if key not in EMPTY_DIGESTS:
            self.blobs[key] = bytes(data)

    async def write(self, key, reader):
        got = bytearray()
        while parts := await reader.receive_parts():
            for part in parts:
                got += part
        await self.put(key, got)


class IgnoresOffset(PlainStore):
    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        yield BytesReader(memoryview(self.find(key))[: clamp(len(self.find(key)), offset, length)])


class IgnoresLength(PlainStore):
    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        yield slice_bytes(self.find(key), offset=offset)


class NeverRaisesRangeError(PlainStore):
    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        end = None if length is None else offset + length
        yield BytesReader(self.find(key)[offset:end])


class FailsOnCallingOpen(PlainStore):
    def open(self, key, *, offset=0, length=None):
        self.find(key)
        return super().open(key, offset=offset, length=length)


class CommitsCancelledUploads(PlainStore):
    async def write(self, key, reader):
        got = bytearray()
        try:
            while parts := await reader.receive_parts():
                for part in parts:
                    got += part
        finally:
            self.blobs[key] = bytes(got)


class ShowsHalfAnUpload(PlainStore):
    async def write(self, key, reader):
        got = bytearray()
        try:
            while parts := await reader.receive_parts():
                for part in parts:
                    got += part
                self.blobs[key] = bytes(got)
        except BaseException:
            self.blobs.pop(key, None)
            raise


class DropsABlobWhenATwinFails(PlainStore):
    async def write(self, key, reader):
        self.writing = getattr(self, "writing", {})
        got = self.writing.setdefault(key, bytearray())
        del got[:]
        while parts := await reader.receive_parts():
            for part in parts:
                got += part
        await self.put(key, got)


class LiesInHas(PlainStore):
    async def has(self, keys):
        return [key[1] if isinstance(key, tuple) else None for key in keys]


class RoundsSizesUp(PlainStore):
    async def has(self, keys):
        return [size if not size else (size + 4095) // 4096 * 4096 for size in await super().has(keys)]


class DeduplicatesHas(PlainStore):
    async def has(self, keys):
        return await super().has(list(dict.fromkeys(keys)))


class SortsHas(PlainStore):
    async def has(self, keys):
        return sorted(await super().has(keys), key=lambda size: -1 if size is None else size)


class KeepsTheCallersBuffer(PlainStore):
    async def put(self, key, data):
        if key not in EMPTY_DIGESTS:
            self.blobs[key] = memoryview(data)


class KeepsTheReadersBuffers(PlainStore):
    async def write(self, key, reader):
        kept = []
        while parts := await reader.receive_parts():
            kept.extend(parts)
        await self.put(key, b"".join(kept))


class StopsAtTheAnnouncedSize(PlainStore):
    async def write(self, key, reader):
        got = bytearray()
        while (reader.size < 0 or len(got) < reader.size) and (parts := await reader.receive_parts()):
            for part in parts:
                got += part
        await self.put(key, got)


class ForgetsTheEmptyBlob(PlainStore):
    async def has(self, keys):
        return [len(self.blobs[key]) if key in self.blobs else None for key in keys]


class MixesKeysOfEqualText(PlainStore):
    async def has(self, keys):
        return await super().has([key if key in EMPTY_DIGESTS else str(key) for key in keys])

    def find(self, key):
        return super().find(key if key in EMPTY_DIGESTS else str(key))

    async def put(self, key, data):
        await super().put(key if key in EMPTY_DIGESTS else str(key), data)


class IgnoresTheSizeInADigest(PlainStore):
    async def has(self, keys):
        by_hash = {key[0]: data for key, data in self.blobs.items() if isinstance(key, tuple)}
        return [
            size if size is not None or not isinstance(key, tuple) or key[0] not in by_hash else len(by_hash[key[0]])
            for key, size in zip(keys, await super().has(keys))
        ]


class KeepsTheFirstValue(PlainStore):
    async def put(self, key, data):
        if key not in self.blobs:
            await super().put(key, data)


class ChangesBlobsInPlace(PlainStore):
    async def put(self, key, data):
        if key in EMPTY_DIGESTS:
            return
        kept = self.blobs.setdefault(key, bytearray(len(data)))
        if len(kept) == len(data):
            kept[:] = data
        else:
            self.blobs[key] = bytearray(data)


class HandsOutTooMuch(PlainStore):
    @asynccontextmanager
    async def open(self, key, *, offset=0, length=None):
        reader = slice_bytes(self.find(key), offset=offset, length=length)
        receive = reader.receive_parts

        class Eager(type(reader)):
            __slots__ = ()

            async def receive_parts(self, max_bytes=CHUNK):
                return await receive(max_bytes + 1)

        yield Eager(self.find(key))


class GetsAnySize(PlainStore):
    async def get(self, key):
        return self.find(key)


class WrapsErrors(PlainStore):
    async def write(self, key, reader):
        try:
            await super().write(key, reader)
        except Exception as error:
            raise RuntimeError("write failed") from error


class SaysNotFoundWithoutTheKey(PlainStore):
    async def get(self, key):
        try:
            return await super().get(key)
        except BlobNotFoundError:
            raise BlobNotFoundError("something") from None


class TellsObjects(PlainStore):
    def statistics(self):
        return {"blobs": self.blobs}


class HasEveryCapability(PlainStore):
    def capability(self, kind):
        return self


BROKEN = [kind for kind in list(vars().values()) if isinstance(kind, type) and PlainStore in kind.__mro__[1:]]
CAUGHT_BY = {
    IgnoresOffset: "every_range_of_a_small_blob",
    IgnoresLength: "every_range_of_a_small_blob",
    NeverRaisesRangeError: "an_offset_outside_of_the_blob_is_a_range_error",
    FailsOnCallingOpen: "opening_fails_on_entering_not_on_calling",
    CommitsCancelledUploads: "a_cancelled_write_leaves_nothing",
    ShowsHalfAnUpload: "a_blob_is_invisible_until_it_is_whole",
    DropsABlobWhenATwinFails: "a_failing_twin_does_not_hurt_a_good_upload",
    LiesInHas: "a_blob_never_written_is_not_found",
    RoundsSizesUp: "has_keeps_order_and_duplicates",
    DeduplicatesHas: "has_keeps_order_and_duplicates",
    SortsHas: "has_keeps_order_and_duplicates",
    KeepsTheCallersBuffer: "put_does_not_keep_the_callers_buffer",
    KeepsTheReadersBuffers: "what_write_stores_every_way_of_reading_finds",
    StopsAtTheAnnouncedSize: "a_cancelled_write_leaves_nothing",
    ForgetsTheEmptyBlob: "the_empty_blob_is_there_without_being_written",
    MixesKeysOfEqualText: "equal_text_in_different_types_names_different_things",
    IgnoresTheSizeInADigest: "the_right_hash_with_a_wrong_size_is_not_there",
    KeepsTheFirstValue: "the_last_write_to_a_mutable_key_wins",
    ChangesBlobsInPlace: "an_open_reader_survives_an_overwrite",
    HandsOutTooMuch: "a_reader_hands_out_no_more_than_asked_for",
    GetsAnySize: "a_blob_larger_than_a_whole_one_is_streamed_only",
    WrapsErrors: "a_reader_that_raises_leaves_nothing",
    SaysNotFoundWithoutTheKey: "not_found_names_the_key",
    TellsObjects: "statistics_are_plain_numbers_and_texts",
    HasEveryCapability: "an_unknown_capability_is_none",
}


def source_of(kinds):
    """A test module that runs the suite against each of the stores, with the stores' code in it."""
    lines = ["from contextlib import asynccontextmanager", "from nl.plugin import *", "from nl.testing import *"]
    lines += [textwrap.dedent(inspect.getsource(kind)) for kind in dict.fromkeys([PlainStore, *kinds])]
    for kind in kinds:
        lines.append(f"class Test{kind.__name__}(StoreConformance):")
        lines.append(f"    def make_store(self, context, folder):\n        return {kind.__name__}()")
    return "\n\n".join(lines)


def run_suite(kinds, folder, *arguments):
    (folder / "test_it.py").write_text(source_of(kinds))
    # In a project of its own, without this project's settings: the suite must not need them.
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # pytest shortens less there
    return subprocess.run(
        [*command, *arguments, "test_it.py"], cwd=folder, capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """For each broken store, the tests of the suite that it fails."""
    done = run_suite(BROKEN, tmp_path_factory.mktemp("broken"), "--tb=no", "-rf")
    assert done.returncode == 1, done.stdout + done.stderr
    found = {}
    for name, test in re.findall(r"^FAILED test_it.py::Test(\w+)::test_(\w+)", done.stdout, re.MULTILINE):
        found.setdefault(name, set()).add(test)
    return found


def test_a_right_store_passes_in_a_project_without_any_settings(tmp_path):
    done = run_suite([PlainStore], tmp_path)
    assert done.returncode == 0, done.stdout
    about_capabilities = [name for name in vars(CapabilityConformance) if name.startswith("test_")]
    assert f"{len(about_capabilities)} skipped" in done.stdout


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_store_that_is_wrong_in_one_way_is_told_which(kind, failures):
    assert CAUGHT_BY[kind] in failures[kind.__name__]


def test_every_broken_store_is_in_the_table():
    assert set(BROKEN) == set(CAUGHT_BY)


def test_failures_say_what_was_compared(tmp_path):
    done = run_suite([DeduplicatesHas], tmp_path, "-k", "duplicates")
    assert "assert [7, None, 5, 0, 6] == [7, None, 5, 7, 0, None" in done.stdout


def test_the_suite_is_not_collected_by_importing_it():
    import nl.testing

    assert [name for name in vars(nl.testing) if name.startswith(("Test", "test_"))] == []


def test_no_test_of_the_suite_sleeps_or_looks_at_the_clock():
    import nl.testing.concurrency
    import nl.testing.conformance
    import nl.testing.forgetful
    import nl.testing.local_files

    for module in (nl.testing.concurrency, nl.testing.conformance, nl.testing.forgetful, nl.testing.local_files):
        nodes = ast.walk(ast.parse(inspect.getsource(module)))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not names & {"sleep", "time", "monotonic", "move_on_after", "fail_after"}
