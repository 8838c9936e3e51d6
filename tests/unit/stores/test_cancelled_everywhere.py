"""Each operation is cancelled at each of its steps in turn, and nothing of it may be left to notice."""

import os
from contextlib import AsyncExitStack

import pytest
import trio

from nl.blob.hashing import digest_of
from nl.config.types import EvictionPolicy
from nl.plugin import CHUNK, SMALL, ActionKey, Link, LocalFiles
from nl.stores.compression import CompressionOptions, CompressionStore
from nl.stores.compression.options import CompressionAlgorithm, Lz4Options, ZstdOptions
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.verify import VerifyOptions, VerifyStore
from nl.testing import BareContext, PartsReader, find, read, split, started

MOST_STEPS = 400
SIZES = (100, SMALL + 1, 3 * CHUNK)


class CancelsAtStep(trio.abc.Instrument):
    """Cancels a scope after the n-th step of the task that it is installed in."""

    def __init__(self, scope, step):
        self.task = trio.lowlevel.current_task()
        self.scope = scope
        self.left = step

    def after_task_step(self, task):
        if task is self.task:
            self.left -= 1
            if not self.left:
                self.scope.cancel()


async def at_each_step(operation, check):
    """Runs `operation()` cancelled after 1, 2, 3 ... steps, and `check(step)` each time, until it is not cancelled."""
    for step in range(MOST_STEPS):
        with trio.CancelScope() as scope:
            instrument = CancelsAtStep(scope, step)
            if not step:
                scope.cancel()
            trio.lowlevel.add_instrument(instrument)
            try:
                await operation(step)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await check(step)
        if not scope.cancelled_caught and instrument.left > 0:
            return
    raise AssertionError(f"it takes more than {MOST_STEPS} steps")


def memory():
    return MemoryStore(MemoryOptions(eviction_policy=EvictionPolicy()), BareContext())


def filesystem(folder, **policy):
    options = FilesystemOptions(
        content_path=f"{folder}/content", temp_path=f"{folder}/temp", eviction_policy=EvictionPolicy(**policy)
    )
    return FilesystemStore(options, BareContext())


def make_store(kind, folder):
    context = BareContext()
    if kind == "memory":
        return memory()
    if kind == "filesystem":
        return filesystem(folder)
    if kind == "full_filesystem":
        return filesystem(folder, max_bytes=5 * CHUNK)
    if kind == "verify":
        return VerifyStore(VerifyOptions(backend=context.spec(filesystem(folder))), context)
    if kind in ("lz4", "zstd"):
        lz4, zstd = (Lz4Options(), None) if kind == "lz4" else (None, ZstdOptions())
        algorithm = CompressionAlgorithm(lz4=lz4, zstd=zstd)
        options = CompressionOptions(backend=context.spec(filesystem(folder)), compression_algorithm=algorithm)
        return CompressionStore(options, context)
    fast, slow = (memory(), filesystem(folder)) if kind == "memory_first" else (filesystem(folder), memory())
    return FastSlowStore(FastSlowOptions(fast=context.spec(fast), slow=context.spec(slow)), context)


KINDS = ("memory", "filesystem", "full_filesystem", "verify", "memory_first", "filesystem_first", "lz4", "zstd")


@pytest.fixture(params=KINDS)
async def store(request, tmp_path):
    store = make_store(request.param, tmp_path)
    async with AsyncExitStack() as stack:
        for child in children(store):
            await stack.enter_async_context(started(child))
        yield await stack.enter_async_context(started(store))


def children(store):
    if isinstance(store, FastSlowStore):
        return (store.fast, store.slow)
    return (store._backend,) if isinstance(store, VerifyStore | CompressionStore) else ()


def descriptors():
    """What this process has open, but for what comes and goes by itself."""
    return sorted(os.listdir("/proc/self/fd"))


def unfinished(folder):
    """Files that are neither whole nor gone."""
    return [name for _, _, names in os.walk(folder / "temp") for name in names if not name.endswith(".session")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["put", "write"])
async def test_an_upload(store, size, how, tmp_path):
    blobs = {}

    async def upload(step):
        data = blobs[step] = bytes([step % 256]) * (size - 2) + b"%02d" % (step % 100)
        if how == "put":
            await store.put(digest_of(data), data)
        else:
            await store.write(digest_of(data), PartsReader(split(data, 100_000)))

    async def check(step):
        data = blobs.get(step)
        assert not unfinished(tmp_path)
        if data is not None:
            [there] = await store.has([digest_of(data)])
            assert there in (None, size)
            if there:
                assert await find(store, digest_of(data)) == data
            await store.write(digest_of(data), PartsReader(split(data, 100_000)))
            assert await find(store, digest_of(data)) == data

    await at_each_step(upload, check)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["get", "open"])
async def test_a_download(store, size, how):
    data = os.urandom(size)
    digest = digest_of(data)
    await store.put(digest, data)
    before = descriptors()

    async def download(step):
        if isinstance(store, FastSlowStore):
            await forget(store.fast, digest)
        if how == "get":
            await store.get(digest)
        else:
            await read(store, digest)

    async def check(step):
        if isinstance(store, FastSlowStore):
            with trio.fail_after(10):
                await store.fetches.wait_idle()
        assert await find(store, digest) == data

    await at_each_step(download, check)
    assert len(descriptors()) <= len(before) + 4


async def forget(store, digest):
    """Takes a blob out of the fast store, so that the next read is a fetch."""
    if isinstance(store, FilesystemStore):
        path = f"{store._options.content_path}/d/{digest.hash}-{digest.size}"
        if os.path.exists(path):
            os.unlink(path)
    else:
        store._index.discard(digest)


async def test_the_result_of_an_action(store):
    key = ActionKey("ab" * 32, 5)

    async def upload(step):
        await store.put(key, b"result %d" % step)

    async def check(step):
        if step:  # the one before it, or this one: nothing else and nothing torn
            assert bytes(await store.get(key)) in {b"settled %d" % (step - 1), b"result %d" % step}
        await store.put(key, b"settled %d" % step)

    await at_each_step(upload, check)


@pytest.mark.parametrize("size", SIZES)
async def test_files_taken_over_and_linked(tmp_path, size):
    store = filesystem(tmp_path)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    async with started(store):
        files = store.capability(LocalFiles)
        before = descriptors()
        blobs = {}

        async def adopt(step):
            data = blobs[step] = bytes([step % 256]) * (size - 2) + b"%02d" % (step % 100)
            path = outputs / f"{step}"
            path.write_bytes(data)
            await files.adopt_file(digest_of(data), str(path))
            await files.link_files([Link(digest_of(data), str(outputs / f"{step}.linked"), step % 2 == 0)])

        async def check(step):
            data = blobs.get(step)
            assert not unfinished(tmp_path)
            if data is None:
                return
            if (await store.has([digest_of(data)]))[0] is None:
                assert (outputs / f"{step}").read_bytes() == data, "neither adopted nor left where it was"
                await files.adopt_file(digest_of(data), str(outputs / f"{step}"))
            assert await find(store, digest_of(data)) == data

        await at_each_step(adopt, check)
        assert len(descriptors()) <= len(before) + 4
