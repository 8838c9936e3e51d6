"""Uploads that outlive the call that brings them, so that a client whose connection broke can go on where it was.

An `UploadSession` is one `store.write` in a task of the service's nursery, fed by one Write call after another. The
session's own task pulls the bytes from the call's stream, so nothing is handed over from task to task and nothing is
buffered; the call's handler only waits. When the call goes away, the session keeps what the store has taken (in the
store's temporary file), releases the stream's buffers and waits some seconds for a Write of the same name.

Rules for this file:
* a session is *attached* to at most one call; while it is not, it is *parked*, and dies after `persist_s`;
* a handler does not return before the session's task has let go of the call's stream and of its buffers;
* how many sessions are parked, and how many bytes they hold, is bounded; the longest parked go first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from nl.blob.reader import CHUNK, Buffer, Reader
from nl.blob.verify import VerifyingReader
from nl.errors import CancelledError, Code, InvalidRequestError, NlError, UnavailableError
from nl.model.digest import Digest, DigestFunction
from nl.rpc.contract import TransportLost
from nl.services.write_messages import WriteMessage, WriteMessages
from nl.storage.contract import Store

_log = logging.getLogger(__name__)
RELEASE_GRACE_S = 10.0
"""How long a cancelled call waits for the store to be done with the buffers in its hands, before it is stopped."""
SessionKey = tuple[str, str, str, Digest]
"""Name of whoever uploads (nobody resumes another's), instance name, upload id, digest."""


class UploadSession(Reader):
    """One upload; as a reader, what the store pulls. `size` is the digest's; `committed` bytes have been handed out."""

    __slots__ = (
        "_attached", "_busy", "_ended_early", "_error", "_idle", "_message", "_persist_s", "_pull", "_released",
        "_scope", "_source", "_turn", "committed", "digest", "done", "expired", "function",
        "size",
    )  # fmt: skip

    def __init__(self, digest: Digest, function: DigestFunction, *, persist_s: float) -> None:
        self.digest = digest
        self.function = function
        self.size = digest.size
        self.committed = 0
        self.done = False
        self.expired = False
        """Nobody has come back in time: the store is dropping it, and no call can join it any more."""
        self._ended_early = False
        self._persist_s = persist_s
        self._error: BaseException | None = None
        self._source: WriteMessages | None = None
        self._message: WriteMessage | None = None
        self._busy = False
        self._idle = trio.Event()
        self._attached = trio.Event()
        self._turn = trio.Event()
        self._released = trio.Event()
        self._pull = trio.CancelScope()
        self._scope = trio.CancelScope()

    @property
    def attached(self) -> bool:
        """Whether a call feeds it now."""
        return self._busy

    async def run(self, store: Store) -> None:
        """Writes the upload into the store; the session's own task."""
        cancelled = True
        try:
            with self._scope:
                await store.write(self.digest, VerifyingReader(self, self.digest, self.function))
            if self._scope.cancelled_caught:
                self._error = CancelledError(f"the upload of {self.digest} was given up")
            cancelled = False
        except Exception as exc:  # noqa: BLE001  raised again in the call that feeds the session
            self._error = exc
            if not self.attached and not isinstance(exc, NlError):
                _log.exception("a parked upload of %s failed", self.digest)
            cancelled = False
        finally:
            if cancelled:  # with the whole service: who feeds the session must not take it for stored
                self._error = UnavailableError("the server is shutting down")
            self.done = True
            self._source = self._message = None
            self._turn.set()
            self._released.set()

    async def feed(self, source: WriteMessages, first: WriteMessage) -> None:
        """Lets one call feed the session, until the upload is complete or this call has nothing more.

        Returns when the blob is stored; raises what the upload failed with, InvalidRequestError if the client
        half-closes too early. *Cancellation*: parks the session. *Concurrency*: a call that is still attached is
        ended first, since a client resumes an upload whose other connection it has given up.
        """
        if self._busy:
            await self._end_turn()
        if self.done:
            self._raise_failure()
            return
        self._busy = True
        self._ended_early = False
        self._source, self._message = source, first
        self._turn = turn = trio.Event()
        self._released = trio.Event()
        self._idle = trio.Event()
        self._attached.set()
        try:
            await turn.wait()
        finally:
            if not self.done:
                await self._let_go()  # noqa: ASYNC102  # shields itself; what it waits for is bounded
            self._busy = False
            self._idle.set()
        self._raise_failure()
        if self._ended_early:
            raise InvalidRequestError(
                f"the Write ended after {self.committed} of {self.size} bytes without finish_write"
            )
        if not self.done:
            raise NlError(f"the upload of {self.digest} goes on in another call", code=Code.ABORTED)

    def give_up(self) -> None:
        """Ends the session; the store drops what it has."""
        self._scope.cancel()

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise self._error

    async def _end_turn(self) -> None:
        """Takes the session away from the call that is attached."""
        while self._busy:
            self._turn.set()
            await self._idle.wait()

    async def _let_go(self) -> None:
        """Returns when the session's task touches neither the stream nor its buffers any more."""
        self._source = self._message = None
        self._pull.cancel()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(RELEASE_GRACE_S):
                await self._released.wait()
                return
            self._scope.cancel()
            await self._released.wait()

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        """The next bytes that have not been handed out yet. Called by the store, in the session's task."""
        while True:
            source = self._source
            if source is None:
                # Being asked again means that the buffers handed out last are no longer in use.
                self._released.set()
                self._attached = trio.Event()
                await self._wait_attached()
                continue
            with trio.CancelScope() as self._pull:
                parts = await self._receive_from(source, max_bytes)
                if parts is not None:
                    self.committed += sum(map(len, parts))
                    return parts
                # Half-closed: the handler says so to the client and parks the session.
                self._source = self._message = None
                self._ended_early = True
                self._turn.set()

    async def _wait_attached(self) -> None:
        with trio.move_on_after(self._persist_s):
            await self._attached.wait()
        if self._attached.is_set():
            return
        self.expired = True
        raise CancelledError(f"the upload of {self.digest} was not resumed within {self._persist_s:g} s")

    async def _receive_from(self, source: WriteMessages, max_bytes: int) -> Sequence[Buffer] | None:
        """The next new bytes of this call; empty when the upload is complete, None when the call ends before."""
        message = self._message
        while True:
            try:
                if message is None:
                    message = self._message = await source.receive_message()
                    if message is None:
                        return () if self.committed == self.size else None
                parts = await self._receive_new(message, max_bytes)
            except TransportLost:
                return None  # the handler is about to be cancelled
            if parts:
                return parts
            if message.finish:
                if self.committed != self.size:
                    raise InvalidRequestError(
                        f"{self.digest}: finish_write came after {self.committed} of {self.size} bytes"
                    )
                return ()
            message = None

    async def _receive_new(self, message: WriteMessage, max_bytes: int) -> Sequence[Buffer]:
        """The next bytes of a message beyond those that are committed; empty at its end."""
        check_offset(message, committed=self.committed, digest=self.digest)
        while parts := await message.receive_parts(max_bytes):
            start = message.offset
            message.offset = start + sum(map(len, parts))
            if start == self.committed:
                return parts
            if message.offset > self.committed:
                return _skip(parts, self.committed - start)
        return ()


def check_offset(message: WriteMessage, *, committed: int, digest: Digest) -> None:
    """Raises InvalidRequestError unless a message joins onto, or lies within, what has been received."""
    offset = message.offset
    if offset < 0:
        raise InvalidRequestError(f"{digest}: write_offset {offset} is negative")
    if offset > committed:
        raise InvalidRequestError(f"{digest}: write_offset {offset} leaves a gap after the {committed} bytes received")


def _skip(parts: Sequence[Buffer], count: int) -> Sequence[Buffer]:
    for at, part in enumerate(parts):
        if count < len(part):
            return [memoryview(part)[count:], *parts[at + 1 :]] if count else parts[at:]
        count -= len(part)
    return ()


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
            session.give_up()
            return
        if session.done:
            del self._sessions[key]
            return
        self.statistics.parked += 1
        self._sessions[key] = self._sessions.pop(key)  # the longest parked first
        parked = [(at, one) for at, one in self._sessions.items() if not one.attached]
        total = sum(one.committed for _, one in parked)
        for count, (at, one) in enumerate(parked):
            if len(parked) - count <= self._max_parked and total <= self._max_parked_bytes:
                break
            total -= one.committed
            del self._sessions[at]
            one.give_up()
            self.statistics.given_up += 1

    def forget(self, key: SessionKey, session: UploadSession) -> None:
        """To be called when a session's task ends, with nobody attached perhaps."""
        if self._sessions.get(key) is session:
            del self._sessions[key]
