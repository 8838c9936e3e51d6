"""Looking at a store from outside: sample blobs and names, and reading in every way at once."""

from __future__ import annotations

import random

from nl.plugin import CHUNK, SMALL, BlobNotFoundError, Buffer, Key, Store
from nl.testing.readers import drain

SIZES = (1, 2, 4095, SMALL - 1, SMALL, SMALL + 1, CHUNK - 1, CHUNK + 1, 3 * CHUNK + 7)
NAMES = ("a", "a/b", "/a", "../a", "..", ".", "", "with space", "ünï ✓", "%2e%2e", "a\nb", "x" * 2000, "ab" * 32 + "-5")


def make_blob(size: int, *, seed: int = 0) -> bytes:
    """Bytes that do not repeat; equal arguments give equal bytes."""
    return random.Random(size * 1000 + seed).randbytes(size)


def same(got: Buffer | None, expected: Buffer | None) -> bool:
    """Whether two blobs are equal. To be asserted, in place of an equality of blobs.

    pytest explains a failed `==` by the differences, which takes minutes for blobs that are large or random, and under
    CI it does so without a limit.
    """
    return got == expected


async def read(store: Store, key: Key, *, offset: int = 0, length: int | None = None) -> bytes:
    """A range of a blob the chunked way."""
    async with store.open(key, offset=offset, length=length) as reader:
        return await drain(reader)


async def find(store: Store, key: Key) -> bytes | None:
    """A blob's bytes, or None; all ways of asking must agree."""
    (size,) = await store.has([key])
    try:
        whole = bytes(await store.get(key))
    except BlobNotFoundError:
        whole = None
    try:
        streamed = await read(store, key)
    except BlobNotFoundError:
        streamed = None
    assert whole == streamed, f"get and open differ about {key}"
    assert size == (None if whole is None else len(whole)), f"has says {size} of {key}, reading gives another answer"
    return whole
