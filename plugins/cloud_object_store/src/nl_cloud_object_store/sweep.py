"""Multipart uploads that nobody goes on with, aborted: what they hold costs money and shows nowhere.

Those whose abort failed are tried again until it succeeds. Those of a process that was killed are found by listing,
once they are so old that nobody can be at work on them any more.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from contextlib import suppress

import trio

from nl.plugin import BackendError, Threads
from nl_cloud_object_store.client import ObjectClient, OpenUpload

log = logging.getLogger("nl.stores.cloud_object_store")

AGAIN_S = 30.0
"""Between attempts to abort."""
LIST_S = 6 * 3600.0
"""Between looks for forgotten uploads."""
FORGOTTEN_S = 24 * 3600.0
"""An upload that was begun so long ago is nobody's: services end uploads without progress after minutes."""
MOST = 10_000
"""Uploads that are remembered to be aborted. What comes beyond is found by the next look."""
PAGES = 1000
"""Of a thousand uploads each, in one look."""
_OF_DIGEST = re.compile(r"[0-9a-f]{64}-(0|[1-9][0-9]*)(\.[a-z0-9.]+)?").fullmatch
"""The names of large objects of ours. Uploads of anything else in the bucket are left alone."""


class Sweeper:
    """Aborts uploads in the background."""

    def __init__(
        self, client: ObjectClient, *, threads: Threads, prefix: str, again_s: float = AGAIN_S, list_s: float = LIST_S
    ) -> None:
        self._client = client
        self._threads = threads
        self._prefix = prefix
        self._again_s = again_s
        self._list_s = list_s
        self._left: deque[tuple[str, str]] = deque(maxlen=MOST)
        self._seen: set[OpenUpload] = set()
        self._woken = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    @property
    def pending(self) -> int:
        """Uploads that are still to be aborted."""
        return len(self._left)

    def add(self, key: str, upload: str) -> None:
        """For an upload that could not be aborted at once."""
        self._left.append((key, upload))
        self._woken.set()

    def add_from_thread(self, key: str, upload: str) -> None:
        """Likewise, from any thread. Once the program has ended nobody sweeps; the next one finds it by listing."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.add, key, upload)

    async def run(self) -> None:
        """Until cancelled."""
        list_at = trio.current_time()
        while True:
            if trio.current_time() >= list_at:
                list_at = trio.current_time() + self._list_s
                await self._find_forgotten()
            await self._abort_all()
            self._woken = trio.Event()
            pause = list_at - trio.current_time()  # below zero if it took longer than that to look
            with trio.move_on_after(self._again_s if self._left else max(pause, 0.0)):
                await self._woken.wait()

    async def _abort_all(self) -> None:
        for _ in range(len(self._left)):
            key, upload = self._left[0]
            try:
                await self._threads.look(self._client.abort_upload, key, upload)
            except BackendError as error:
                log.debug("the upload of %s is not aborted yet: %s", key, error)
                return
            self._left.popleft()

    async def _find_forgotten(self) -> None:
        """Those that are old by the server's clock and were there at the last look, too: some servers tell any time."""
        try:
            found = await self._old_ones()
        except BackendError as error:
            log.info("cannot look for forgotten uploads (they cost money; let a lifecycle rule abort them): %s", error)
            return
        self._left.extend((each.key, each.upload) for each in self._seen & found)
        self._seen = found

    async def _old_ones(self) -> set[OpenUpload]:
        """All of ours that are old, up to MOST of them: page after page, whoever else uploads to the bucket."""
        old = time.time() - FORGOTTEN_S
        found: set[OpenUpload] = set()
        after: tuple[str, str] | None = None
        for _ in range(PAGES):
            page = await self._threads.look(self._client.open_uploads, self._prefix, after)
            found.update(each for each in page.uploads
                         if each.started < old and _OF_DIGEST(each.key.removeprefix(self._prefix)))
            if page.after in (None, after) or len(found) >= MOST:  # `after` again: the server knows no pages
                break
            after = page.after
        return found
