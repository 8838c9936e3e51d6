"""The actions that run on a worker: they belong to it, not to the stream over which they were ordered.

A stream that breaks (a cut, a scheduler that is started anew) says nothing about the work. So what runs goes on
without anybody to tell, and what has ended keeps its report. The scheduler cannot know: it gives the same actions out
again, and if one comes to where it runs already, it is not run twice, but told under the new id. That needs nothing of
the scheduler that it does not do anyway. What nobody asks for again within `CLAIM_S` of the next stream is somebody
else's by then, and killed; so is everything if there is no stream for `KEEP_S`.

Rules for this file: an action is told of to one listener at most, under the id of its last order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

import trio

from nl.pb import reapi, worker_api
from nl.worker.action import ActionRunner
from nl.worker.orders import Report, Running

KEEP_S = 120.0
"""How long actions wait for a scheduler that has gone: a cut of a minute, or its restart, and what comes on top."""
CLAIM_S = 15.0
"""How long they wait to be asked for by one that is back."""
UNSURE_S = 30.0
"""A report that was sent so shortly before its stream broke may not have arrived."""
MAX_UNSURE = 256
"""Of those, at most: a report is a message of some KiB as a rule."""


class Listener(Protocol):
    """Who ordered actions and is told of them. Neither call waits."""

    worker_id: str

    def executed(self, start: worker_api.StartExecute) -> None:
        """The command has ended; the outputs are being stored."""

    def ended(self, start: worker_api.StartExecute, report: Report) -> None:
        """The action has ended."""


class _Key(NamedTuple):
    """What two orders have in common that are satisfied by the same report."""

    instance_name: str
    hash: str
    size: int
    function: int
    inlined: tuple[bool, bool, tuple[str, ...]]


def _key_of(start: worker_api.StartExecute) -> _Key | None:
    request = start.execute_request
    if request is None or request.action_digest is None:
        return None
    digest = request.action_digest
    inlined = (request.inline_stdout, request.inline_stderr, tuple(request.inline_output_files))
    return _Key(request.instance_name, digest.hash, digest.size_bytes, int(request.digest_function), inlined)


class _Action:
    """One of them, from its order on."""

    __slots__ = ("executed", "listener", "report", "reported_at", "running", "scope", "start")

    def __init__(self, start: worker_api.StartExecute, listener: Listener) -> None:
        self.start = start
        self.listener: Listener | None = listener
        self.running = Running()
        self.scope = trio.CancelScope()
        self.executed = False
        self.report: Report | None = None
        self.reported_at = 0.0


class Actions:
    """All actions of one worker. Usable within `opened`."""

    def __init__(self, runner: ActionRunner) -> None:
        self._runner = runner
        self._nursery: trio.Nursery | None = None
        self._ordered: dict[str, _Action] = {}
        """Those that run for the listener, by the ids of their orders."""
        self._unclaimed: dict[_Key, _Action] = {}
        """Those that were ordered over a stream that is no more."""
        self._sent: deque[_Action] = deque(maxlen=MAX_UNSURE)
        self._round = 0
        self._changed = trio.Event()
        self.completed = 0
        self.taken_up = 0

    def __len__(self) -> int:
        """How many run for the listener."""
        return len(self._ordered)

    def __contains__(self, operation_id: str) -> bool:
        return operation_id in self._ordered

    def statistics(self) -> dict[str, int]:
        """Counters and levels for logs and metrics."""
        return {
            "running": len(self._ordered),
            "unclaimed": len(self._unclaimed),
            "completed": self.completed,
            "taken_up": self.taken_up,
            **self._runner.statistics(),
        }

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """At its end all are killed, and gone."""
        async with self._runner.prepared(), trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    def start(self, start: worker_api.StartExecute, listener: Listener) -> bool:
        """Runs an action, or takes up one that runs already, or has ended untold. Whether it is a new one."""
        found = self._take_up(start)
        if found is not None:
            self.taken_up += 1
            self._ordered[start.operation_id] = found
            found.start, found.listener = start, listener
            if found.executed:
                listener.executed(start)
            if found.report is not None:
                self._tell(found, found.report)
            return False
        assert self._nursery is not None
        action = self._ordered[start.operation_id] = _Action(start, listener)
        self._nursery.start_soon(self._run, action, listener.worker_id)
        return True

    def kill(self, operation_id: str) -> bool:
        """Ends an action; it is reported as CANCELLED. False if there is none with this id."""
        action = self._ordered.get(operation_id)
        if action is not None:
            action.running.kill()
        return action is not None

    def lose(self, listener: Listener) -> None:
        """The stream of a listener has ended."""
        since = trio.current_time() - UNSURE_S
        untold = [action for action in self._sent if action.reported_at >= since and action.listener is listener]
        for action in (*untold, *self._ordered.values()):
            action.listener = None
            key = _key_of(action.start)
            if key is None or key in self._unclaimed:
                action.scope.cancel()
            else:
                self._unclaimed[key] = action
        self._sent.clear()
        self._ordered.clear()
        self._note_change()
        self._give_up_after(KEEP_S)

    def welcome(self) -> None:
        """There is a stream again: what is not asked for soon will not be."""
        if self._unclaimed:
            self._give_up_after(CLAIM_S)

    def unclaimed(self) -> list[reapi.Digest]:
        """The digests of those that go on though nobody is told of them: a scheduler that knows gives them to us."""
        return [reapi.Digest(hash=key.hash, size_bytes=key.size) for key in self._unclaimed]

    async def wait_idle(self) -> None:
        """Returns when none runs for the listener."""
        while self._ordered:
            await self._changed.wait()

    # Inside

    def _take_up(self, start: worker_api.StartExecute) -> _Action | None:
        key = _key_of(start)
        found = self._unclaimed.pop(key, None) if key is not None else None
        if found is None:
            return None
        request = start.execute_request
        running, report = found.running, found.report
        is_anew = request is not None and request.skip_cache_lookup and report is not None
        if running.killed or running.do_not_cache or is_anew or (report is not None and report.response is None):
            found.scope.cancel()  # whoever asks wants it run for him, or it has come to nothing
            return None
        return found

    async def _run(self, action: _Action, worker_id: str) -> None:
        async def executed() -> None:
            action.executed = True
            if action.listener is not None:
                action.listener.executed(action.start)

        async def report(made: Report) -> None:
            action.report = made
            self.completed += 1
            if action.listener is not None:
                self._tell(action, made)

        with action.scope:
            await self._runner.run(
                action.start, worker_id=worker_id, running=action.running, executed=executed, report=report
            )

    def _tell(self, action: _Action, report: Report) -> None:
        assert action.listener is not None
        action.listener.ended(action.start, report)
        action.reported_at = trio.current_time()
        self._sent.append(action)
        self._ordered.pop(action.start.operation_id, None)
        self._note_change()

    def _give_up_after(self, seconds: float) -> None:
        self._round += 1
        if self._nursery is not None and self._unclaimed:
            self._nursery.start_soon(self._give_up, self._round, seconds)

    async def _give_up(self, number: int, seconds: float) -> None:
        await trio.sleep(seconds)
        if number != self._round:
            return  # a stream has come or gone meanwhile
        for action in self._unclaimed.values():
            action.scope.cancel()
        self._unclaimed.clear()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
