"""Uploads that outlive the call that brings them, so that a client whose connection broke can go on where it was.

An `UploadSession` is one `store.write` in a task of the service's nursery, fed by one Write call after another. The
session's own task pulls the bytes from the call's stream, so nothing is handed over from task to task and nothing is
buffered; the call's handler only waits. When the call goes away, the session keeps what the store has taken (in the
store's temporary file), releases the stream's buffers and waits some seconds for a Write of the same name.

    PARKED --feed--> FED --the call goes--> RELEASING --the store asks for more--> PARKED
    FED --the call has nothing more--> PARKED      PARKED --persist_s--> EXPIRED      any --the store ends--> ENDED

Rules for this file:
* a session has a call while it is FED or RELEASING, and then only one;
* a handler does not return before the session's task has let go of the call's stream and of its buffers;
* a session that is PARKED holds neither.

Not here: how many uploads there may be (`nl.services.upload_bounds`).
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from math import inf

import trio

from nl.blob.reader import CHUNK, Buffer, Reader
from nl.blob.verify import VerifyingReader
from nl.errors import CancelledError, Code, InvalidRequestError, NlError, UnavailableError
from nl.model.digest import Digest
from nl.rpc.contract import TransportLost
from nl.services.write_messages import WriteMessage, WriteMessages, WriteStoppedError
from nl.storage.contract import Store

_log = logging.getLogger(__name__)
RELEASE_GRACE_S = 10.0
"""How long a cancelled call waits for the store to be done with the buffers in its hands, before it is stopped."""


class State(enum.Enum):
    """Where a session is; see the module's docstring."""

    PARKED = enum.auto()
    """Waits for a call, the first one or the next."""
    FED = enum.auto()
    """Takes what a call brings."""
    RELEASING = enum.auto()
    """The call goes; the store may still have its buffers in hand."""
    EXPIRED = enum.auto()
    """Nobody has come back in time: the store is dropping it, and no call can join it any more."""
    ENDED = enum.auto()
    """Stored, or failed."""


class _Call:
    """One Write that feeds a session."""

    __slots__ = ("ended_early", "message", "messages")

    def __init__(self, messages: WriteMessages, first: WriteMessage) -> None:
        self.messages = messages
        self.message: WriteMessage | None = first
        self.ended_early = False


class UploadSession(Reader):
    """One upload; as a reader, what the store pulls. `size` is the digest's; `committed` bytes have been handed out."""

    __slots__ = (
        "_call", "_changed", "_error", "_handed_out", "_parked_since", "_persist_s", "_scope", "committed", "digest",
        "size", "state",
    )  # fmt: skip

    def __init__(self, digest: Digest, *, persist_s: float) -> None:
        self.digest = digest
        self.size = digest.size
        self.committed = 0
        self.state = State.PARKED
        self._changed = trio.Event()
        """Set, and replaced, whenever the state changes."""
        self._call: _Call | None = None
        self._parked_since = inf
        self._persist_s = persist_s
        self._error: BaseException | None = None
        self._handed_out: list[Buffer] = []
        self._scope = trio.CancelScope()

    @property
    def attached(self) -> bool:
        """Whether it has a call."""
        return self._call is not None

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state is State.ENDED

    @property
    def joinable(self) -> bool:
        """Whether a call can go on with it."""
        return self.state not in (State.EXPIRED, State.ENDED)

    @property
    def waiting_since(self) -> float:
        """Since when it has waited for its client, on trio's clock; infinity while it does not."""
        return self._parked_since if self._call is None else self._call.messages.waiting_since

    async def run(self, store: Store) -> None:
        """Writes the upload into the store; the session's own task."""
        cancelled = True
        try:
            with self._scope:
                await store.write(self.digest, VerifyingReader(self, self.digest))
            if self._scope.cancelled_caught and self._error is None:
                self._error = CancelledError(f"the upload of {self.digest} was given up")
            cancelled = False
        except Exception as exc:  # noqa: BLE001  raised again in the call that feeds the session
            self._error = exc
            if isinstance(exc, NlError):
                # The error stays with the session, and so would the frames of the store, with all that they hold: the
                # call that raises it makes a circle of them, which the cycle collector rarely looks for.
                exc.__traceback__ = exc.__context__ = exc.__cause__ = None
            elif not self.attached:
                _log.exception("a parked upload of %s failed", self.digest)
            cancelled = False
        finally:
            if cancelled:  # with the whole service: who feeds the session must not take it for stored
                self._error = UnavailableError("the server is shutting down")
            self._let_go(State.ENDED)

    async def feed(self, messages: WriteMessages, first: WriteMessage) -> None:
        """Lets one call feed the session, until the upload is complete or this call has nothing more.

        Returns when the blob is stored; raises what the upload failed with, InvalidRequestError if the client
        half-closes too early or begins beyond what is here: that ends this call alone. *Cancellation*: parks the
        session. *Concurrency*: a call that is still attached is ended first, since a client resumes an upload whose
        other connection it has given up.
        """
        while self.state not in (State.PARKED, State.ENDED):
            self._detach()
            await self._changed.wait()
        if self.state is State.PARKED:
            check_offset(first, committed=self.committed, digest=self.digest)  # what is here stays for a better call
            call = self._call = _Call(messages, first)
            self._enter(State.FED)
            try:
                while self._takes_from(call):
                    await self._changed.wait()
            finally:
                if self._call is call:
                    await self._release(call)  # noqa: ASYNC102  # shields itself; what it waits for is bounded
            if not self.done:
                raise self._unfinished(call)
        if self._error is not None:
            raise self._error

    def give_up(self, error: NlError | None = None) -> None:
        """Ends the session, with `error` in the call that feeds it; the store drops what it has."""
        if error is not None and self._error is None:
            self._error = error
        self._scope.cancel()

    def _unfinished(self, call: _Call) -> NlError:
        """What a call is told whose session goes on without it."""
        if call.ended_early:
            return InvalidRequestError(
                f"the Write ended after {self.committed} of {self.size} bytes without finish_write"
            )
        return NlError(f"the upload of {self.digest} goes on in another call", code=Code.ABORTED)

    def _takes_from(self, call: _Call) -> bool:
        return self._call is call and self.state is State.FED

    def _enter(self, state: State) -> None:
        self.state = state
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _detach(self) -> None:
        """Takes the session away from the call that feeds it, if one does."""
        if self.state is State.FED and self._call is not None:
            self._enter(State.RELEASING)
            self._call.messages.stop()

    def _let_go(self, state: State) -> None:
        """Called by the session's own task, when it touches neither the call's stream nor its buffers any more."""
        self._handed_out.clear()  # the store may keep the list in a variable, and with it what the views are of
        self._call = None
        self._parked_since = trio.current_time() if state is State.PARKED else inf
        self._enter(state)

    async def _release(self, call: _Call) -> None:
        """Detaches a call, and returns when the session's task has let go of it."""
        self._detach()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(RELEASE_GRACE_S):
                while self._call is call:
                    await self._changed.wait()
                return
            self._scope.cancel()
            while self._call is call:
                await self._changed.wait()

    # -- the session's own task

    async def receive_parts(self, max_bytes: int = CHUNK) -> Sequence[Buffer]:
        """The next bytes that have not been handed out yet. Called by the store, in the session's task."""
        while True:
            self._handed_out.clear()  # being asked for more means that they are no longer in use
            if self.state is State.FED and (parts := await self._receive_from_call(max_bytes)) is not None:
                self.committed += sum(map(len, parts))
                self._handed_out = parts if type(parts) is list else list(parts)
                return self._handed_out
            self._let_go(State.PARKED)
            await self._wait_for_call()

    async def _wait_for_call(self) -> None:
        with trio.move_on_after(self._persist_s):
            while self.state is State.PARKED:
                await self._changed.wait()
        if self.state is State.PARKED:
            self._enter(State.EXPIRED)
            raise CancelledError(f"the upload of {self.digest} was not resumed within {self._persist_s:g} s")

    async def _receive_from_call(self, max_bytes: int) -> Sequence[Buffer] | None:
        """The next new bytes; empty when the upload is complete, None when the call ends before.

        A method of its own, so that no frame of a parked session remembers the call.
        """
        call = self._call
        assert call is not None
        parts = await self._receive_from(call, max_bytes)
        if parts is None:
            call.ended_early = self.state is State.FED
        return parts

    async def _receive_from(self, call: _Call, max_bytes: int) -> Sequence[Buffer] | None:
        message = call.message
        while True:
            try:
                if message is None:
                    call.message = None  # what it has of the client's bytes is not kept while the next is waited for
                    message = call.message = await call.messages.receive_message()
                    if message is None:
                        return () if self.committed == self.size else None
                parts = await self._receive_new(message, max_bytes)
            except (TransportLost, WriteStoppedError):
                return None  # the handler is about to be cancelled, or has detached the call
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
