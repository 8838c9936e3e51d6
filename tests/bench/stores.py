"""`./dev bench stores`: what each store kind costs over what lies below it: memory, the bare library, bare boto3.

Both sides of a row do the same work in this process, in turns, in bursts of some ten milliseconds (see pairs.py). Time
is the CPU time of all threads of the process. The server that S3 rows talk to is a process of its own that keeps
nothing, so that its cost is nobody's. A row that misses its goal is marked; `--against` is not needed, since the bare
side is its own yardstick.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from nl.plugin import (
    BytesReader,
    Digest,
    DigestFunction,
    EncodedBlobs,
    Encoding,
    Key,
    Reader,
    Store,
    digest_of,
    hash_bytes,
)
from nl.server.memory import MemoryReturner
from nl.stores.cache_metrics import CacheMetricsOptions, CacheMetricsStore
from nl.stores.compression import CompressionOptions, CompressionStore
from nl.stores.compression.options import CompressionAlgorithm, Lz4Options, ZstdOptions
from nl.stores.dedup import DedupOptions, DedupStore
from nl.stores.existence_cache import ExistenceCacheOptions, ExistenceCacheStore
from nl.stores.fast_slow import FastSlowOptions, FastSlowStore
from nl.stores.memory import MemoryOptions, MemoryStore
from nl.stores.shard import ShardOptions, ShardPart, ShardStore
from nl.stores.size_partitioning import SizePartitioningOptions, SizePartitioningStore
from nl.stores.verify import VerifyOptions, VerifyStore
from nl.testing import BareContext, started
from tests.bench import s3_sink
from tests.bench.pairs import Comparison, compared

MIB: Final = 1024 * 1024
LARGE: Final = 4 * MIB
_BURST_S: Final = 0.012
_BLOCK: Final = 64 * 1024
"""What `compression` has for the blocks of LZ4."""
Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Row:
    """One comparison, and its goal: at most `most_added_us` more, or at least `least_ratio` of the bare side's rate."""

    title: str
    bare: Operation
    ours: Operation
    units: float = 1
    """How many units (operations, MiB) one call does: figures are for one."""
    most_added_us: float = 0
    least_ratio: float = 0
    also: tuple[Row, ...] = ()
    """The same beside other bare sides, in the same turns: a line each."""

    def shown(self, bare: Sequence[float], ours: Sequence[float]) -> str:
        """A line of the table, of times in microseconds for one unit."""
        found = compared(bare, ours)
        added = statistics.median(b - a for a, b in zip(bare, ours, strict=True))
        low, high = self.spread(found)
        rate = 1 / found.ratio
        if not self.least_ratio and not self.most_added_us:
            goal, missed = "none", False
        elif self.least_ratio:
            goal, missed = f">= {self.least_ratio:.2f}", rate < self.least_ratio
        else:
            goal, missed = f"<= {self.most_added_us:.0f} us", added > self.most_added_us
        return (
            f"  {self.title:44} {found.there:10.1f} us {found.here:10.1f} us {added:+9.1f} us  {rate:5.2f} "
            f"({low:.2f} to {high:.2f})  {goal}{'  MISSED' if missed else ''}"
        )

    @staticmethod
    def spread(found: Comparison) -> tuple[float, float]:
        """The quartiles of the rate."""
        low, high = found.spread
        return 1 / high, 1 / low


async def burst(operation: Operation, count: int) -> float:
    """Microseconds of CPU for one operation."""
    began = time.process_time_ns()
    for _ in range(count):
        await operation()
    return (time.process_time_ns() - began) / count / 1e3


async def measure(row: Row, rounds: int) -> list[str]:
    """Runs all sides in turns; the lines of the table."""
    lines = (row, *row.also)
    sides = [*(each.bare for each in lines), row.ours]
    counts: dict[Operation, int] = {}
    for side in sides:
        await burst(side, 1)  # what is done once, and what is loaded then, is not measured
        counts[side] = max(1, min(5000, int(_BURST_S * 1e6 / max(await burst(side, 3), 0.1)))) if rounds > 1 else 1
    taken: dict[Operation, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            taken[side].append(await burst(side, counts[side]) / row.units)
        sides.reverse()
    return [each.shown(taken[each.bare], taken[row.ours]) for each in lines]


# -- what is stored


def words(size: int, seed: int = 1) -> bytes:
    """Bytes that compress to about a half, as object files do."""
    chosen = random.Random(seed)
    known = [chosen.randbytes(chosen.randint(8, 40)) for _ in range(2000)]
    pieces = []
    while size > 0:
        pieces += [*chosen.choices(known, k=2), chosen.randbytes(8)]
        size -= sum(map(len, pieces[-3:]))
    return b"".join(pieces)[: size or None]


async def get(store: Store, digest: Digest) -> None:
    await store.get(digest)


async def stream(store: Store, digest: Digest, *, offset: int = 0, length: int | None = None) -> None:
    async with store.open(digest, offset=offset, length=length) as reader:
        while await reader.receive_parts():
            pass


async def write(store: Store, digest: Digest, data: bytes) -> None:
    await store.write(digest, BytesReader(data))


async def put(store: Store, digest: Digest, data: bytes) -> None:
    await store.put(digest, data)


async def bare(function: Callable[[], object]) -> None:
    function()


# -- the kinds


def memory() -> MemoryStore:
    return MemoryStore(MemoryOptions(), BareContext())


class Taken(MemoryStore):
    """Takes each large blob once, and then only reads it to its end: what it costs to let two buffers grow beside each
    other, as in `fast_slow`, is no wrapper's.
    """

    async def write(self, key: Key, reader: Reader) -> None:
        if await self.has([key]) == [None]:
            await super().write(key, reader)
        while await reader.receive_parts():
            pass


def wrappers(context: BareContext) -> Iterator[tuple[str, Store]]:
    """Each kind that stands in front of others and changes nothing, over memory of its own."""
    spec, one = context.spec, partial(Taken, MemoryOptions(), BareContext())
    yield "cache_metrics", CacheMetricsStore(CacheMetricsOptions(backend=spec(one()), cache_type="cas"), context)
    yield "existence_cache", ExistenceCacheStore(ExistenceCacheOptions(backend=spec(one())), context)
    yield "fast_slow", FastSlowStore(FastSlowOptions(fast=spec(one()), slow=spec(one())), context)
    yield "shard", ShardStore(ShardOptions(stores=(ShardPart(store=spec(one())), ShardPart(store=spec(one())))),
                              context)
    yield "size_partitioning", SizePartitioningStore(
        SizePartitioningOptions(size=MIB, lower_store=spec(one()), upper_store=spec(one())), context
    )
    yield "verify", VerifyStore(VerifyOptions(backend=spec(one()), verify_size=True), context)


async def wrapper_rows(stack: AsyncExitStack, digests: Sequence[Digest]) -> list[Row]:
    """4 KiB and 4 MiB through each, beside memory alone; FindMissingBlobs' question for 10,000."""
    small, large = words(4096), words(LARGE)
    few, many = digest_of(small), digest_of(large)
    context, below = BareContext(), Taken(MemoryOptions(), BareContext())
    rows: list[Row] = []
    for name, store in wrappers(context):
        await stack.enter_async_context(started(store, context))
        context.children.clear()
        for each in (below, store):
            await each.put(few, small)
            await each.put_many([(digest, b"") for digest in digests])
            await each.write(many, BytesReader(large))
        rows += [
            Row(f"{name}: get 4 KiB", partial(get, below, few), partial(get, store, few), most_added_us=10),
            Row(f"{name}: read 4 MiB, each MiB", partial(stream, below, many), partial(stream, store, many),
                units=LARGE / MIB, most_added_us=60),
            Row(f"{name}: write 4 MiB, each MiB", partial(write, below, many, large),
                partial(write, store, many, large), units=LARGE / MIB, most_added_us=60),
            Row(f"{name}: has 10,000, each 1,000", partial(below.has, digests), partial(store.has, digests),
                units=len(digests) / 1000, most_added_us=2000),
        ]
    return rows


async def compression_rows(stack: AsyncExitStack) -> list[Row]:
    """Beside the bare library on the same pieces; for sealed LZ4 with the BLAKE3 of each. For LZ4 of NativeLink's
    format reading is shown beside the library alone, and with the SHA-256 of what comes out: all of it is checked.
    """
    import lz4.block

    from nl.blob.zstd import library

    context, large = BareContext(), words(LARGE)
    digest = digest_of(large)
    lz4_store, plain_store, zstd_store = (
        CompressionStore(CompressionOptions(backend=context.spec(memory()), compression_algorithm=algorithm), context)
        for algorithm in (
            CompressionAlgorithm(lz4=Lz4Options(seal=True)), CompressionAlgorithm(lz4=Lz4Options()),
            CompressionAlgorithm(zstd=ZstdOptions()),
        )
    )
    await stack.enter_async_context(started(lz4_store, context))
    await stack.enter_async_context(started(plain_store))
    await stack.enter_async_context(started(zstd_store))
    for store in (lz4_store, plain_store, zstd_store):
        await store.write(digest, BytesReader(large))
    pieces = [large[at : at + _BLOCK] for at in range(0, LARGE, _BLOCK)]
    blocks = [lz4.block.compress(piece, store_size=False) for piece in pieces]
    frame = library().compress(large, 3)

    def compress_blocks() -> None:
        for piece in pieces:
            hash_bytes(DigestFunction.BLAKE3, lz4.block.compress(piece, store_size=False))

    def decompress_blocks() -> list[bytes]:
        return [lz4.block.decompress(block, uncompressed_size=_BLOCK) for block in blocks
                if hash_bytes(DigestFunction.BLAKE3, block)]

    def only_compress() -> None:
        for piece in pieces:
            lz4.block.compress(piece, store_size=False)

    def only_decompress() -> list[bytes]:
        return [lz4.block.decompress(block, uncompressed_size=_BLOCK) for block in blocks]

    def decompress_and_hash() -> None:
        hasher = hashlib.sha256()
        for block in blocks:
            hasher.update(lz4.block.decompress(block, uncompressed_size=_BLOCK))
        hasher.hexdigest()

    compress, decompress = partial(bare, compress_blocks), partial(bare, decompress_blocks)
    mib, ratio, read = LARGE / MIB, 0.7, partial(stream, plain_store, digest)
    rows = [
        Row("lz4: write 4 MiB, each MiB", compress, partial(write, lz4_store, digest, large), mib, 0, ratio),
        Row("lz4: put 4 MiB, each MiB", compress, partial(put, lz4_store, digest, large), mib, 0, ratio),
        Row("lz4: read 4 MiB, each MiB", decompress, partial(stream, lz4_store, digest), mib, 0, ratio),
        Row("lz4: read 64 KiB of 4 MiB, beside all of it", partial(stream, lz4_store, digest),
            partial(stream, lz4_store, digest, offset=2 * MIB, length=_BLOCK), 1, 0, 2),
        Row("lz4 of NativeLink: write 4 MiB, each MiB", partial(bare, only_compress),
            partial(write, plain_store, digest, large), mib, 0, ratio),
        Row("lz4 of NativeLink: read 4 MiB, each MiB", partial(bare, only_decompress), read, mib, also=(
            Row("  beside LZ4 and SHA-256 of all of it", partial(bare, decompress_and_hash), read, mib, 0, ratio),)),
    ]
    compress = partial(bare, lambda: library().compress(large, 3))
    decompress = partial(bare, lambda: library().decompress(frame))
    plain, encoded = memory(), zstd_store.capability(EncodedBlobs)
    await plain.write(digest, BytesReader(large))
    assert encoded is not None

    async def passed_through() -> None:
        async with encoded.open_encoded(digest, (Encoding.ZSTD,)) as opened:
            while await opened.reader.receive_parts():
                pass

    return [
        *rows,
        Row("zstd: write 4 MiB, each MiB", compress, partial(write, zstd_store, digest, large), mib, 0, ratio),
        Row("zstd: read 4 MiB, each MiB", decompress, partial(stream, zstd_store, digest), mib, 0, ratio),
        Row("zstd: pass 4 MiB through, each MiB", partial(stream, plain, digest), passed_through, mib, 60),
        Row("zstd: read 64 KiB of 4 MiB, beside all of it", partial(stream, zstd_store, digest),
            partial(stream, zstd_store, digest, offset=2 * MIB, length=_BLOCK), 1, 0, 1),
    ]


async def dedup_rows(stack: AsyncExitStack) -> list[Row]:
    """Beside FastCDC and BLAKE3 alone, on the whole blob in memory; reading, beside BLAKE3 of the chunks."""
    import pyfastcdc

    context, data = BareContext(), random.Random(1).randbytes(4 * LARGE)
    digest = digest_of(data)
    options = DedupOptions(index_store=context.spec(memory()), content_store=context.spec(memory()))
    store = DedupStore(options, context)
    await stack.enter_async_context(started(store, context))
    await store.write(digest, BytesReader(data))
    view = memoryview(data)

    def pieces() -> list[memoryview]:
        cutter = pyfastcdc.FastCDC(
            avg_size=options.normal_size, min_size=options.min_size, max_size=options.max_size
        )
        return [view[each.offset : each.offset + each.length] for each in cutter.cut_buf(view)]

    def cut() -> None:
        for piece in pieces():
            digest_of(piece, DigestFunction.BLAKE3)

    known = [bytes(piece) for piece in pieces()]
    mib = len(data) / MIB
    return [
        Row("dedup: write 16 MiB, each MiB", partial(bare, cut), partial(write, store, digest, data), mib, 0, 0.7),
        Row("dedup: read 16 MiB, each MiB",
            partial(bare, lambda: [hash_bytes(DigestFunction.BLAKE3, piece) for piece in known]),
            partial(stream, store, digest), mib, 0, 0.7),
    ]


async def s3_rows(stack: AsyncExitStack) -> list[Row]:
    """Beside boto3 with as many threads; nothing where the plugin is not installed."""
    try:
        from tests.bench import s3_side
    except ImportError as error:
        print(f"  S3: left out ({error})")
        return []
    url = stack.enter_context(s3_sink.running())
    sides = await stack.enter_async_context(s3_side.sides(url))
    small, large = words(1024), 64 * words(MIB)
    rows = []
    for name, data, unit in (("1 KiB, each of 8", small, 8), ("64 MiB, each MiB", large, 64)):
        digest = hashlib.sha256(data).hexdigest()
        for verb in ("put", "get"):
            rows.append(Row(f"S3: {verb} {name}", partial(sides.bare, verb, digest, data, unit),
                            partial(sides.ours, verb, digest, data, unit), unit, 0, 0.8))
    return rows


GROUPS: Final = {
    "wrappers": "each kind over memory, beside memory alone",
    "compression": "beside the bare library and, for LZ4, the hash that each read demands",
    "dedup": "beside FastCDC and BLAKE3",
    "s3": "beside bare boto3, both on a server that keeps nothing",
}


async def run(options: argparse.Namespace) -> None:
    """All groups that were asked for, with the heap tuned as in a server."""
    async with trio.open_nursery() as nursery:
        await nursery.start(MemoryReturner().run)
        await measure_groups(options)
        nursery.cancel_scope.cancel()


async def measure_groups(options: argparse.Namespace) -> None:
    """Prints a table for each."""
    print(f"  {'':44} {'bare':>13} {'store':>13} {'added':>12}  rate (quartiles), bare is 1; goal")
    digests = [digest_of(str(number).encode()) for number in range(10_000)]
    makers: dict[str, Callable[[AsyncExitStack], Awaitable[list[Row]]]] = {
        "wrappers": partial(wrapper_rows, digests=digests), "compression": compression_rows, "dedup": dedup_rows,
        "s3": s3_rows,
    }
    for group, headline in GROUPS.items():
        if options.only and group not in options.only:
            continue
        print(f"{group}: {headline}", flush=True)
        async with AsyncExitStack() as stack:
            for row in await makers[group](stack):
                print(*await measure(row, options.rounds), sep="\n", flush=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench stores", description=__doc__)
    parser.add_argument("--only", choices=list(GROUPS), action="append")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    print(f"{sys.implementation.name} {sys.version.split()[0]}: microseconds of CPU of the whole process")
    trio.run(run, options)
    return 0
