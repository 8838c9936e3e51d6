"""A process with a filesystem store under mixed load, for `./dev stress`. Prints `ready`, and at the end what it has
seen: after SECONDS, or when there is a file ROOT/stop.

`python -m tests.stress.filesystem_load ROOT MAX_BYTES SEED SECONDS INOTIFY`. Blobs are made from numbers, so that every
process knows what each must contain.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import trio

from nl.plugin import BlobNotFoundError, Digest, EvictionPolicy, Link, LocalFiles, NlError
from nl.stores.filesystem import FilesystemOptions, FilesystemStore, mirror
from nl.testing import BareContext, PartsReader, split, started

BLOBS = 400
SIZES = (10, 1000, 20_000, 64_000, 200_000, 1_000_000, 3_000_000)
"""Bytes; every fortieth blob has 9 MB instead. All together some 300 MB."""
TASKS = 6


def make(number: int) -> bytes:
    """The content of a blob."""
    chance = random.Random(number)
    return chance.randbytes(chance.choice(SIZES) if number % 40 else 9_000_000)


@functools.cache
def digest_of(number: int) -> Digest:
    data = make(number)
    return Digest(hashlib.sha256(data).hexdigest(), len(data))


class Load:
    """Does what clients and workers do, and checks every answer at once."""

    def __init__(self, store: FilesystemStore, folder: Path, chance: random.Random) -> None:
        self.store = store
        self.folder = folder
        self.chance = chance
        self.seen: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        files = store.capability(LocalFiles)
        assert files is not None
        self.files = files
        self._paths = map(folder.joinpath, map(str, itertools.count()))

    async def run(self, until: float) -> None:
        steps = {"put": self.put, "write": self.write, "read": self.read, "has": self.has, "link": self.link,
                 "adopt": self.adopt}
        stop = self.folder.parent / "stop"
        while time.monotonic() < until and not stop.exists():
            name = self.chance.choice(("put", "write", "write", "read", "read", "read", "has", "link", "adopt"))
            began = time.monotonic()
            try:
                await steps[name](self.chance.randrange(BLOBS))
            except NlError as error:
                self.seen[f"error of {name}: {type(error).__name__}"] += 1
            self.seen[name] += 1
            self.slowest[name] = max(self.slowest.get(name, 0.0), time.monotonic() - began)
            await trio.lowlevel.checkpoint()

    async def put(self, number: int) -> None:
        if digest_of(number).size > 1 << 20:
            return await self.write(number)
        await self.store.put(digest_of(number), make(number))
        return await self.must_be_there(number, "lost after put")

    async def write(self, number: int) -> None:
        await self.store.write(digest_of(number), PartsReader(split(make(number), 200_000)))
        await self.must_be_there(number, "lost after put")

    async def adopt(self, number: int) -> None:
        path = next(self._paths)
        path.write_bytes(make(number))
        await self.files.adopt_file(digest_of(number), str(path))
        path.unlink(missing_ok=True)
        await self.must_be_there(number, "lost after put")

    async def read(self, number: int) -> None:
        try:
            await self._read(number)
        except BlobNotFoundError:
            self.seen["misses"] += 1

    async def has(self, number: int) -> None:
        numbers = [number, *(self.chance.randrange(BLOBS) for _ in range(2))]
        sizes = await self.store.has([digest_of(each) for each in numbers])
        for each, size in zip(numbers, sizes, strict=True):
            if size is not None:
                self.seen["answers that blobs are there"] += 1
                await self.must_be_there(each, "lost after has")

    async def link(self, number: int) -> None:
        path = next(self._paths)
        digest = digest_of(number)
        if await self.files.link_files([Link(digest, str(path), self.chance.random() < 0.5)]):
            return
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest.hash:
            self.seen["wrong bytes"] += 1
        path.unlink()

    async def must_be_there(self, number: int, else_seen: str) -> None:
        try:
            await self._read(number)
        except BlobNotFoundError:
            self.seen[else_seen] += 1

    async def _read(self, number: int) -> None:
        digest, found = digest_of(number), hashlib.sha256()
        async with self.store.open(digest) as reader:
            while parts := await reader.receive_parts():
                for part in parts:
                    found.update(part)
        if found.hexdigest() != digest.hash:
            self.seen["wrong bytes"] += 1


async def main(root: Path, max_bytes: int, seed: int, seconds: float) -> None:
    store = FilesystemStore(
        FilesystemOptions(
            content_path=str(root / "content"), temp_path=str(root / "temp"),
            eviction_policy=EvictionPolicy(max_bytes=max_bytes),
        ),
        BareContext(f"CAS of {os.getpid()}"),
    )  # fmt: skip
    folder = root / f"files-{os.getpid()}"
    folder.mkdir()
    async with started(store):
        print("ready", flush=True)
        load, until = Load(store, folder, random.Random(seed)), time.monotonic() + seconds
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(load.run, until)
        facts = store.statistics()
    slowest = {name: round(took, 3) for name, took in load.slowest.items()}
    print(json.dumps({**load.seen, "slowest": slowest, "corrupt": facts["corrupt_blobs"], "state": facts["state"]}))


if __name__ == "__main__":
    if sys.argv[5] == "no":
        mirror.remote_file_system = lambda path: "a file system without inotify"
    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
