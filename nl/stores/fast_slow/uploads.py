"""Which keys are being uploaded, and which were of late.

So that `has` can wait for them, changeable keys are written one at a time, and a reader that finds wrong bytes knows
whether they are still the ones that are stored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import trio

from nl.plugin import Digest, Key

MAX_WAIT_S = 10.0
"""How long `has` waits for an upload before it says "missing": a stalled client must not stall another's question. The
next who ask do not wait for that upload any more."""
MAX_RECENT = 4096
"""Uploads that have ended and are remembered; who asks about earlier ones is told yes, to be safe."""


class _Upload:
    __slots__ = ("count", "done", "is_slow", "turn")

    def __init__(self) -> None:
        self.count = 0
        self.done = trio.Event()
        self.is_slow = False
        self.turn = trio.Lock()


class Uploads:
    """Uploads under way, by key. As many entries as there are uploads."""

    def __init__(self) -> None:
        self._by_key: dict[Key, _Upload] = {}
        self._recent: OrderedDict[Key, int] = OrderedDict()
        self._forgotten = 0  # ends up to this one are not in `_recent` any more
        self.now = 0
        """The number of uploads that have ended: a clock for `replaced_since`."""

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: Key) -> bool:
        return key in self._by_key

    @asynccontextmanager
    async def under_way(self, key: Key) -> AsyncIterator[None]:
        """Around an upload. For a key whose value may change, also mutual exclusion: two writers that reached the two
        stores in different order would leave them different for good.
        """
        upload = self._begin(key)
        try:
            if isinstance(key, Digest):
                yield
            else:
                async with upload.turn:
                    yield
        finally:
            self._end(key, upload)

    @contextmanager
    def many_under_way(self, digests: Sequence[Digest]) -> Iterator[None]:
        """Around the upload of many blobs whose content cannot change."""
        begun = [(digest, self._begin(digest)) for digest in digests]
        try:
            yield
        finally:
            for digest, upload in begun:
                self._end(digest, upload)

    async def wait_for(self, keys: Iterable[Key]) -> set[Key]:
        """Waits until the uploads of `keys` have ended, for MAX_WAIT_S at most in all. Which of them were under way."""
        pending = {key: upload for key in keys if (upload := self._by_key.get(key)) is not None}
        with trio.move_on_after(MAX_WAIT_S) as scope:
            for upload in pending.values():
                if not upload.is_slow:
                    await upload.done.wait()
        if scope.cancelled_caught:
            for upload in pending.values():
                upload.is_slow = not upload.done.is_set()
        return set(pending)

    def replaced_since(self, key: Key, began: int) -> bool:
        """Whether an upload of `key` may have ended since `now` was `began`."""
        return began < self._forgotten or self._recent.get(key, 0) > began

    def _begin(self, key: Key) -> _Upload:
        upload = self._by_key.get(key)
        if upload is None:
            upload = self._by_key[key] = _Upload()
        upload.count += 1
        return upload

    def _end(self, key: Key, upload: _Upload) -> None:
        upload.count -= 1
        if not upload.count:
            del self._by_key[key]
            upload.done.set()
        self.now += 1
        self._recent[key] = self.now
        self._recent.move_to_end(key)
        if len(self._recent) > MAX_RECENT:
            _, self._forgotten = self._recent.popitem(last=False)
