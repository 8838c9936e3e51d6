"""What the store costs over bare boto3: the same blobs with the same number of threads, in turns, on a real server.

    python tests/bench_against_boto3.py [--server rclone|moto] [--threads 1,8,16] [--rounds 5]

Prints the rates of the best rounds, their ratio, and the client's CPU time for one operation.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import boto3
import trio
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from cloud_support import KEY, SECRET, S3Server, options_for, s3_server
from nl_cloud_object_store import CloudObjectStore

from nl.plugin import BytesReader, Digest, Store, digest_of
from nl.testing import BareContext, started

MIB = 1024 * 1024
Cost = tuple[float, float]
"""Seconds that a round took, and of those of CPU in this process."""


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", default="rclone", choices=["rclone", "moto"])
    parser.add_argument("--threads", default="1,8,16")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{arguments.server:45} {'boto3':>16} {'store':>16} {'ratio':>6}  CPU per operation, ms")
    for threads in map(int, arguments.threads.split(",")):
        for size, count in ((1024, 400), (64 * MIB, max(4, threads // 2))):
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                server = stack.enter_context(s3_server(folder, arguments.server))
                trio.run(compare, server, threads, size, count, arguments.rounds)


async def compare(server: S3Server, threads: int, size: int, count: int, rounds: int) -> None:
    """Both rows of one size."""
    blobs = [os.urandom(size) for _ in range(min(count, 64))]
    work = [(digest_of(blobs[at % len(blobs)]), blobs[at % len(blobs)]) for at in range(count)]
    bare = Bare(server.bucket(), server.url, threads)
    options = options_for(server.bucket(), server.url, max_threads=threads, remember_s=0)
    async with started(CloudObjectStore(options, BareContext())) as store:
        ours = Ours(store, threads)
        for what in ("put", "get") if size < MIB else ("put", "put as upload_fileobj", "get"):
            best: dict[object, Cost] = {}
            for number in range(rounds + 1):
                for side in (bare, ours) if number % 2 else (ours, bare):
                    cost = await side.run(what, work)
                    if number:  # the first one warms up, and puts what is to be got
                        best[side] = min(cost, best.get(side, cost))
            show(f"{threads:3} threads, {size // 1024:6} KiB, {what}", size, count, best[bare], best[ours])


def show(title: str, size: int, count: int, bare: Cost, ours: Cost) -> None:
    """One row."""
    unit, factor = ("op/s ", 1.0) if size < MIB else ("MiB/s", size / MIB)
    rates = [f"{count * factor / cost[0]:10.0f} {unit}" for cost in (bare, ours)]
    cpu = [f"{1000 * cost[1] / count:.2f}" for cost in (bare, ours)]
    print(f"{title:45} {rates[0]} {rates[1]} {bare[0] / ours[0]:6.2f}  {cpu[0]} {cpu[1]}", flush=True)


class Bare:
    """boto3 in a pool of threads, as one would write it."""

    def __init__(self, bucket: str, url: str, threads: int) -> None:
        self._bucket = bucket
        self._pool = ThreadPoolExecutor(threads)
        self._client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1",
            config=Config(max_pool_connections=threads, request_checksum_calculation="when_required",
                          response_checksum_validation="when_required", s3={"addressing_style": "path"}),
        )

    async def run(self, what: str, work: list[tuple[Digest, bytes]]) -> Cost:
        """A round."""
        one = {"put": self._put, "get": self._get}.get(what, self._put_in_parts)
        began, cpu = time.perf_counter(), time.process_time()
        list(self._pool.map(one, work))
        return time.perf_counter() - began, time.process_time() - cpu

    def _put(self, blob: tuple[Digest, bytes]) -> None:
        self._client.put_object(Bucket=self._bucket, Key=str(blob[0]), Body=blob[1])

    def _put_in_parts(self, blob: tuple[Digest, bytes]) -> None:
        """As boto3 sends what is larger than 8 MiB, but without more threads than were asked for."""
        config = TransferConfig(use_threads=False)
        self._client.upload_fileobj(io.BytesIO(blob[1]), self._bucket, str(blob[0]), Config=config)

    def _get(self, blob: tuple[Digest, bytes]) -> None:
        body = self._client.get_object(Bucket=self._bucket, Key=str(blob[0]))["Body"]
        left = len(blob[1])
        while data := body.read(MIB):
            left -= len(data)
        assert not left


class Ours:
    """The store, asked by as many tasks as it has threads."""

    def __init__(self, store: Store, threads: int) -> None:
        self._store = store
        self._tasks = threads

    async def run(self, what: str, work: list[tuple[Digest, bytes]]) -> Cost:
        """A round."""
        one: Callable[[Digest, bytes], Awaitable[None]] = self._get if what == "get" else self._put
        todo = iter(work)

        async def some() -> None:
            for blob in todo:
                await one(*blob)

        began, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(self._tasks):
                nursery.start_soon(some)
        return time.perf_counter() - began, time.process_time() - cpu

    async def _put(self, digest: Digest, data: bytes) -> None:
        if digest.size <= MIB:
            await self._store.put(digest, data)
        else:
            await self._store.write(digest, BytesReader(data))

    async def _get(self, digest: Digest, data: bytes) -> None:
        if digest.size <= MIB:
            assert len(await self._store.get(digest)) == len(data)
            return
        left = len(data)
        async with self._store.open(digest) as reader:
            while parts := await reader.receive_parts():
                left -= sum(map(len, parts))
        assert not left


if __name__ == "__main__":
    main()
