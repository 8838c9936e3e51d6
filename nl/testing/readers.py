"""Readers that behave as badly as the contract allows, so that a store's assumptions show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from nl.plugin import CHUNK, Buffer, Key, Reader, Store


def split(data: bytes, size: int) -> list[bytes]:
    """`data` in pieces of `size` bytes; the last may be shorter."""
    return [data[at : at + size] for at in range(0, len(data), size)]


async def drain(reader: Reader, max_bytes: int = CHUNK, *, taken: int = 0) -> bytes:
    """Everything a reader delivers, checking on the way that it keeps the Reader contract.

    `taken` is how many bytes the caller had from it before.
    """
    got = bytearray()
    while parts := await reader.receive_parts(max_bytes):
        sizes = [len(part) for part in parts]
        assert all(sizes), "a reader handed out an empty buffer"
        assert sum(sizes) <= max_bytes, f"a reader handed out {sum(sizes)} bytes when asked for at most {max_bytes}"
        for part in parts:
            got += part
    assert not await reader.receive_parts(max_bytes), "a reader went on after its end"
    delivered = taken + len(got)
    assert reader.size in (-1, delivered), f"a reader said {reader.size} bytes and delivered {delivered}"
    return bytes(got)


class PartsReader(Reader):
    """Delivers the pieces given, one or two buffers at a time, and scribbles over each as soon as that is allowed."""

    def __init__(self, parts: Sequence[bytes], *, size: int | None = None) -> None:
        self._parts = [part for part in parts if part]
        self.size = sum(map(len, self._parts)) if size is None else size
        self._lent: list[bytearray] = []
        self.calls = 0

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        await trio.lowlevel.checkpoint()
        self.calls += 1
        for lent in self._lent:
            lent[:] = b"\xee" * len(lent)
        self._lent = []
        room = max_bytes
        while self._parts and room and len(self._lent) < 2:
            part = self._parts[0]
            self._lent.append(bytearray(part[:room]))
            self._parts[:1] = [part[room:]] if len(part) > room else []
            room -= len(self._lent[-1])
        return [memoryview(lent) for lent in self._lent]


class HalfwayReader(PartsReader):
    """Delivers `data` in pieces of `piece` bytes, and calls `at_half` when half of it is gone for the first time.

    It can be read again as often as it is asked to, unless `once`; `rewound` counts that.
    """

    def __init__(self, data: bytes, at_half: Callable[[], object], *, piece: int, once: bool = False) -> None:
        super().__init__(split(data, piece))
        self._data = data
        self._piece = piece
        self._once = once
        self._at_half: Callable[[], object] | None = at_half
        self.rewound = 0

    @property
    def can_rewind(self) -> bool:
        return not self._once

    async def rewind(self) -> None:
        self.rewound += 1
        self._parts = split(self._data, self._piece)

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if self._at_half is not None and sum(map(len, self._parts)) < len(self._data) // 2:
            at_half, self._at_half = self._at_half, None
            at_half()
        return await super().receive_parts(max_bytes)


class FailingReader(PartsReader):
    """Delivers the pieces given and then raises `error`; says beforehand that `size` bytes would come."""

    def __init__(self, parts: Sequence[bytes], error: BaseException, *, size: int) -> None:
        super().__init__(parts, size=size)
        self._error = error

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if parts := await super().receive_parts(max_bytes):
            return parts
        raise self._error


class BlockingReader(PartsReader):
    """Delivers the pieces given, then sets `blocked` and waits for `go_on`; then delivers `rest` and ends."""

    def __init__(self, parts: Sequence[bytes], *, rest: bytes = b"") -> None:
        super().__init__(parts, size=sum(map(len, parts)) + len(rest))
        self._rest = rest
        self.blocked = trio.Event()
        self.go_on = trio.Event()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        if parts := await super().receive_parts(max_bytes):
            return parts
        self.blocked.set()
        await self.go_on.wait()
        self._parts, self._rest = [self._rest] if self._rest else [], b""
        return await super().receive_parts(max_bytes)


async def write_blocked(store: Store, key: Key, reader: BlockingReader) -> None:
    """A write whose reader blocks. Sets `reader.blocked` also when the store ends without asking so far."""
    try:
        await store.write(key, reader)
    finally:
        reader.blocked.set()


class CancellingReader(PartsReader):
    """Cancels a scope when it is asked for the time `at_call`, so that the store meets it at its next checkpoint."""

    def __init__(self, parts: Sequence[bytes], scope: trio.CancelScope, *, at_call: int) -> None:
        super().__init__(parts)
        self._scope = scope
        self._at_call = at_call

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        parts = await super().receive_parts(max_bytes)
        if self.calls > self._at_call or not parts:
            self._scope.cancel()
        return parts
