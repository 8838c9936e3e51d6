"""The `example_dict` kind: what a store has to do, and nothing else. Copy it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from nl.plugin import (
    EMPTY_DIGESTS,
    MAX_WHOLE,
    BlobNotFoundError,
    Buffer,
    Count,
    ExhaustedError,
    Key,
    Opened,
    Options,
    Reader,
    Store,
    StoreContext,
    must_be_streamed,
    slice_bytes,
)


class ExampleDictOptions(Options):
    """Keeps blobs in a dict until it is full."""

    max_blobs: Count = 1_000_000
    """Refuse more blobs than this."""


class ExampleDictStore(Store):
    """Nothing is evicted; an upload beyond `max_blobs` is refused with ExhaustedError."""

    Options = ExampleDictOptions

    def __init__(self, options: ExampleDictOptions, context: StoreContext) -> None:
        self._max_blobs = options.max_blobs
        self._name = context.name
        self._blobs: dict[Key, bytes] = dict.fromkeys(EMPTY_DIGESTS, b"")

    async def has(self, keys: Sequence[Key]) -> list[int | None]:
        return [len(self._blobs[key]) if key in self._blobs else None for key in keys]

    async def get(self, key: Key) -> Buffer:
        data = self._find(key)
        if len(data) > MAX_WHOLE:
            raise must_be_streamed(key, len(data))
        return data

    def open(self, key: Key, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return Opened(lambda: slice_bytes(self._find(key), offset=offset, length=length))

    async def put(self, key: Key, data: Buffer) -> None:
        if key in EMPTY_DIGESTS:
            return
        if key not in self._blobs and len(self._blobs) - len(EMPTY_DIGESTS) >= self._max_blobs:
            raise ExhaustedError(f"{key}: {self._name!r} holds {self._max_blobs} blobs already")
        self._blobs[key] = bytes(data)

    async def write(self, key: Key, reader: Reader) -> None:
        data = bytearray()
        while parts := await reader.receive_parts():
            for part in parts:
                data += part
        await self.put(key, data)

    def statistics(self) -> Mapping[str, int | float | str]:
        return {"blobs": len(self._blobs) - len(EMPTY_DIGESTS), "max_blobs": self._max_blobs}

    def _find(self, key: Key) -> bytes:
        try:
            return self._blobs[key]
        except KeyError:
            raise BlobNotFoundError(key, self._name) from None
