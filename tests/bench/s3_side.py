"""The two sides of the S3 rows: bare boto3 in a pool of threads, and the object store asked by as many tasks."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

import boto3
import trio
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from nl_cloud_object_store import CloudObjectStore, CloudObjectStoreOptions

from nl.plugin import BytesReader, Digest, Store
from nl.testing import BareContext, started

THREADS: Final = 8
_MIB: Final = 1024 * 1024
_KEY: Final = "bench"


class Sides:
    """Both, on one server. `count` small blobs are under way at once; a large one goes alone."""

    def __init__(self, client: Any, store: Store, pool: ThreadPoolExecutor) -> None:
        self._client = client
        self._store = store
        self._pool = pool

    async def bare(self, verb: str, hash: str, data: bytes, count: int) -> None:
        """As one would write it: the pool's threads for small blobs, boto3's own for the parts of a large one."""
        name = f"cas/{hash}-{len(data)}"

        def one(_: int) -> None:
            if verb == "get":
                body = self._client.get_object(Bucket=_KEY, Key=name)["Body"]
                while body.read(_MIB):
                    pass
            elif len(data) <= _MIB:
                self._client.put_object(Bucket=_KEY, Key=name, Body=data)
            else:
                config = TransferConfig(max_concurrency=THREADS)
                self._client.upload_fileobj(io.BytesIO(data), _KEY, name, Config=config)

        list(self._pool.map(one, range(count if len(data) <= _MIB else 1)))

    async def ours(self, verb: str, hash: str, data: bytes, count: int) -> None:
        """The same through the store."""
        store, digest = self._store, Digest(hash, len(data))

        async def one() -> None:
            if verb == "put" and len(data) <= _MIB:
                await store.put(digest, data)
            elif verb == "put":
                await store.write(digest, BytesReader(data))
            elif len(data) <= _MIB:
                await store.get(digest)
            else:
                async with store.open(digest) as reader:
                    while await reader.receive_parts():
                        pass

        async with trio.open_nursery() as nursery:
            for _ in range(count if len(data) <= _MIB else 1):
                nursery.start_soon(one)


@asynccontextmanager
async def sides(url: str) -> AsyncIterator[Sides]:
    """Both, ready."""
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=_KEY, aws_secret_access_key=_KEY, region_name="us-east-1",
        config=Config(max_pool_connections=THREADS, request_checksum_calculation="when_required",
                      response_checksum_validation="when_required", s3={"addressing_style": "path"}),
    )  # fmt: skip
    options = CloudObjectStoreOptions(
        provider="aws", region="us-east-1", bucket=_KEY, endpoint=url, insecure_allow_http=True, key_prefix="cas/",
        access_key_id=_KEY, secret_access_key=_KEY, max_threads=THREADS, remember_s=0,
    )  # fmt: skip
    options.check()
    with ThreadPoolExecutor(THREADS) as pool:
        async with started(CloudObjectStore(options, BareContext())) as store:
            yield Sides(client, store, pool)
