"""Which keys are being uploaded: so that `has` can wait for them, and changeable keys are written one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio

from nl.plugin import Digest, Key

MAX_WAIT_S = 10.0
"""How long `has` waits for an upload before it says "missing": a stalled client must not stall another's question."""


class _Upload:
    __slots__ = ("count", "done", "turn")

    def __init__(self) -> None:
        self.count = 0
        self.done = trio.Event()
        self.turn = trio.Lock()


class Uploads:
    """Uploads under way, by key. As many entries as there are uploads."""

    def __init__(self) -> None:
        self._by_key: dict[Key, _Upload] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: Key) -> bool:
        return key in self._by_key

    @asynccontextmanager
    async def under_way(self, key: Key) -> AsyncIterator[None]:
        """Around an upload. For a key whose value may change, also mutual exclusion: two writers that reached the two
        stores in different order would leave them different for good.
        """
        upload = self._by_key.get(key)
        if upload is None:
            upload = self._by_key[key] = _Upload()
        upload.count += 1
        try:
            if isinstance(key, Digest):
                yield
            else:
                async with upload.turn:
                    yield
        finally:
            upload.count -= 1
            if not upload.count:
                del self._by_key[key]
                upload.done.set()

    async def wait_for(self, keys: Iterable[Key]) -> set[Key]:
        """Waits until the uploads of `keys` have ended, for MAX_WAIT_S at most in all. Which of them were under way."""
        pending = {key: upload for key in keys if (upload := self._by_key.get(key)) is not None}
        with trio.move_on_after(MAX_WAIT_S):
            for upload in pending.values():
                await upload.done.wait()
        return set(pending)
