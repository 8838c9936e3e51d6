"""Writing: small values in one command, larger ones in chunks under a temporary name, renamed when they are whole.

Beside the temporary value stands a mark: how much of it has been written. A chunk and the new mark are one transaction,
and each tells what the mark was before. So a server that has lost some of an upload (it was restarted, failed over,
evicted) is noticed, where writing at an offset would fill the hole with zeros. The value gets its size at once: growing
it by chunks takes the server four times as long. Whatever ends an upload early, both are deleted; what nobody could
delete expires.
"""

from __future__ import annotations

import trio

from nl.plugin import BackendError, Buffer, PromisedSource, TransientError, ValueTooLargeError
from nl_redis_store.client import GRACE_S, Client, Op
from nl_redis_store.connection import Command, Reply
from nl_redis_store.errors import ReplyError, meaning
from nl_redis_store.keys import TEMPORARY_S, Names
from nl_redis_store.scripts import FINISH

FRESH_STARTS = 4
"""How often an upload begins again that the server has lost."""


class LostError(TransientError):
    """The server has lost what it had of an upload."""


class Uploader:
    """Writes values. All methods raise BackendError, and what a reader raises as it is."""

    def __init__(self, client: Client, names: Names, *, ttl_s: int, chunk: int, largest: int, memory: int) -> None:
        """In bytes: a `chunk`, the `largest` value there may be, what the chunks of all uploads may take together.
        `ttl_s` 0: values live for ever.
        """
        self._client = client
        self._names = names
        self._ttl_s = ttl_s
        self._largest = largest
        self._chunk = chunk
        self._buffers = trio.CapacityLimiter(max(1, memory // chunk))
        self._expiry: tuple[bytes, ...] = (b"EX", b"%d" % ttl_s) if ttl_s else ()

    @property
    def busy(self) -> int:
        """Uploads under way."""
        return self._buffers.borrowed_tokens

    def setting(self, name: bytes, data: Buffer) -> Op:
        """Writes a value at once."""
        return Op(name, ((b"SET", name, data, *self._expiry),), len(data))

    async def write(self, name: bytes, source: PromisedSource) -> None:
        """Everything that the source has. Where the server has lost what it had of it, and the source can, it begins
        again.
        """
        self._check(source.size)
        async with self._buffers:
            for _ in range(FRESH_STARTS):
                try:
                    return await self._write(name, source)
                except LostError:
                    if not await source.start_again():
                        raise
            return await self._write(name, source)

    async def _write(self, name: bytes, source: PromisedSource) -> None:
        data = await source.take(bytearray(self._chunk))
        if source.ended:
            await self._client.one(self.setting(name, data), changes=True)
            return
        unfinished = Unfinished(self._client, self._names.temporary(name), source.size)
        try:
            await unfinished.create(data)
            while not source.ended:
                at = source.taken
                if data := await source.take(bytearray(self._chunk)):
                    self._check(source.taken)
                    await unfinished.add(at, data)
            await unfinished.finish(name, source.taken, ttl_s=self._ttl_s)
        except BaseException:
            with trio.move_on_after(GRACE_S, shield=True):
                await unfinished.discard()
            raise

    def _check(self, size: int) -> None:
        if size > self._largest:
            raise ValueTooLargeError(f"{size} bytes are more than a value may have ({self._largest})")


_SECONDS = b"%d" % TEMPORARY_S


class Unfinished:
    """A value under a temporary name, and its mark. All methods raise BackendError."""

    def __init__(self, client: Client, name: bytes, size: int) -> None:
        """`size` is -1 if it is not known beforehand."""
        self._client = client
        self._name = name
        self._mark = name + b":mark"
        self._size = size

    async def create(self, data: Buffer) -> None:
        """The first chunk."""
        room: tuple[Command, ...] = ()
        if self._size > len(data):
            room = ((b"SETRANGE", self._name, b"%d" % (self._size - 1), b"\0"),)
        await self._transaction(
            (b"SET", self._name, data, b"EX", _SECONDS), *room,
            (b"SET", self._mark, b"%d" % len(data), b"EX", _SECONDS),
            sends=len(data),
        )  # fmt: skip

    async def add(self, at: int, data: Buffer) -> None:
        """The chunk that begins at `at`, where the one before has ended."""
        end = at + len(data)
        size, _, _, mark, _ = await self._transaction(
            (b"STRLEN", self._name),
            (b"SETRANGE", self._name, b"%d" % at, data),
            (b"EXPIRE", self._name, _SECONDS),
            (b"GETSET", self._mark, b"%d" % end),
            (b"EXPIRE", self._mark, _SECONDS),
            sends=len(data),
        )
        # The mark is `end` already where this chunk was sent again, because the first answer to it was lost.
        expected = (self._size,) if self._size >= 0 else (at, end)
        if size not in expected or mark not in (b"%d" % at, b"%d" % end):
            raise LostError(f"the server has lost some of the first {at} bytes of an upload")

    async def finish(self, name: bytes, size: int, *, ttl_s: int) -> None:
        """Makes it visible as `name`."""
        keys = (self._name, self._mark, name)
        if not await FINISH.run(self._client, keys, b"%d" % size, b"%d" % ttl_s):
            raise LostError(f"the server has lost some of the {size} bytes of an upload")

    async def discard(self) -> None:
        """Deletes it, if the server can be asked; else it expires."""
        try:
            await self._client.one(Op(self._name, ((b"UNLINK", self._name, self._mark),)))
        except BackendError:
            pass

    async def _transaction(self, *commands: Command, sends: int) -> list[Reply]:
        op = Op(self._name, ((b"MULTI",), *commands, (b"EXEC",)), sends)
        *_, replies = await self._client.one(op, changes=True)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise meaning(reply, "the server")
        return list(replies)
