"""How many uploads there may be at once: those under way hold a descriptor each, parked ones hold disk space, too.

Two bounds, and who has to go when one is reached:
* **slots**: every upload that holds a temporary file has one. When all are taken, one that has waited for its client
  for a while is ended; if none has, the new one waits, and with it, through flow control, its client;
* **parked**: sessions without a call are bounded in number and in bytes. The longest parked go first.
Neither ends the one that has the most bytes, which would cost the most to send again, nor the one just parked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from nl.errors import ExhaustedError, NlError
from nl.model.digest import Digest
from nl.services.uploads import UploadSession
from nl.services.write_messages import WriteMessages

MIN_IDLE_S: Final = 5.0
"""How long an upload must have waited for its client before another may have its slot."""
SessionKey = tuple[str, str, str, Digest]
"""Who uploads (the identity's name), instance name, upload id, digest."""


class Upload(Protocol):
    """What may have a slot."""

    @property
    def waiting_since(self) -> float:
        """Since when it has waited for its client, on trio's clock; infinity while it does not."""

    @property
    def committed(self) -> int:
        """How many bytes it has."""

    def give_up(self, error: NlError) -> None:
        """Ends it."""


class SingleWrite:
    """An upload that comes whole in one message, from the call that brings it straight to the store."""

    __slots__ = ("_messages",)
    committed = 0

    def __init__(self, messages: WriteMessages) -> None:
        self._messages = messages

    @property
    def waiting_since(self) -> float:
        """See `Upload`."""
        return self._messages.waiting_since

    def give_up(self, error: NlError) -> None:
        """See `Upload`."""
        self._messages.stop(error)


class UploadSlots:
    """At most `most` uploads hold a temporary file; who comes first gets a slot first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.ended = 0
        """How many uploads had to make room."""
        self._uploads: set[Upload] = set()
        self._ending: set[Upload] = set()
        self._queue = trio.Lock()
        self._freed = trio.Event()

    @property
    def taken(self) -> int:
        """How many there are."""
        return len(self._uploads)

    async def take(self, upload: Upload) -> None:
        """Gives it a slot, waited for if need be. To be given back by `release`."""
        if len(self._uploads) >= self.most or self._queue.locked():
            async with self._queue:  # only the first in the queue looks for room: it costs as much as there are uploads
                while len(self._uploads) >= self.most:
                    await self._wait_for_room()
                self._uploads.add(upload)
        self._uploads.add(upload)

    def release(self, upload: Upload) -> None:
        """To be called when it holds no file any more."""
        self._uploads.remove(upload)
        self._ending.discard(upload)
        freed, self._freed = self._freed, trio.Event()
        freed.set()

    async def _wait_for_room(self) -> None:
        idle = longest_idle(self._uploads - self._ending, before=trio.current_time() - MIN_IDLE_S)
        if idle is not None:
            self.ended += 1
            self._ending.add(idle)
            idle.give_up(
                ExhaustedError(
                    f"{self.most} uploads are under way, and this one has waited for its client for more than "
                    f"{MIN_IDLE_S:g} s: its place was needed (max_open_files says how many there may be)"
                )
            )
        with trio.move_on_after(MIN_IDLE_S / 5):
            await self._freed.wait()


def longest_idle(uploads: Collection[Upload], *, before: float) -> Upload | None:
    """The upload that has waited longest for its client, at least since `before`; the largest one is spared."""
    idle = [each for each in uploads if each.waiting_since <= before]
    if len(idle) > 1:
        idle.remove(max(idle, key=lambda each: each.committed))
    return min(idle, key=lambda each: each.waiting_since, default=None)


@dataclass(slots=True)
class UploadStatistics:
    """Counters for logs and pages."""

    started: int = 0
    resumed: int = 0
    parked: int = 0
    given_up: int = 0


class UploadSessions:
    """The sessions of one service, by name; only those that a later call could find."""

    def __init__(self, *, max_parked: int, max_parked_bytes: int) -> None:
        self._max_parked = max_parked
        self._max_parked_bytes = max_parked_bytes
        self._sessions: dict[SessionKey, UploadSession] = {}
        self.statistics = UploadStatistics()

    def get(self, key: SessionKey) -> UploadSession | None:
        """The session of that name, attached or parked."""
        return self._sessions.get(key)

    def add(self, key: SessionKey, session: UploadSession) -> None:
        """Makes a session findable, unless one of that name is active: then the new one is on its own."""
        self.statistics.started += 1
        self._sessions.setdefault(key, session)

    def settle(self, key: SessionKey, session: UploadSession) -> None:
        """To be called when a call has left a session: forgets it if it has ended, else keeps within the bounds."""
        if self._sessions.get(key) is not session:
            session.give_up()  # no other call could ever find it
            return
        if session.done:
            del self._sessions[key]
            return
        self.statistics.parked += 1
        self._sessions[key] = self._sessions.pop(key)  # the longest parked first
        parked = {at: one for at, one in self._sessions.items() if not one.attached}
        for at in _beyond_bounds(parked, most=self._max_parked, most_bytes=self._max_parked_bytes):
            del self._sessions[at]
            parked[at].give_up()
            self.statistics.given_up += 1

    def forget(self, key: SessionKey, session: UploadSession) -> None:
        """To be called when a session's task ends, with nobody attached perhaps."""
        if self._sessions.get(key) is session:
            del self._sessions[key]


def _beyond_bounds(
    parked: dict[SessionKey, UploadSession], *, most: int, most_bytes: int
) -> Iterable[SessionKey]:
    """Which of the parked sessions, the longest parked first, have to go so that the others are within the bounds."""
    if not parked:
        return
    newest = next(reversed(parked))
    largest = max(reversed(parked), key=lambda at: parked[at].committed)  # among equals the newest
    count, total = len(parked), sum(one.committed for one in parked.values())
    for at, one in parked.items():
        if count <= most and total <= most_bytes:
            return
        if at not in (newest, largest):
            count -= 1
            total -= one.committed
            yield at
