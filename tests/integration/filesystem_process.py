"""A process with a filesystem store, for test_filesystem_processes.py. Not a test.

`python -m tests.integration.filesystem_process MODE ROOT MAX_BYTES SEED ROUNDS`; what goes wrong ends it with a
traceback. Blobs are made from numbers, so that every process knows what each must contain.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

import trio

from nl.plugin import BlobNotFoundError, Digest, EvictionPolicy, Link, LocalFiles, Reader, UnavailableError
from nl.stores.filesystem import FilesystemOptions, FilesystemStore
from nl.testing import BareContext, PartsReader, split, started

COUNT = 120


def make(number: int) -> bytes:
    """The content of a blob: small ones, and every tenth a large one."""
    size = 150_000 + number * 1000 if number % 10 == 0 else number * 37 % 9000 + 1
    return random.Random(number).randbytes(size)


def digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest(), len(data))


def make_store(root: Path, max_bytes: int, *, temp: str = "temp") -> FilesystemStore:
    options = FilesystemOptions(
        content_path=str(root / "content"), temp_path=str(root / temp),
        eviction_policy=EvictionPolicy(max_bytes=max_bytes, evict_bytes=max_bytes // 20),
    )  # fmt: skip
    return FilesystemStore(options, BareContext(f"CAS of {os.getpid()}"))


def used(root: Path) -> int:
    """Bytes in blocks of all that counts."""
    total = 0
    for folder in ("content/d", "content/a", "content/s", "content.exec/d"):
        total += sum(-(-item.stat().st_size // 4096) * 4096 for item in os.scandir(root / folder))
    return total


async def read(reader: Reader, most: int) -> bytes:
    got = b""
    while parts := await reader.receive_parts(most):
        got += b"".join(map(bytes, parts))
    return got


class Worker:
    """Does everything that a store can do, and checks every answer."""

    def __init__(self, store: FilesystemStore, root: Path, max_bytes: int, chance: random.Random) -> None:
        self.store, self.root, self.max_bytes, self.chance = store, root, max_bytes, chance
        self.blobs = {digest_of(data): data for data in map(make, range(COUNT))}
        self.digests = list(self.blobs)
        files = store.capability(LocalFiles)
        assert files is not None
        self.files = files
        self.links = 0
        self.outputs = 0
        self.exact_checks = 0

    async def step(self) -> None:
        digest = self.chance.choice(self.digests)
        data = self.blobs[digest]
        store = self.store
        what = self.chance.choice(["put", "put", "write", "get", "open", "link", "adopt", "exact", "bound"])
        if what == "put":
            await store.put(digest, data)
        elif what == "write":
            try:
                await store.write(digest, PartsReader(split(data, 20_000)))
            except UnavailableError:  # it was there, and another process has evicted it meanwhile
                await store.put(digest, data)
        elif what == "get":
            try:
                assert await store.get(digest) == data, f"wrong bytes of {digest}"
            except BlobNotFoundError:
                await store.put(digest, data)
        elif what == "open":
            try:
                async with store.open(digest) as reader:
                    assert await read(reader, self.chance.randrange(1, 50_000)) == data, f"wrong bytes of {digest}"
            except BlobNotFoundError:
                pass
        elif what == "link":
            await self.link()
        elif what == "adopt":
            self.outputs += 1  # a file of its own: other tasks of this process adopt at the same time
            path = self.root / f"out-{os.getpid()}-{self.outputs}"
            path.write_bytes(data)
            await self.files.adopt_file(digest, str(path))
            path.unlink(missing_ok=True)  # it stays where the blob was there already
        elif what == "exact":
            await self.check_exactness()
        else:
            await self.check_bound()

    async def link(self) -> None:
        wanted = []
        for digest in self.chance.sample(self.digests, 12):
            self.links += 1
            wanted.append(Link(digest, str(self.root / f"in-{os.getpid()}-{self.links}"), self.links % 3 == 0))
        missing = await self.files.link_files(wanted)
        for link in wanted:
            if link.digest in missing:
                assert not os.path.exists(link.path)
                continue
            with open(link.path, "rb") as file:
                assert file.read() == self.blobs[link.digest], f"wrong bytes linked of {link.digest}"
            os.unlink(link.path)

    async def check_exactness(self) -> None:
        """While nobody may write or evict, the store knows exactly what the folder has."""
        committer = self.store._committer
        await committer.lock.acquire()
        with committer.locked():
            if self.store.statistics()["state"] != "exact":
                return
            self.exact_checks += 1
            sizes = await self.store.has(self.digests)
            for digest, size in zip(self.digests, sizes, strict=True):
                there = os.path.exists(self.root / "content" / "d" / str(digest))
                assert there == (size is not None), f"has says {size} of {digest}, the folder {there}"

    async def check_bound(self) -> None:
        committer = self.store._committer
        await committer.lock.acquire()
        with committer.locked():
            if self.max_bytes:
                total = used(self.root)
                assert total <= self.max_bytes, f"{total} bytes are more than {self.max_bytes}"


async def work(root: Path, max_bytes: int, seed: int, rounds: int) -> None:
    """Four tasks that do everything at once."""
    store = make_store(root, max_bytes)
    worker = Worker(store, root, max_bytes, random.Random(seed))

    async def steps() -> None:
        for _ in range(rounds):
            await worker.step()
            await trio.lowlevel.checkpoint()

    async with started(store), trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(steps)
    facts = store.statistics()
    assert facts["corrupt_blobs"] == 0, facts
    assert worker.exact_checks > 0, facts
    print("right", facts, flush=True)


async def write_for_ever(root: Path, max_bytes: int, seed: int, rounds: int) -> None:
    """Writes new blobs and prints the digest of each that was acknowledged, until it is killed."""
    chance = random.Random(seed)
    store = make_store(root, max_bytes, temp=f"temp{seed % 2}")

    async def writer() -> None:
        while True:
            data = chance.randbytes(chance.choice([100, 5000, 200_000, 3_000_000]))
            digest = digest_of(data)
            if len(data) <= 5000:
                await store.put(digest, data)
            else:
                await store.write(digest, PartsReader(split(data, 100_000)))
            os.write(1, f"{digest}\n".encode())
            await trio.lowlevel.checkpoint()

    async with started(store), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(writer)


async def answer(root: Path, max_bytes: int, seed: int, rounds: int) -> None:
    """Does what its lines of input say: `put NUMBER`, `has NUMBER`, `get NUMBER`."""
    store = make_store(root, max_bytes)
    async with started(store):
        await store._mirror.scanned.wait()
        print("ready", flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            verb, number = line.split()
            data = make(int(number))
            digest = digest_of(data)
            if verb == "put":
                await store.put(digest, data)
                print("ok", flush=True)
            elif verb == "has":
                print(*await store.has([digest]), flush=True)
            else:
                print("right" if await store.get(digest) == data else "WRONG", flush=True)


if __name__ == "__main__":
    mode = {"work": work, "write": write_for_ever, "answer": answer}[sys.argv[1]]
    trio.run(mode, Path(sys.argv[2]), *map(int, sys.argv[3:]))
