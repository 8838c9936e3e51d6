"""A store that fails on a schedule: what stands in front of one is tested with it.

Each operation has a plan of its own: a fault for each of the next calls, None for those that work; when the plan has
ended, everything works. What is not a fault of this store passes through, so it is as right as what is behind it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio

from nl.plugin import CHUNK, Buffer, Key, NlError, Reader, Store, StoreWrapper, UnavailableError

C = TypeVar("C")
OPERATIONS = ("has", "touch", "get", "open", "put", "write")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one call.

    `delay_s` comes first. `after_bytes` is how far a reader gets (of `open`), or how much is consumed (of `write`),
    before `error`; other operations fail at once. `acknowledged`: the operation is carried out and its answer lost.
    `lies`: no error, but the first byte of what is read is another.
    """

    error: NlError | None = None
    delay_s: float = 0
    after_bytes: int = 0
    acknowledged: bool = False
    lies: bool = False


def away(**kwargs: float) -> Fault:
    """The backend cannot be reached."""
    return Fault(UnavailableError("the backend is away"), **kwargs)  # type: ignore[arg-type]


class FaultyStore(StoreWrapper):
    """Passes on what it does not spoil. `get_many` and `put_many` go by the plans of `get` and `put`, blob by blob."""

    def __init__(self, backend: Store) -> None:
        super().__init__(backend)
        self.calls: Counter[str] = Counter()
        """How often each operation was asked for, of this store alone."""
        self._plans: dict[str, deque[Fault | None]] = {name: deque() for name in OPERATIONS}

    def plan(self, operation: str, *faults: Fault | None) -> None:
        """Adds to the plan of an operation: a fault, or None, for each of its next calls."""
        self._plans[operation].extend(faults)

    def heal(self) -> None:
        """Nothing fails any more."""
        for plan in self._plans.values():
            plan.clear()

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        await self._fail(self._next("has"))
        return await self.backend.has(keys)

    async def touch(self, keys: Sequence[Key]) -> None:
        await self._fail(self._next("touch"))
        await self.backend.touch(keys)

    async def get(self, key: Key) -> Buffer:
        fault = self._next("get")
        await self._fail(fault)
        data = await self.backend.get(key)
        return _spoilt(data) if fault is not None and fault.lies else data

    async def get_many(self, keys: Sequence[Key]) -> list[Buffer | NlError]:
        return await Store.get_many(self, keys)

    @asynccontextmanager
    async def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AsyncIterator[Reader]:
        fault = self._next("open")
        if fault is not None and not fault.after_bytes:
            await self._fail(fault)
        async with self.backend.open(key, offset=offset, length=length) as reader:
            yield reader if fault is None else _FaultyReader(reader, fault)

    async def put(self, key: Key, data: Buffer) -> None:
        fault = self._next("put")
        if fault is not None and fault.acknowledged:
            await self.backend.put(key, data)
        await self._fail(fault)
        await self.backend.put(key, data)

    async def put_many(self, blobs: Sequence[tuple[Key, Buffer]]) -> list[NlError | None]:
        return await Store.put_many(self, blobs)

    async def write(self, key: Key, reader: Reader) -> None:
        fault = self._next("write")
        if fault is None or fault.error is None:
            await self._fail(fault)
            await self.backend.write(key, reader)
        elif fault.acknowledged:
            await self.backend.write(key, reader)
            raise fault.error
        else:
            await trio.sleep(fault.delay_s)
            await self.backend.write(key, _FaultyReader(reader, fault))

    def capability(self, kind: type[C]) -> C | None:
        return self.backend.capability(kind)

    def _next(self, operation: str) -> Fault | None:
        self.calls[operation] += 1
        plan = self._plans[operation]
        return plan.popleft() if plan else None

    async def _fail(self, fault: Fault | None) -> None:
        if fault is not None:
            await trio.sleep(fault.delay_s)
            if fault.error is not None:
                raise fault.error


class _FaultyReader(Reader):
    """A reader that is delayed, cut off or wrong."""

    __slots__ = ("_fault", "_left", "_lies", "_reader", "size")

    def __init__(self, reader: Reader, fault: Fault) -> None:
        self._reader = reader
        self._fault = fault
        self._left = fault.after_bytes
        self._lies = fault.lies
        self.size = reader.size

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        error = self._fault.error
        if error is not None:
            if not self._left:
                raise error
            max_bytes = min(max_bytes, self._left)
        parts = await self._reader.receive_parts(max_bytes)
        if not parts and error is not None:
            raise error
        self._left -= sum(map(len, parts))
        if self._lies and parts:
            self._lies = False
            return [_spoilt(parts[0]), *parts[1:]]
        return parts


def _spoilt(data: Buffer) -> bytes:
    return bytes([data[0] ^ 1]) + bytes(data[1:]) if len(data) else b""
