"""LocalFiles over a fast store that has them: what it lacks is fetched first, and what is made goes to both stores.

A link never fails because the fast store is small or busy evicting: what is gone again when it is to be linked is
copied out of the slow store.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

import trio

from nl.plugin import (
    SMALL,
    Buffer,
    CorruptBlobError,
    Digest,
    InvalidRequestError,
    Link,
    LocalFiles,
    NlError,
    NotFoundError,
    Store,
    Uses,
    VerifyingReader,
    for_each,
    open_file,
)
from nl.stores.fast_slow.fetches import Fetches
from nl.stores.fast_slow.options import Routes
from nl.stores.fast_slow.source import Source
from nl.stores.fast_slow.trouble import FastTrouble
from nl.stores.fast_slow.uploads import Uploads

BATCH_BYTES = 4 * 1024 * 1024
BATCH_BLOBS = 256
"""Small blobs that are fetched in one trip."""


class FastSlowFiles:
    """The LocalFiles capability of a fast_slow store whose fast side has it."""

    def __init__(
        self, fast_files: LocalFiles, *, slow: Store, source: Source, routes: Routes, uploads: Uploads,
        fetches: Fetches, uses: Uses, trouble: FastTrouble,
    ) -> None:
        self._fast_files = fast_files
        self._slow = slow
        self._source = source
        self._routes = routes
        self._uploads = uploads
        self._fetches = fetches
        self._uses = uses
        self._trouble = trouble

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        """See LocalFiles. Raises what the slow store raises, but for blobs that it does not have."""
        lacking = await self._fast_files.link_files(links)
        gone = set(lacking)
        for link in links:
            if link.digest not in gone:
                self._uses.add(link.digest)
        if not lacking or not self._routes.reads_slow:
            return lacking
        if self._routes.fills_fast:
            await self._fetch_all(lacking)
            links = [link for link in links if link.digest in gone]
            lacking = await self._fast_files.link_files(links)
        return await self._copy_all(lacking, links) if lacking else lacking

    async def adopt_file(self, digest: Digest, path: str) -> None:
        """See LocalFiles. The slow store has the blob before the fast one takes the file; neither gets a file that is
        not what `digest` says. A fast store that is full or in trouble fails no output that the slow one has.
        """
        if self._routes.writes_slow:
            async with self._uploads.under_way(digest):
                await self._source.wait_for_deletion(digest)
                (size,) = await self._source.has([digest])
                if size is None:
                    async with open_file(path) as reader:
                        await self._slow.write(digest, VerifyingReader(reader, digest))
                    self._source.replaced(digest)
        if self._routes.writes_fast:
            try:
                await self._fast_files.adopt_file(digest, path)
            except InvalidRequestError:
                raise  # the file is at fault
            except NlError as error:
                if not self._routes.writes_slow:
                    raise
                self._trouble.note("adopt", digest, error)

    async def _fetch_all(self, digests: Sequence[Digest]) -> None:
        """Moves blobs into the fast store. Passes over missing ones; any other failure of the slow store is raised."""
        batches = list(_batches(digests))

        async def fetch(at: int) -> None:
            for fetch in await self._fetches.fetch_here(batches[at]):
                error = fetch.slow_error
                if error is not None and not isinstance(error, (NotFoundError, CorruptBlobError)):
                    raise error

        await for_each(len(batches), fetch)

    async def _copy_all(self, digests: Sequence[Digest], links: Sequence[Link]) -> list[Digest]:
        """The files of blobs, written from the slow store's bytes; returns those that it does not have."""
        links_of: defaultdict[Digest, list[Link]] = defaultdict(list)
        for link in links:
            links_of[link.digest].append(link)
        sizes = await self._source.has(digests)
        there = [digest for digest, size in zip(digests, sizes, strict=True) if size is not None]
        missing = set(digests).difference(there)

        async def copy(at: int) -> None:
            try:
                for link in links_of[there[at]]:
                    await self._copy_out(link)
            except (NotFoundError, CorruptBlobError):
                missing.add(there[at])

        await for_each(len(there), copy)
        return [digest for digest in digests if digest in missing]

    async def _copy_out(self, link: Link) -> None:
        """One file. Raises NotFoundError or CorruptBlobError, leaving no file."""
        async with AsyncExitStack() as stack:
            reader = await self._source.open(link.digest, stack)
            done = False
            fd = os.open(link.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                while parts := await reader.receive_parts():
                    await trio.to_thread.run_sync(_write_all, fd, parts)
                os.fchmod(fd, 0o555 if link.executable else 0o444)
                done = True
            finally:
                os.close(fd)
                if not done:
                    os.unlink(link.path)


def _batches(digests: Sequence[Digest]) -> Iterator[list[Digest]]:
    """Small blobs in groups, each larger one by itself."""
    batch: list[Digest] = []
    total = 0
    for digest in digests:
        if digest.size > SMALL:
            yield [digest]
            continue
        batch.append(digest)
        total += digest.size
        if len(batch) == BATCH_BLOBS or total >= BATCH_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _write_all(fd: int, parts: Sequence[Buffer]) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]
