"""Multipart uploads that nobody goes on with, aborted: what they hold costs money and shows nowhere.

Those whose abort failed are tried again until it succeeds. Those of a process that was killed are found by listing,
once they are so old that nobody can be at work on them any more.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque

import trio

from nl_cloud_object_store.client import ObjectClient, ObjectStoreError, OpenUpload
from nl_cloud_object_store.threads import Threads

log = logging.getLogger("nl.stores.cloud_object_store")

AGAIN_S = 30.0
"""Between attempts to abort."""
LIST_S = 6 * 3600.0
"""Between looks for forgotten uploads."""
FORGOTTEN_S = 24 * 3600.0
"""An upload that was begun so long ago is nobody's: services end uploads without progress after minutes."""
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
        self._left: deque[tuple[str, str]] = deque(maxlen=10_000)
        self._seen: set[OpenUpload] = set()
        self._woken = trio.Event()

    @property
    def pending(self) -> int:
        """Uploads that are still to be aborted."""
        return len(self._left)

    def add(self, key: str, upload: str) -> None:
        """For an upload that could not be aborted at once."""
        self._left.append((key, upload))
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        list_at = trio.current_time()
        while True:
            if trio.current_time() >= list_at:
                list_at = trio.current_time() + self._list_s
                await self._find_forgotten()
            await self._abort_all()
            self._woken = trio.Event()
            with trio.move_on_after(self._again_s if self._left else list_at - trio.current_time()):
                await self._woken.wait()

    async def _abort_all(self) -> None:
        for _ in range(len(self._left)):
            key, upload = self._left[0]
            try:
                await self._threads.look(self._client.abort_upload, key, upload)
            except ObjectStoreError as error:
                log.debug("the upload of %s is not aborted yet: %s", key, error)
                return
            self._left.popleft()

    async def _find_forgotten(self) -> None:
        """Those that are old by the server's clock and were there at the last look, too: some servers tell any time."""
        try:
            found = await self._threads.look(self._client.open_uploads, self._prefix)
        except ObjectStoreError as error:
            log.info("cannot look for forgotten uploads (they cost money; let a lifecycle rule abort them): %s", error)
            return
        old = time.time() - FORGOTTEN_S
        for each in self._seen.intersection(found):
            if each.started < old and _OF_DIGEST(each.key.removeprefix(self._prefix)):
                self._left.append((each.key, each.upload))
        self._seen = set(found)
