"""The agent: a worker's connection to its scheduler, and what it does about orders and losses.

It connects, introduces itself, runs what it is told to at the same time, reports, and connects again for ever when the
scheduler goes away. Not here: what an action is (action.py), how the stream comes about (`Connect`, connection.py).

What becomes of running actions when a stream breaks is told in actions.py.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

import trio

from nl.cas.action_results import MAX_ACTION_RESULT_BYTES
from nl.config.workers import LocalWorkerOptions
from nl.errors import Code, ExhaustedError, NlError, UnavailableError
from nl.pb import reapi, wkt, worker_api
from nl.pb.codec import encode
from nl.rpc.status import status_of
from nl.worker.actions import Actions
from nl.worker.environment import query_properties
from nl.worker.orders import NotNowError, Report
from nl.worker.runner import Runner

log = logging.getLogger("nl.worker.agent")

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0
GOODBYE_S = 2.0
CHECKED_OUTPUTS = 128
"""With fewer outputs (paths of at most 4 KiB) a result is smaller than that for certain, inlined content included."""


class WorkerStream(Protocol):
    """The worker's side of ConnectWorker. Failures are NlErrors."""

    async def send_message(self, message: worker_api.UpdateForScheduler, /) -> None:
        """Sends one update; one task at a time."""

    async def recv_message(self) -> worker_api.UpdateForWorker | None:
        """The next update, None at the end of the stream."""

    async def end(self) -> None:
        """Says that nothing more will be sent."""


Connect = Callable[[], AbstractAsyncContextManager[WorkerStream]]
"""Opens one stream to the scheduler. Entering raises UnavailableError if that cannot be done now."""


class _Session:
    """One stream, from registration to its end: what is to be said waits in line, so that nobody waits for the peer."""

    def __init__(self, stream: WorkerStream, *, worker_id: str) -> None:
        self.worker_id = worker_id
        self.failure: NlError | None = None
        self._stream = stream
        self._unsent: deque[worker_api.UpdateForScheduler] = deque()
        self._news = trio.Event()
        self._is_leaving = False
        self._scope = trio.CancelScope()
        self._over = trio.Event()

    def send(self, update: worker_api.UpdateForScheduler) -> None:
        """Puts an update in line. There are two for each action that runs, and keepalives only in an empty line."""
        self._unsent.append(update)
        self._news.set()

    def executed(self, start: worker_api.StartExecute) -> None:
        """See `Listener`."""
        done = worker_api.ExecuteComplete(operation_id=start.operation_id)
        self.send(worker_api.UpdateForScheduler(execute_complete=done))

    def ended(self, start: worker_api.StartExecute, report: Report) -> None:
        """See `Listener`."""
        self.send(_result(start, report))

    async def say_goodbye(self) -> None:
        """The last words, and then the scheduler's turn to end the stream: so that all before them has arrived."""
        self.send(worker_api.UpdateForScheduler(going_away_request=worker_api.GoingAwayRequest()))
        self._is_leaving = True
        await self._over.wait()

    async def run(self, obey: Callable[[worker_api.UpdateForWorker], bool], *, keep_alive_s: float) -> None:
        """Sends what is in line and obeys what comes, until the stream ends or `obey` says that it is over."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_alive, keep_alive_s)
                    try:
                        while (update := await self._stream.recv_message()) is not None and obey(update):
                            pass
                        self.end(None)
                    except NlError as exc:
                        self.end(exc)
        finally:
            self._over.set()

    def end(self, failure: NlError | None) -> None:
        """Ends `run`."""
        self.failure = self.failure or failure
        self._scope.cancel()

    async def _write(self) -> None:
        try:
            while True:
                while self._unsent:
                    await self._stream.send_message(self._unsent.popleft())
                if self._is_leaving:
                    await self._stream.end()
                    return
                self._news = trio.Event()
                await self._news.wait()
        except NlError as exc:
            self.end(exc)

    async def _keep_alive(self, seconds: float) -> None:
        while True:
            await trio.sleep(seconds)
            if not self._unsent:
                self.send(worker_api.UpdateForScheduler(keep_alive_request=worker_api.KeepAliveRequest()))
                log.debug("Sent KeepAlive")


class Worker:
    """One worker. `run` it; `shutdown` first for a graceful end."""

    def __init__(
        self,
        options: LocalWorkerOptions,
        *,
        name: str,
        connect: Connect,
        actions: Actions,
        runner: Runner,
    ) -> None:
        self._options = options
        self._name = name
        self._connect = connect
        self._actions = actions
        self._runner = runner
        self._session: _Session | None = None
        self._stopping = False
        self._connecting = trio.CancelScope()

    def __repr__(self) -> str:
        session = self._session
        state = session.worker_id if session else "not connected"
        return f"<Worker {self._name} {state} running={len(self._actions)}>"

    def statistics(self) -> dict[str, int]:
        """Counters and levels for logs and metrics."""
        return {"connected": int(self._session is not None), **self._actions.statistics()}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled or stopped; `started()` when actions could be run, connected or not."""
        log.info(
            "Starting worker '%s'. IMPORTANT: If running multiple workers, all workers must share the same CAS storage "
            "path to avoid 'Object not found' errors.",
            self._name,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(self._runner.serve)
            with self._runner.held():
                async with self._actions.opened():
                    task_status.started()
                    with self._connecting:
                        await self._stay_connected()
            nursery.cancel_scope.cancel()

    async def shutdown(self, grace_s: float) -> None:
        """Takes no more actions, waits for those that run at most `grace_s`, says goodbye and ends `run`."""
        self._stopping = True
        if self._session is not None and len(self._actions):
            log.info("Worker '%s' finishes %d actions", self._name, len(self._actions))
            with trio.move_on_after(grace_s):
                await self._actions.wait_idle()
        session = self._session
        if session is not None:
            with trio.move_on_after(GOODBYE_S):
                await session.say_goodbye()
        self._connecting.cancel()

    async def _stay_connected(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping:
            try:
                await self._connected()
                pause_s = FIRST_PAUSE_S
            except NlError as exc:
                log.error("Error: worker '%s': %s: %s", self._name, exc.code.name, exc.message)
            if not self._stopping:
                await trio.sleep(pause_s * random.uniform(0.75, 1.25))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _connected(self) -> None:
        """One stream, to its end. NlError if the worker could not be registered."""
        properties = await query_properties(self._options)
        async with self._connect() as stream:
            worker_id = await self._register(stream, properties)
            log.info("Worker registered with scheduler: worker_id=%s", worker_id)
            log.info("Connected to scheduler: worker '%s', platform_properties=%s", self._name, properties)
            session = self._session = _Session(stream, worker_id=worker_id)
            self._actions.welcome()
            keep_alive_s = self._options.worker_api_endpoint.timeout / 2
            try:
                await session.run(partial(self._obey, session), keep_alive_s=keep_alive_s)
            finally:
                self._session = None
                self._actions.lose(session)
            if not self._stopping:
                why = session.failure.message if session.failure else "the scheduler ended the stream"
                log.warning("Worker disconnected from scheduler, reconnecting: worker_id=%s: %s", worker_id, why)

    async def _register(self, stream: WorkerStream, properties: list[tuple[str, str]]) -> str:
        hello = worker_api.ConnectWorkerRequest(
            properties=[reapi.PlatformProperty(name=name, value=value) for name, value in properties],
            worker_id_prefix=self._options.name,
            max_inflight_tasks=self._options.max_inflight_tasks,
            max_action_timeout=wkt.duration_from_ns(round(self._options.max_action_timeout_s * 1e9)),
            running_actions=self._actions.unclaimed(),
        )
        limit_s = self._options.worker_api_endpoint.timeout
        try:
            with trio.fail_after(limit_s):
                await stream.send_message(worker_api.UpdateForScheduler(connect_worker_request=hello))
                first = await stream.recv_message()
        except trio.TooSlowError:
            raise UnavailableError(f"the scheduler did not answer within {limit_s:g} s") from None
        if first is None or first.connection_result is None:
            raise UnavailableError("the scheduler did not answer with a ConnectionResult")
        return first.connection_result.worker_id

    def _obey(self, session: _Session, update: worker_api.UpdateForWorker) -> bool:
        """Does what it is told to. False if that is to leave."""
        if update.start_action is not None:
            self._start(session, update.start_action)
        elif update.kill_operation_request is not None:
            operation_id = update.kill_operation_request.operation_id
            is_here = self._actions.kill(operation_id)
            log.info("Kill operation %s%s", operation_id, "" if is_here else ": not running here")
        elif update.disconnect is not None:
            log.warning("Worker '%s' was removed by the scheduler", self._name)
            return False
        elif update.keep_alive is None:
            log.warning("Worker '%s' got an update that it does not know", self._name)
        return True

    def _start(self, session: _Session, start: worker_api.StartExecute) -> None:
        """Starts an action, or says why not: a refusal is not the action's fault and costs it no attempt."""
        refusal: NlError | None = None
        limit = self._options.max_inflight_tasks
        if self._stopping:
            refusal = NotNowError("Worker shutting down")
        elif start.operation_id in self._actions:
            refusal = NlError(f"operation {start.operation_id} runs here already", code=Code.ALREADY_EXISTS)
        elif limit and len(self._actions) >= limit:
            refusal = NotNowError(f"Worker runs {limit} actions already, its max_inflight_tasks")
        if refusal is not None:
            session.ended(start, Report(None, status_of(refusal)))
            return
        request = start.execute_request
        digest = request.action_digest if request is not None else None
        log.info(
            "%s action %s: operation_id=%s worker_id=%s",
            "Executing" if self._actions.start(start, session) else "Going on with",
            f"{digest.hash}-{digest.size_bytes}" if digest is not None else "without digest",
            start.operation_id, session.worker_id,
        )  # fmt: skip


def _result(start: worker_api.StartExecute, report: Report) -> worker_api.UpdateForScheduler:
    request = start.execute_request
    update = worker_api.UpdateForScheduler(
        execute_result=worker_api.ExecuteResult(
            instance_name=request.instance_name if request is not None else "",
            operation_id=start.operation_id,
            execute_response=report.response,
            internal_error=report.error,
            resource_usage=report.usage,
        )
    )
    result = report.response.result if report.response is not None else None
    if result is None or (
        len(result.output_files) + len(result.output_directories) + len(result.output_symlinks) < CHECKED_OUTPUTS
    ):
        return update
    if (size := len(encode(update))) <= MAX_ACTION_RESULT_BYTES:
        return update
    # Sent as it is it would break the stream, and every action with it, at each attempt.
    error = ExhaustedError(
        f"the result of the action has {size} bytes, with {len(result.output_files)} output files; expected at most "
        f"{MAX_ACTION_RESULT_BYTES}: declare directories instead"
    )
    response = reapi.ExecuteResponse(
        status=status_of(error), result=reapi.ActionResult(execution_metadata=result.execution_metadata)
    )
    return _result(start, Report(response, None, report.usage))
