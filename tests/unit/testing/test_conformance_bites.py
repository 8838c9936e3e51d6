"""Stores that are wrong in one way each: the conformance suite must find every one of them."""

import ast
import inspect
import os
import pickle
import re
import subprocess
import sys
import textwrap
from collections import OrderedDict
from contextlib import asynccontextmanager

import pytest

from nl.plugin import (
    CHUNK,
    EMPTY_DIGESTS,
    MAX_WHOLE,
    BlobNotFoundError,
    BytesReader,
    DecodingReader,
    Deletes,
    EncodedBlobs,
    EncodedReader,
    Encoding,
    InvalidRequestError,
    RemovalFeeds,
    Removals,
    Store,
    TooLargeError,
    UnavailableError,
    ZstdDecoder,
    clamp,
    key_text,
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


class FolderStore(PlainStore):
    """Keeps its blobs in files, too, and finds them when it is made anew."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.load()

    def load(self):
        for path in self.folder.glob("*.blob"):
            key, data = pickle.loads(path.read_bytes())
            self.blobs[key] = data

    def path(self, key):
        return self.folder / f"{key_text(key)[:200]}.blob"

    async def put(self, key, data):
        await super().put(key, data)
        if key not in EMPTY_DIGESTS:
            self.path(key).write_bytes(pickle.dumps((key, bytes(data))))

    async def delete(self, keys):
        for key in keys:
            if self.blobs.pop(key, None) is not None:
                self.path(key).unlink()

    def capability(self, kind):
        return self if kind is Deletes else None


class ForgetsEverythingAtARestart(FolderStore):
    def load(self):
        pass


class ForgetsNamesAtARestart(FolderStore):
    def load(self):
        super().load()
        self.blobs = {key: data for key, data in self.blobs.items() if not isinstance(key, str)}


class RemembersOldValuesAtARestart(FolderStore):
    async def put(self, key, data):
        old = self.path(key).read_bytes() if self.path(key).exists() else None
        await super().put(key, data)
        if old is not None:
            self.path(key).write_bytes(old)


class RevivesWhatWasDeleted(FolderStore):
    async def delete(self, keys):
        for key in keys:
            self.blobs.pop(key, None)


class DeletesNothing(FolderStore):
    async def delete(self, keys):
        pass


class DeletesTheEmptyBlob(FolderStore):
    async def has(self, keys):
        sizes = await super().has(keys)
        return [None if key in getattr(self, "deleted", ()) else size for key, size in zip(keys, sizes)]

    async def delete(self, keys):
        self.deleted = set(keys)
        await super().delete(keys)


class LeavesRowsOfCancelledUploads(FolderStore):
    async def write(self, key, reader):
        row = self.folder / "row"
        row.write_bytes(b"begun")
        await super().write(key, reader)
        row.unlink()


class LeavesRowsOfFailedUploads(FolderStore):
    async def write(self, key, reader):
        row = self.folder / "row"
        row.write_bytes(b"begun")
        try:
            await super().write(key, reader)
        except Exception:
            raise
        except BaseException:
            row.unlink()
            raise
        row.unlink()


class PutsManyInReverse(FolderStore):
    async def put_many(self, blobs):
        return await super().put_many([(key, blobs[-1 - at][1]) for at, (key, _) in enumerate(blobs)])


class KeepsTheFirstOfABatch(PlainStore):
    async def put_many(self, blobs):
        return (await super().put_many(blobs[::-1]))[::-1]


class GetsManySorted(FolderStore):
    async def get_many(self, keys):
        return await super().get_many(sorted(keys, key=str))


class LosesWhatWasThereWhenAWriteFails(FolderStore):
    async def write(self, key, reader):
        try:
            await super().write(key, reader)
        except Exception:
            self.blobs.pop(key, None)
            raise


class LosesNamesThatAreTouched(FolderStore):
    async def touch(self, keys):
        await self.delete([key for key in keys if isinstance(key, str)])


class BoundedStore(PlainStore):
    """Keeps to a policy, the least recently used first."""

    def __init__(self, policy):
        self.policy = policy
        self.feeds = RemovalFeeds()
        self.blobs = OrderedDict()

    def use(self, key):
        if key in self.blobs:
            self.blobs.move_to_end(key)

    def used_by_has(self, key):
        self.use(key)

    def used_by_reading(self, key):
        self.use(key)

    def used_by_writing(self, key):
        self.use(key)

    async def has(self, keys):
        for key in keys:
            self.used_by_has(key)
        return await super().has(keys)

    def find(self, key):
        self.used_by_reading(key)
        return super().find(key)

    async def put(self, key, data):
        limit = self.policy.max_bytes
        if limit and len(data) > limit:
            self.make_room(len(data))
            raise TooLargeError("never fits")
        await super().put(key, data)
        self.used_by_writing(key)
        while self.is_full():
            self.evict()

    def make_room(self, size):
        pass

    def is_full(self):
        limit, count = self.policy.max_bytes, self.policy.max_count
        return (limit and sum(map(len, self.blobs.values())) > limit) or (count and len(self.blobs) > count)

    def evict(self):
        key, _ = self.blobs.popitem(last=False)
        self.tell(key)

    def tell(self, key):
        self.feeds.removed(key)

    def watch_removals(self):
        return self.feeds.watch()

    def capability(self, kind):
        return self if kind is Removals else None


class IgnoresRecency(BoundedStore):
    def use(self, key):
        pass


class DoesNotCountQuestions(BoundedStore):
    def used_by_has(self, key):
        pass


class DoesNotCountReads(BoundedStore):
    def used_by_reading(self, key):
        pass


class DoesNotCountUploadsOfWhatIsThere(BoundedStore):
    def used_by_writing(self, key):
        pass


class EvictsTheNewest(BoundedStore):
    def evict(self):
        *_, key = self.blobs
        if len(self.blobs) > 1:
            key = list(self.blobs)[-2]
        del self.blobs[key]
        self.tell(key)


class IgnoresBytes(BoundedStore):
    def is_full(self):
        return self.policy.max_count and len(self.blobs) > self.policy.max_count


class IgnoresCounts(BoundedStore):
    def is_full(self):
        return self.policy.max_bytes and sum(map(len, self.blobs.values())) > self.policy.max_bytes


class EvictsEverythingAtOnce(BoundedStore):
    def evict(self):
        while len(self.blobs) > 1:
            super().evict()


class MakesRoomForWhatNeverFits(BoundedStore):
    def make_room(self, size):
        self.blobs.clear()


class TellsNobody(BoundedStore):
    def tell(self, key):
        pass


class EncodedStore(PlainStore):
    """Offers encoded blobs, and gives them plain."""

    def capability(self, kind):
        return self if kind is EncodedBlobs else None

    @asynccontextmanager
    async def open_encoded(self, key, accept, *, offset=0):
        async with self.open(key, offset=offset) as reader:
            yield EncodedReader(Encoding.IDENTITY, reader, len(self.find(key)))

    async def write_encoded(self, key, reader, encoding):
        if encoding is Encoding.ZSTD:
            reader = DecodingReader(reader, ZstdDecoder(), size=-1, failure=InvalidRequestError)
        await self.write(key, reader)


class IgnoresEncodedOffset(EncodedStore):
    @asynccontextmanager
    async def open_encoded(self, key, accept, *, offset=0):
        async with self.open(key) as reader:
            yield EncodedReader(Encoding.IDENTITY, reader, len(self.find(key)))


class TakesFramesForTheBlob(EncodedStore):
    async def write_encoded(self, key, reader, encoding):
        await self.write(key, reader)


class GivesAnEncodingThatWasNotAccepted(EncodedStore):
    @asynccontextmanager
    async def open_encoded(self, key, accept, *, offset=0):
        async with self.open(key, offset=offset) as reader:
            yield EncodedReader(Encoding.ZSTD, reader, len(self.find(key)))


class KeepsWhatCameOfFailedFrames(EncodedStore):
    async def write_encoded(self, key, reader, encoding):
        try:
            await super().write_encoded(key, reader, encoding)
        except UnavailableError:
            await self.put(key, b"some of it")
            raise


BASES = {
    FolderStore: "DurableStoreConformance, StoreConformance",
    BoundedStore: "EvictingStoreConformance",
    EncodedStore: "StoreConformance",
    PlainStore: "StoreConformance",
}
BROKEN = [
    kind for kind in list(vars().values())
    if isinstance(kind, type) and PlainStore in kind.__mro__[1:] and kind not in BASES
]  # fmt: skip
CAUGHT_BY = {
    IgnoresEncodedOffset: "an_encoded_blob_is_given_from_any_offset",
    TakesFramesForTheBlob: "what_is_written_encoded_is_the_blob_itself",
    GivesAnEncodingThatWasNotAccepted: "an_encoded_blob_is_given_as_accepted",
    KeepsWhatCameOfFailedFrames: "an_encoded_write_that_fails_leaves_nothing",
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
    ForgetsEverythingAtARestart: "what_was_stored_is_there_after_a_restart",
    ForgetsNamesAtARestart: "what_was_stored_is_there_after_a_restart",
    RemembersOldValuesAtARestart: "what_was_stored_is_there_after_a_restart",
    RevivesWhatWasDeleted: "what_was_deleted_stays_so_after_a_restart",
    DeletesNothing: "what_is_deleted_is_gone_and_can_be_stored_again",
    DeletesTheEmptyBlob: "deleting_what_is_not_there_or_empty_is_no_error",
    LeavesRowsOfCancelledUploads: "an_upload_that_did_not_end_well_leaves_nothing_behind_the_store",
    LeavesRowsOfFailedUploads: "an_upload_that_did_not_end_well_leaves_nothing_behind_the_store",
    PutsManyInReverse: "many_are_put_and_got_in_order_each_with_its_own_fate",
    KeepsTheFirstOfABatch: "of_several_values_for_one_key_in_a_batch_the_last_is_kept",
    GetsManySorted: "many_are_put_and_got_in_order_each_with_its_own_fate",
    LosesWhatWasThereWhenAWriteFails: "a_write_that_fails_leaves_what_was_there",
    LosesNamesThatAreTouched: "any_history_is_that_of_a_dict",
    IgnoresRecency: "what_was_used_last_is_the_last_to_go",
    DoesNotCountQuestions: "what_was_used_last_is_the_last_to_go",
    DoesNotCountReads: "what_was_used_last_is_the_last_to_go",
    DoesNotCountUploadsOfWhatIsThere: "what_was_used_last_is_the_last_to_go",
    EvictsTheNewest: "the_oldest_go_and_the_newest_stay",
    IgnoresBytes: "the_bound_holds_after_every_upload",
    IgnoresCounts: "what_was_used_last_is_the_last_to_go",
    EvictsEverythingAtOnce: "the_oldest_go_and_the_newest_stay",
    MakesRoomForWhatNeverFits: "what_never_fits_is_refused_and_nothing_goes_for_it",
    TellsNobody: "news_of_removals_name_all_that_went",
}


WITHOUT_SHRINKING = """
from hypothesis import Phase, settings
settings.register_profile("quick", phases=(Phase.explicit, Phase.generate), database=None, derandomize=True)
settings.load_profile("quick")
"""


def source_of(kinds):
    """A test module that runs the suite against each of the stores, with the stores' code in it."""
    lines = ["import pickle", "from collections import OrderedDict", "from contextlib import asynccontextmanager"]
    lines += ["from nl.plugin import *", "from nl.testing import *"]
    needed = [PlainStore, FolderStore, BoundedStore, EncodedStore, *kinds]
    lines += [textwrap.dedent(inspect.getsource(kind)) for kind in dict.fromkeys(needed)]
    for kind in kinds:
        base = next(base for base in BASES if issubclass(kind, base))
        lines.append(f"class Test{kind.__name__}({BASES[base]}):")
        if base is BoundedStore:
            lines.append("    def make_bounded_store(self, context, folder, policy):")
        else:
            lines.append("    def make_store(self, context, folder):")
        argument = {PlainStore: "", EncodedStore: "", FolderStore: "folder", BoundedStore: "policy"}[base]
        lines.append(f"        return {kind.__name__}({argument})")
    return "\n\n".join(lines)


def run_suite(kinds, folder, *arguments):
    (folder / "test_it.py").write_text(source_of(kinds))
    # In a project of its own, without this project's settings: the suite must not need them.
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    (folder / "conftest.py").write_text(WITHOUT_SHRINKING)
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


def test_right_stores_pass_in_a_project_without_any_settings(tmp_path):
    done = run_suite([FolderStore, BoundedStore, EncodedStore], tmp_path)
    assert done.returncode == 0, done.stdout


def test_tests_are_skipped_only_for_what_a_kind_does_not_offer(tmp_path):
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
