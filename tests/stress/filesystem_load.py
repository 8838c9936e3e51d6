"""A process with a filesystem store under mixed load, for `./dev stress`.

Blobs are made from numbers, so that every process knows what each must contain.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import trio

from nl.plugin import BlobNotFoundError, Digest, EvictionPolicy, Link, LocalFiles, NlError, key_text
from nl.stores.filesystem import FilesystemOptions, FilesystemStore, mirror
from nl.testing import BareContext, PartsReader, split, started

from .judge import Judge

BLOBS = 400
SIZES = (10, 1000, 20_000, 64_000, 200_000, 1_000_000, 3_000_000)
"""Bytes; every fortieth blob has 9 MB instead. All together some 300 MB."""
TASKS = 6
_BLOCK = 16_384


class Orders(NamedTuple):
    """What a process is to do. `number` is its own among `processes`."""

    root: Path
    max_bytes: int
    inotify: bool
    processes: int
    number: int
    seed: int
    seconds: float


def make(number: int) -> bytes:
    """The content of a blob."""
    chance = random.Random(number)
    size = chance.choice(SIZES) if number % 40 else 9_000_000
    return (chance.randbytes(min(size, _BLOCK)) * (size // _BLOCK + 1))[:size]


def _digest_of(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest(), len(data))


DIGESTS = [_digest_of(make(number)) for number in range(BLOBS)]


def judge_for(root: Path, *, processes: int, own: int = 0) -> Judge:
    """The judge of a stress, as one of its processes sees him."""
    return Judge(root / "judge", root / "content" / "d", list(map(key_text, DIGESTS)), processes=processes, own=own)


class Load:
    """Does what clients and workers do, and checks every answer at once."""

    def __init__(self, store: FilesystemStore, orders: Orders) -> None:
        self.store = store
        self.folder = orders.root / f"files-{os.getpid()}"
        self.folder.mkdir()
        self.stop = orders.root / "stop"
        self.chance = random.Random(orders.seed)
        self.seen: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        files = store.capability(LocalFiles)
        assert files is not None
        self.files = files
        self._paths = map(self.folder.joinpath, map(str, itertools.count()))
        self._judge = judge_for(orders.root, processes=orders.processes, own=orders.number)

    async def run(self, until: float) -> None:
        steps = {"put": self.put, "write": self.write, "read": self.read, "has": self.has, "link": self.link,
                 "adopt": self.adopt}
        while time.monotonic() < until and not self.stop.exists():
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
        if DIGESTS[number].size > 1 << 20:
            return await self.write(number)
        began = time.monotonic()
        with self._judge.use(number):
            await self.store.put(DIGESTS[number], make(number))
        return await self.must_be_there(number, began, "lost after put")

    async def write(self, number: int) -> None:
        began = time.monotonic()
        with self._judge.use(number):
            await self.store.write(DIGESTS[number], PartsReader(split(make(number), 200_000)))
        await self.must_be_there(number, began, "lost after put")

    async def adopt(self, number: int) -> None:
        path = next(self._paths)
        path.write_bytes(make(number))
        began = time.monotonic()
        with self._judge.use(number):
            await self.files.adopt_file(DIGESTS[number], str(path))
        path.unlink(missing_ok=True)
        await self.must_be_there(number, began, "lost after put")

    async def read(self, number: int) -> None:
        try:
            await self._read(number)
        except BlobNotFoundError:
            self.seen["misses"] += 1

    async def has(self, number: int) -> None:
        numbers = [number, *(self.chance.randrange(BLOBS) for _ in range(2))]
        began = time.monotonic()
        with self._judge.use(*numbers):
            sizes = await self.store.has([DIGESTS[each] for each in numbers])
        for each, size in zip(numbers, sizes, strict=True):
            if size is not None:
                self.seen["answers that blobs are there"] += 1
                await self.must_be_there(each, began, "lost after has")

    async def link(self, number: int) -> None:
        path, digest = next(self._paths), DIGESTS[number]
        with self._judge.use(number):
            if await self.files.link_files([Link(digest, str(path), self.chance.random() < 0.5)]):
                return
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest.hash:
            print("wrong bytes", flush=True)
        path.unlink()

    async def must_be_there(self, number: int, when: float, else_seen: str) -> None:
        """After a blob was put or said to be there; when that began. A loss goes to the log at once: who sees it may be
        killed.
        """
        try:
            await self._read(number)
        except BlobNotFoundError:
            older = self._judge.older(when)
            if older is None:
                self.seen["gone as the oldest"] += 1
                return
            ago = time.monotonic() - when
            print(f"{else_seen}: {DIGESTS[number]}, {ago:.3f} s ago; {older} is older and there", flush=True)

    async def _read(self, number: int) -> None:
        digest, found = DIGESTS[number], hashlib.sha256()
        with self._judge.use(number):
            async with self.store.open(digest) as reader:
                while parts := await reader.receive_parts():
                    for part in parts:
                        found.update(part)
        if found.hexdigest() != digest.hash:
            print("wrong bytes", flush=True)


async def _run(orders: Orders, parent: Connection) -> Mapping[str, object]:
    store = FilesystemStore(
        FilesystemOptions(
            content_path=str(orders.root / "content"), temp_path=str(orders.root / "temp"),
            eviction_policy=EvictionPolicy(max_bytes=orders.max_bytes),
        ),
        BareContext(f"CAS of {os.getpid()}"),
    )  # fmt: skip
    async with started(store):
        parent.send("ready")
        load, until = Load(store, orders), time.monotonic() + orders.seconds
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(load.run, until)
        facts = store.statistics()
    return {"seen": {**load.seen, "corrupt": facts["corrupt_blobs"]}, "slowest": load.slowest}


def run(orders: Orders, parent: Connection) -> None:
    """The whole process: sends `ready`, and what it has seen: after `seconds`, or when there is a file ROOT/stop."""
    log = os.open(orders.root / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if not orders.inotify:
        mirror.remote_file_system = lambda path: "a file system without inotify"
    parent.send(trio.run(_run, orders, parent))
