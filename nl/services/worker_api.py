"""WorkerApi: the wire between a worker and its session in the scheduler, compatible with NativeLink's workers.

One stream per worker: its first message introduces it, the answer tells its id, then both sides talk independently.
A report that makes no sense (any more) is logged and the stream goes on: work of others hangs on it. The end of the
stream, however it comes about, is the end of the session. Not here: what becomes of an action then (scheduler).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import grpclib.const
import trio

from nl.blob.reader import Buffer
from nl.cas.large import off_loop_if_large
from nl.errors import InvalidRequestError, NlError, UnauthenticatedError
from nl.model.access import EVERYONE, Right
from nl.pb import reapi, wkt
from nl.pb import worker_api as wire
from nl.pb.codec import decode, encode
from nl.rpc.contract import ServerStream
from nl.scheduler.contract import WorkerPool
from nl.scheduler.session import Disconnect, KillOperation, StartAction, WorkerSession
from nl.services.limits import ACTION_RESULT_MESSAGE_BYTES
from nl.services.operation_message import client_response, error_from_status
from nl.services.requests import EncodedRequest, receive_decoded

_log = logging.getLogger(__name__)
_METHOD = "/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker"
GOODBYE_S = 5.0
"""How long a removed worker may take to receive its `disconnect`."""
PROBE_S = 1.0
"""How often the connection of a worker that says nothing is asked for a sign of life."""
WorkerStream = ServerStream[EncodedRequest, wire.UpdateForWorker]


class EncodedWorkerUpdate(EncodedRequest):
    """An UpdateForScheduler, of which some carry a whole ActionResult."""

    max_message_size = ACTION_RESULT_MESSAGE_BYTES


class _Update(NamedTuple):
    message: wire.UpdateForScheduler
    response: bytes | None
    """The encoded response in it, for the clients."""


def _decode_update(data: Buffer) -> _Update:
    message = decode(wire.UpdateForScheduler, data)
    result = message.execute_result
    if result is None or result.execute_response is None:
        return _Update(message, None)
    return _Update(message, client_response(result.execute_response))


class WorkerApiService:
    """com.github.trace_machina.nativelink.remote_execution.WorkerApi for the workers of one scheduler."""

    def __init__(self, workers: WorkerPool, *, instances: Iterable[str] = ()) -> None:
        """`instances` are those whose actions the scheduler has: a worker may get any, and makes their results."""
        self._workers = workers
        self._instances = frozenset(instances)

    async def connect_worker(self, stream: WorkerStream) -> None:
        """Serves one worker until its stream ends or the scheduler removes it."""
        if stream.identity is not EVERYONE:
            stream.identity.require_everywhere(Right.REGISTER_WORKERS, self._instances)
        first = await receive_decoded(stream, _decode_update)
        hello = first.message.connect_worker_request
        if hello is None:
            raise InvalidRequestError("First message was not a ConnectWorkerRequest")
        properties = [(each.name, each.value) for each in hello.properties]
        with self._workers.attach_worker(
            properties,
            prefix=hello.worker_id_prefix,
            max_inflight=hello.max_inflight_tasks,
            max_timeout_s=_longest_timeout_s(hello),
            running=[(each.hash, each.size_bytes) for each in hello.running_actions],
        ) as session:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_write, stream, session, nursery.cancel_scope)
                nursery.start_soon(_end_when_evicted, session, nursery.cancel_scope)
                nursery.start_soon(_probe, stream, session)
                await _read(stream, session)
                nursery.cancel_scope.cancel()

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        kind = grpclib.const.Cardinality.STREAM_STREAM
        handler = grpclib.const.Handler(self.connect_worker, kind, EncodedWorkerUpdate, wire.UpdateForWorker)
        return {_METHOD: handler}


def _longest_timeout_s(hello: wire.ConnectWorkerRequest) -> float:
    """Infinite for NativeLink's workers, which do not say: they refuse what is too long for them."""
    limit = hello.max_action_timeout
    return math.inf if limit is None else wkt.duration_to_ns(limit) / 1e9


async def _read(stream: WorkerStream, session: WorkerSession) -> None:
    """Takes reports until the worker half-closes, or its token is revoked or ends: it says something every few seconds.

    A web token or a certificate counts when the stream begins: the end of a short one would end its actions, too.
    """
    identity = stream.identity
    while (encoded := await stream.recv_message()) is not None:
        update = await off_loop_if_large(_decode_update, encoded.data)
        if identity.is_revoked:
            raise UnauthenticatedError(f"the token {identity.name!r} was revoked")
        if identity.expires_at <= time.time():
            raise UnauthenticatedError(f"the token {identity.name!r} has expired")
        try:
            _apply(update, session)
        except NlError as exc:
            _log.info("worker %s: report ignored: %s", session.worker_id, exc.message)


def _apply(decoded: _Update, session: WorkerSession) -> None:
    update = decoded.message
    if update.execute_result is not None:
        _apply_result(update.execute_result, decoded.response, session)
    elif update.execute_complete is not None:
        session.executed(update.execute_complete.operation_id)
    elif update.going_away_request is not None:
        _log.info("worker %s is going away", session.worker_id)
        session.going_away()
    else:
        session.keep_alive()
        if update.keep_alive_request is None:
            what = "a second ConnectWorkerRequest" if update.connect_worker_request is not None else "an unknown update"
            _log.warning("worker %s sent %s; ignored", session.worker_id, what)


def _apply_result(result: wire.ExecuteResult, response: bytes | None, session: WorkerSession) -> None:
    if response is not None:
        session.complete(result.operation_id, response)
    elif result.internal_error is not None:
        error = error_from_status(result.internal_error)
        _log.info("worker %s could not run %s: %s", session.worker_id, result.operation_id, error.message)
        session.fail(result.operation_id, error)
    else:
        session.fail(result.operation_id, InvalidRequestError("the worker sent a result without a result"))


async def _write(stream: WorkerStream, session: WorkerSession, scope: trio.CancelScope) -> None:
    """Sends the worker its id, then orders as they come; ends the whole stream after a `disconnect`."""
    await stream.send_message(
        wire.UpdateForWorker(connection_result=wire.ConnectionResult(worker_id=session.worker_id))
    )
    while True:
        match await session.next_update():
            case StartAction() as start:
                await stream.send_parts(_start_parts(start, session.worker_id))
            case KillOperation(operation_id):
                kill = wire.KillOperationRequest(operation_id=operation_id)
                await stream.send_message(wire.UpdateForWorker(kill_operation_request=kill))
            case Disconnect():
                await stream.send_message(wire.UpdateForWorker(disconnect=wkt.Empty()))
                break
    scope.cancel()


async def _probe(stream: WorkerStream, session: WorkerSession) -> None:
    """Workers say that they are there as often as they like; that the connection answers counts, too, for a while."""
    while True:
        await trio.sleep(PROBE_S)
        if session.is_quiet:
            session.reachable(stream.probe())


async def _end_when_evicted(session: WorkerSession, scope: trio.CancelScope) -> None:
    """A worker that was removed for its silence may not even take the goodbye."""
    await session.wait_evicted()
    scope.deadline = trio.current_time() + GOODBYE_S


def _start_parts(start: StartAction, worker_id: str) -> list[Buffer]:
    platform = [reapi.PlatformProperty(name=name, value=value) for name, value in start.platform]
    message = wire.StartExecute(
        execute_request=decode(reapi.ExecuteRequest, start.request.execute_request),
        queued_timestamp=wkt.timestamp_from_s(start.queued_at),
        operation_id=start.operation_id,
        platform=reapi.Platform(properties=platform),
        worker_id=worker_id,
    )
    return [encode(wire.UpdateForWorker(start_action=message))]
