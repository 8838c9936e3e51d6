"""LocalFiles over a fast store that has them: what it lacks is fetched first, and what is made goes to both stores.

A link never fails because the fast store is small or busy evicting: what is gone again when it is to be linked is
copied out of the slow store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from nl.plugin import Digest, Link, LocalFiles, NlError, NotFoundError, open_file

if TYPE_CHECKING:
    from nl.stores.fast_slow.store import FastSlowStore

MAX_FETCHES_PER_CALL = 16
"""Blobs fetched at once for one `link_files`."""


class FastSlowFiles:
    """The LocalFiles capability of one FastSlowStore."""

    def __init__(self, store: FastSlowStore, fast_files: LocalFiles) -> None:
        self._store = store
        self._fast_files = fast_files

    async def link_files(self, links: Sequence[Link]) -> list[Digest]:
        """See LocalFiles. Raises what the slow store raises, but for blobs that it does not have."""
        lacking = await self._fast_files.link_files(links)
        if not lacking or not self._store.routes.reads_slow:
            return lacking
        if self._store.routes.fills_fast:
            await self._fetch_all(lacking)
            gone = set(lacking)
            links = [link for link in links if link.digest in gone]
            lacking = await self._fast_files.link_files(links)
        missing = []
        for digest in lacking:
            try:
                await self._copy_out([link for link in links if link.digest == digest])
            except NotFoundError:
                missing.append(digest)
        return missing

    async def adopt_file(self, digest: Digest, path: str) -> None:
        """See LocalFiles. The slow store has the blob before the fast one takes the file."""
        store = self._store
        if store.routes.writes_slow:
            async with store.uploads.under_way(digest):
                (size,) = await store.slow.has([digest])
                if size is None:
                    async with open_file(path) as reader:
                        await store.slow.write(digest, reader)
        if store.routes.writes_fast:
            await self._fast_files.adopt_file(digest, path)

    async def _fetch_all(self, digests: Sequence[Digest]) -> None:
        """Moves blobs into the fast store. Passes over missing ones; any other failure of the slow store is raised."""
        todo = iter(digests)
        failures: list[NlError] = []

        async def work() -> None:
            for digest in todo:
                fetch = await self._store.fetches.fetch_here(digest)
                if fetch.slow_error is not None and not isinstance(fetch.slow_error, NotFoundError):
                    failures.append(fetch.slow_error)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(MAX_FETCHES_PER_CALL, len(digests))):
                nursery.start_soon(work)
        if failures:
            raise failures[0]

    async def _copy_out(self, links: Sequence[Link]) -> None:
        """The files of one blob, written from the slow store's bytes. Raises NotFoundError, leaving no file."""
        for link in links:
            async with self._store.slow.open(link.digest) as reader:
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


def _write_all(fd: int, parts: Sequence[bytes | bytearray | memoryview]) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest) :]
