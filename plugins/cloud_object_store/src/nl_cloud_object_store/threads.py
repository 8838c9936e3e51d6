"""Threads whose requests are given up some time after their callers were: a provider may take minutes over a part."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

from nl.plugin import Threads

T = TypeVar("T")
Args = TypeVarTuple("Args")

GRACE_S = 5.0
"""How long a cancelled caller waits for a request that changes something."""


class ImpatientThreads(Threads):
    """Waits for what a cancelled caller has begun, but not for ever."""

    async def change(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """For calls that change something: a cancelled caller waits up to GRACE_S for the request to end, so that what
        it does next (abort the upload, write the key again) comes after it at the server, too.
        """
        ended = trio.Event()
        tell = partial(trio.lowlevel.current_trio_token().run_sync_soon, ended.set)
        permit = threading.Lock()  # for whoever is first: the thread that begins, or the cancellation that forbids it

        def work() -> T:
            if not permit.acquire(blocking=False):
                raise AbandonedError
            try:
                return function(*args)
            finally:
                _tell(tell)

        try:
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self.limiter)
        except trio.Cancelled:
            if not permit.acquire(blocking=False):
                with trio.move_on_after(GRACE_S, shield=True):
                    await ended.wait()
            raise


class AbandonedError(Exception):
    """Ends a thread that was late: its caller was cancelled before it began. Nobody sees it."""


def _tell(tell: Callable[[], object]) -> None:
    try:
        tell()
    except trio.RunFinishedError:
        pass  # the program has ended meanwhile: nobody is waiting
