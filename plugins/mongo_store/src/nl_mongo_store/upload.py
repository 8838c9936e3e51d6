"""Writing: small values as one document, larger ones in chunks, made visible by one document when all are there.

Whatever ends an upload before that, its chunks are deleted; what nobody could delete is tidied up later (`sweep`). From
the moment in which the last document may have been written, chunks are only deleted by who finds that it was not.
"""

from __future__ import annotations

import trio

from nl.plugin import BackendError, PromisedSource
from nl_mongo_store.connection import Connection
from nl_mongo_store.documents import Documents
from nl_mongo_store.errors import LostError
from nl_mongo_store.keys import new_upload
from nl_mongo_store.sweep import BEAT_S

FRESH_STARTS = 4
"""How often an upload begins again that the server has lost."""
GRACE_S = 5.0
"""How long tidying up may take after an upload that has failed."""


class Uploader:
    """Writes values. All methods raise BackendError, and what a reader raises as it is."""

    def __init__(self, connection: Connection, *, chunk: int, memory: int) -> None:
        """In bytes: a `chunk`, and what the chunks of all uploads may take together."""
        self._connection = connection
        self._chunk = chunk
        self._buffers = trio.CapacityLimiter(max(1, memory // chunk))

    @property
    def busy(self) -> int:
        """Uploads under way."""
        return self._buffers.borrowed_tokens

    async def write(self, name: str, source: PromisedSource, *, new: bool) -> None:
        """Everything that the source has. Where the server has lost what it had of it, and the source can, it begins
        again. `new`: most likely there is no such value.
        """
        async with self._buffers:
            for _ in range(FRESH_STARTS):
                try:
                    return await self._write(name, source, new=new)
                except LostError:
                    if not await source.start_again():
                        raise
            return await self._write(name, source, new=new)

    async def _write(self, name: str, source: PromisedSource, *, new: bool) -> None:
        room = self._chunk if source.size < 0 else min(self._chunk, source.size)
        first = await source.take(bytearray(room))
        if source.ended:
            await self._connection.change(Documents.put, name, first, new=new)
            return
        upload, retries = new_upload(), self._connection.retries
        try:
            await self._send_all(upload, name, source, first)
        except BaseException:
            in_doubt = self._connection.retries != retries
            with trio.move_on_after(GRACE_S, shield=True):
                await self._discard(upload, in_doubt=in_doubt)
            raise
        await self._finish(upload, name, source.taken, new=new)

    async def _send_all(self, upload: str, name: str, source: PromisedSource, first: bytearray) -> None:
        change, beat = self._connection.change, trio.current_time()
        await change(Documents.begin, upload, name)
        data, number = first, 0
        while data:
            await change(Documents.add, upload, number, data)
            if source.ended:
                break
            if trio.current_time() - beat > BEAT_S:
                beat = trio.current_time()
                await change(Documents.still_going_on, upload)
            number += 1
            data = await source.take(bytearray(self._chunk))

    async def _finish(self, upload: str, name: str, size: int, *, new: bool) -> None:
        change = self._connection.change
        try:
            await change(Documents.finish, upload, name, size=size, chunk=self._chunk, new=new)
        except LostError:  # an attempt before this one may have written the value, and its answer was lost
            await change(Documents.remove_broken, name, upload)
            await self._discard(upload, in_doubt=True)
            raise
        try:
            await change(Documents.forget, upload)
        except BackendError:
            pass  # the value is there, and whoever tidies up will see that

    async def _discard(self, upload: str, *, in_doubt: bool) -> None:
        try:
            await self._connection.look(Documents.discard, upload, in_doubt=in_doubt)
        except BackendError:
            pass  # the record is there, and an hour old one day
