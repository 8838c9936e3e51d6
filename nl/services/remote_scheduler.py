"""`grpc`: a scheduler that is another server's. Actions go there, and operations here show what becomes of them there.

Each operation follows one stream of the other server. When that breaks it asks again by the operation's name, and when
the name is not known any more (the server was restarted) it sends the action anew. Not here: matching, which is the
other server's, and so are its workers; what a `property_modifier` in front changes is not seen there, since the action
itself says what it asks for.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpclib.const
import trio
from grpclib.exceptions import GRPCError

from nl.errors import (
    CancelledError,
    Code,
    ExhaustedError,
    InternalError,
    NlError,
    UnavailableError,
)
from nl.model.execution import ActionRequest, OperationState, Outcome, Stage
from nl.pb import longrunning, reapi, rpc_status, wkt
from nl.pb.codec import DecodeError, decode, encode
from nl.rpc.channel import Channel
from nl.rpc.errors import translated
from nl.scheduler.contract import Lookup
from nl.scheduler.operation import Handle, Interest, OperationBook
from nl.services.operation_message import client_response, error_from_status

_log = logging.getLogger(__name__)
_EXECUTION = "/build.bazel.remote.execution.v2.Execution/"
_OPERATIONS = "/google.longrunning.Operations/"
_METADATA_HEADER = "build.bazel.remote.execution.v2.requestmetadata-bin"
_RETRIED = frozenset({Code.UNAVAILABLE, Code.ABORTED, Code.UNKNOWN})
LONGEST_PAUSE_S = 10.0
CANCEL_PATIENCE_S = 5.0
"""How long the other server may take to take note of a cancellation."""
TICK_S = 1.0

OpenChannel = Callable[[trio.Nursery], Awaitable[Channel]]
"""Makes the way to the other server; whatever it needs to run meanwhile goes into the nursery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteLimits:
    """Times are seconds; as `simple` has them."""

    max_retries: int = 5
    """How often in a row an operation's stream may fail before the operation does."""
    first_pause_s: float = 0.1
    jitter: float = 0.5
    retain_completed_for_s: float = 60.0
    client_action_timeout_s: float = 60.0
    max_operations: int = 100_000
    max_retained_bytes: int = 256 * 1024 * 1024
    max_concurrent: int = 0
    """How many operations may be followed at once; others wait. 0: any number."""


class RemoteOperation(Handle):
    """What is known here of an operation of the other server's."""

    __slots__ = ("_outcome", "_queued_at", "_request", "_stage", "_version", "_worker_id", "remote_name", "scope")

    def __init__(self, name: str, request: ActionRequest, *, interest: Interest, owner: str) -> None:
        super().__init__(name, interest=interest, owner=owner)
        self.remote_name = ""
        """What the other server calls it; "" until it has said so."""
        self.scope = trio.CancelScope()
        """Around whatever is done for it."""
        self._request = request
        self._stage = Stage.QUEUED
        self._version = 1
        self._outcome: Outcome | None = None
        self._worker_id = ""
        self._queued_at = time.time()

    @property
    def request(self) -> ActionRequest:
        return self._request

    @property
    def version(self) -> int:
        return self._version

    @property
    def done(self) -> bool:
        return self._outcome is not None

    @property
    def state(self) -> OperationState:
        return OperationState(
            name=self.name,
            action_digest=self._request.action_digest,
            digest_function=self._request.digest_function,
            stage=self._stage,
            version=self._version,
            outcome=self._outcome,
            worker_id=self._worker_id,
            queued_at=self._queued_at,
        )

    def advance(self, stage: Stage, *, worker_id: str = "", outcome: Outcome | None = None) -> None:
        """The other server has told something new, or it is over here."""
        if outcome is not None:
            self._outcome, stage = outcome, Stage.COMPLETED
        if (stage, worker_id) != (self._stage, self._worker_id):
            self._stage, self._worker_id = stage, worker_id
            self._version += 1
            self.wake()


class RemoteScheduler:
    """See the module's docstring. `run` must be running for anything else to work."""

    def __init__(self, open_channel: OpenChannel, *, where: str, name: str, limits: RemoteLimits | None = None) -> None:
        """`where` is the other server's address, for messages."""
        self.name = name
        self._open_channel = open_channel
        self._where = f"scheduler at {where}"
        self._limits = limits = limits or RemoteLimits()
        self._operations: OperationBook[RemoteOperation] = OperationBook(
            retain_s=limits.retain_completed_for_s, max_bytes=limits.max_retained_bytes, clock=trio.current_time
        )
        self._places = trio.CapacityLimiter(limits.max_concurrent or limits.max_operations)
        self._nursery: trio.Nursery | None = None
        self._channel: Channel | None = None
        self._stopping = False
        self._totals: Counter[str] = Counter()

    @property
    def worker_pool(self) -> None:
        """Its workers connect to the other server."""
        return None

    # --- lifetime -----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows operations, until cancelled."""
        async with trio.open_nursery() as nursery:
            channel = await self._open_channel(nursery)
            async with channel:
                self._channel, self._nursery = channel, nursery
                task_status.started()
                try:
                    while True:
                        await trio.sleep(TICK_S)
                        self._tick()
                finally:
                    self._channel = self._nursery = None
                    nursery.cancel_scope.cancel()

    def _tick(self) -> None:
        limit = self._limits.client_action_timeout_s
        self._operations.drop_old()
        for name in self._operations.interest.pop_abandoned(limit):
            text = f"Operation timed out after {limit:g} seconds of having no more clients listening"
            self._give_up(self._operations.find(name), NlError(text, code=Code.DEADLINE_EXCEEDED))

    def stop_admission(self) -> None:
        """The first step of a shutdown."""
        self._stopping = True

    async def finish(self) -> None:
        """Nothing to wait for: what runs elsewhere goes on, and its clients find it again through the next server."""

    def shut_down(self) -> None:
        """The last step: what is unfinished ends as UNAVAILABLE here. The other server is not told."""
        self.stop_admission()
        for operation in self._operations:
            if not operation.done:
                self._end(operation, Outcome(error=UnavailableError("the scheduler is shutting down")))
                operation.scope.cancel()

    # --- clients ------------------------------------------------------------------------------------------------

    async def submit(
        self, request: ActionRequest, *, owner: str = "", lookup: Lookup | None = None
    ) -> RemoteOperation:
        """See Scheduler. The other server merges twins and looks into its cache; `lookup` is asked before that."""
        if self._stopping:
            raise UnavailableError("the scheduler is shutting down")
        if self._nursery is None:
            raise InternalError(f"{self!r} is not running")
        unfinished = self._operations.unfinished
        if unfinished >= self._limits.max_operations:
            raise ExhaustedError(f"the scheduler holds {unfinished} unfinished operations, its maximum")
        id = str(uuid.uuid4())
        name = f"{request.instance_name}/{id}" if request.instance_name else id
        operation = RemoteOperation(name, request, interest=self._operations.interest, owner=owner)
        self._operations.add(operation)
        self._totals["submitted"] += 1
        if request.skip_cache_lookup or request.do_not_cache:
            lookup = None
        self._nursery.start_soon(self._serve, operation, lookup)
        return operation

    def operation(self, name: str, *, owner: str | None = None) -> RemoteOperation:
        """See Scheduler."""
        return self._operations.find(name, owner=owner)

    def operations(self) -> Sequence[RemoteOperation]:
        """See Scheduler."""
        return list(self._operations)

    async def cancel(self, name: str) -> None:
        """See Scheduler. The other server is told, if it can be reached."""
        operation = self.operation(name)
        if not operation.done:
            self._totals["cancelled"] += 1
            self._give_up(operation, CancelledError("the operation was cancelled"))

    def forget(self, name: str) -> None:
        """See Scheduler."""
        self._operations.forget(name)

    def known_properties(self) -> Sequence[str]:
        """None: they are the other server's business, which refuses what it does not know."""
        return ()

    def statistics(self) -> Mapping[str, int | float | str]:
        """See Scheduler."""
        return {
            "operations": len(self._operations),
            "unfinished_operations": self._operations.unfinished,
            "retained_bytes": self._operations.retained_bytes,
            **{f"{key}_total": count for key, count in sorted(self._totals.items())},
        }

    def __repr__(self) -> str:
        return f"<RemoteScheduler {self.name} {self._where} unfinished={self._operations.unfinished}>"

    # --- inside -------------------------------------------------------------------------------------------------

    def _end(self, operation: RemoteOperation, outcome: Outcome) -> None:
        if not operation.done:
            operation.advance(Stage.COMPLETED, outcome=outcome)
            self._operations.ended(operation, outcome)

    def _give_up(self, operation: RemoteOperation, error: NlError) -> None:
        self._end(operation, Outcome(error=error))
        operation.scope.cancel()
        if self._nursery is not None and operation.remote_name:
            self._nursery.start_soon(self._tell_cancelled, operation.remote_name)

    async def _tell_cancelled(self, remote_name: str) -> None:
        request = longrunning.CancelOperationRequest(name=remote_name)
        try:
            with trio.fail_after(CANCEL_PATIENCE_S), translated(self._where):
                async with self._call(_OPERATIONS + "CancelOperation", request, wkt.Empty, streams=False) as stream:
                    await stream.send_message(request, end=True)
                    await stream.recv_message()
        except (NlError, trio.TooSlowError) as exc:  # without listeners it ends there by itself
            _log.info("%s: operation %s could not be cancelled: %s", self._where, remote_name, exc)

    async def _serve(self, operation: RemoteOperation, lookup: Lookup | None) -> None:
        with operation.scope:
            try:
                response = await self._looked_up(operation, lookup)
                if response is not None:
                    self._end(operation, Outcome(response=response, cached=True))
                    return
                async with self._places:
                    await self._follow(operation)
            except NlError as exc:
                self._end(operation, Outcome(error=exc))

    async def _looked_up(self, operation: RemoteOperation, lookup: Lookup | None) -> bytes | None:
        if lookup is None:
            return None
        operation.advance(Stage.CACHE_CHECK)
        try:
            return await lookup(operation.request)
        except NlError as exc:
            _log.warning("cache lookup of %s failed: %s", operation.request.action_digest, exc.message)
            return None
        finally:
            operation.advance(Stage.QUEUED)

    async def _follow(self, operation: RemoteOperation) -> None:
        """Until it is done. Raises the NlError with which it fails in the end."""
        failures = 0
        while not operation.done:
            version = operation.version
            try:
                await self._follow_once(operation)
                error = NlError(f"{self._where} ended the stream of an operation that goes on", code=Code.UNAVAILABLE)
            except NlError as exc:
                forgotten = exc.code is Code.NOT_FOUND and operation.remote_name
                if exc.code not in _RETRIED and not forgotten:
                    raise
                if forgotten:
                    operation.remote_name = ""  # a new one, then
                error = exc
            if operation.done:
                return
            failures = 1 if operation.version > version else failures + 1
            if failures > self._limits.max_retries:
                raise error
            self._totals["retries"] += 1
            pause_s = min(self._limits.first_pause_s * 2 ** (failures - 1), LONGEST_PAUSE_S)
            await trio.sleep(pause_s * random.uniform(1 - self._limits.jitter / 2, 1 + self._limits.jitter / 2))

    async def _follow_once(self, operation: RemoteOperation) -> None:
        """One stream: Execute, or WaitExecution once the other server has named the operation."""
        request: reapi.ExecuteRequest | reapi.WaitExecutionRequest
        if operation.remote_name:
            method, request = "WaitExecution", reapi.WaitExecutionRequest(name=operation.remote_name)
        else:
            method, request = "Execute", decode(reapi.ExecuteRequest, operation.request.execute_request)
        with translated(self._where):
            metadata = _metadata(operation.request)
            try:
                async with self._call(_EXECUTION + method, request, longrunning.Operation, metadata=metadata) as stream:
                    await stream.send_message(request, end=True)
                    while (message := await stream.recv_message()) is not None:
                        operation.remote_name = message.name
                        self._take(operation, message)
            except GRPCError as exc:  # with its details: clients upload again what they name
                raise _error(exc, self._where) from exc

    def _take(self, operation: RemoteOperation, message: longrunning.Operation) -> None:
        """What the other server says about it."""
        if message.done:
            self._end(operation, _outcome(message))
            return
        stage, worker_id = Stage.QUEUED, ""
        metadata = wkt.unpack(message.metadata, reapi.ExecuteOperationMetadata)
        if metadata is not None:
            with suppress(ValueError):
                stage = Stage(metadata.stage)
            if metadata.partial_execution_metadata is not None:
                worker_id = metadata.partial_execution_metadata.worker
        if stage is not Stage.COMPLETED:
            operation.advance(stage, worker_id=worker_id)

    def _call(self, method: str, request: Any, reply: Any, *, metadata: Any = None, streams: bool = True) -> Any:
        channel = self._channel
        if channel is None:
            raise UnavailableError("the scheduler is shutting down")
        kind = grpclib.const.Cardinality.UNARY_STREAM if streams else grpclib.const.Cardinality.UNARY_UNARY
        return channel.request(method, kind, type(request), reply, metadata=metadata)


def _error(error: GRPCError, where: str) -> NlError:
    details = error.details if isinstance(error.details, list) else []
    text = f"{where}: {error.message or error.status.name}"
    return error_from_status(rpc_status.Status(code=error.status.value, message=text, details=details))


def _outcome(message: longrunning.Operation) -> Outcome:
    if message.error is not None:
        return Outcome(error=error_from_status(message.error))
    try:
        response = wkt.unpack(message.response, reapi.ExecuteResponse)
    except DecodeError as exc:
        return Outcome(error=InternalError(f"the response of the other server cannot be read: {exc}"))
    if response is None:
        return Outcome(error=InternalError("the other server ended the operation without a response"))
    return Outcome(response=client_response(response), cached=response.cached_result)


def _metadata(request: ActionRequest) -> list[tuple[str, bytes]]:
    """Who asks, for the other server's shares and logs."""
    sent = reapi.RequestMetadata(
        tool_details=reapi.ToolDetails(tool_name=request.tool) if request.tool else None,
        tool_invocation_id=request.invocation,
        target_id=request.target,
        action_mnemonic=request.mnemonic,
    )
    return [(_METADATA_HEADER, encode(sent))]
