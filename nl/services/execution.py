"""Execution: Execute and WaitExecution, streams of one operation's states.

Execute checks what can be checked without running anything, so that a client learns at once what it has to upload or
mend, then hands over to the scheduler. The stream is only a view: the operation goes on when it drops, and
WaitExecution, or the operations service, finds it by name. Not here: queueing, caching, running.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import betterproto2
import grpclib.const
import trio

from nl.blob.reader import Buffer
from nl.cas.action_results import load_action_result
from nl.cas.completeness import Completeness, IncompleteError
from nl.cas.digests import parse_digest
from nl.cas.large import off_loop_if_large
from nl.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    ExhaustedError,
    InvalidRequestError,
    PreconditionError,
    Violation,
)
from nl.model.access import EVERYONE, Identity, Right
from nl.model.digest import ActionKey, Digest, DigestFunction
from nl.model.execution import ActionRequest, Properties
from nl.pb import longrunning, reapi, wkt
from nl.pb.codec import DecodeError, decode, encode
from nl.rpc.contract import ServerStream
from nl.scheduler.contract import Lookup, Operation, Scheduler
from nl.services.operation_finder import OperationFinder
from nl.services.operation_message import client_response, operation_parts
from nl.services.requests import Instances, parse_function, receive_request
from nl.storage.contract import Store

_log = logging.getLogger(__name__)
_PREFIX = "/build.bazel.remote.execution.v2.Execution/"
_METADATA_HEADERS = (
    "build.bazel.remote.execution.v2.requestmetadata-bin",
    "google.devtools.remoteexecution.v1test.requestmetadata-bin",
)
MAX_METADATA_CHARS = 1024
"""Longest text of RequestMetadata that is kept."""
M = TypeVar("M", bound=betterproto2.Message)
ExecuteStream = ServerStream[reapi.ExecuteRequest, longrunning.Operation]
WaitStream = ServerStream[reapi.WaitExecutionRequest, longrunning.Operation]


@dataclass(frozen=True, slots=True)
class ExecutionInstance:
    """One instance: whose CAS holds the actions, and who runs them."""

    name: str
    cas: Store
    scheduler: Scheduler
    node_properties: frozenset[str] = frozenset({"mtime", "unix_mode"})
    """What Command.output_node_properties may name."""


class ExecutionService:
    """build.bazel.remote.execution.v2.Execution. `keepalive_s`: how often an unchanged state is sent again."""

    def __init__(
        self, instances: Mapping[str, ExecutionInstance], *, any_name: bool = False, keepalive_s: float = 20.0
    ) -> None:
        self._instances = Instances(instances, any_name=any_name)
        self._finder = OperationFinder({name: instance.scheduler for name, instance in instances.items()})
        self._keepalive_s = keepalive_s

    async def execute(self, stream: ExecuteStream) -> None:
        """Runs an action, or finds its result, and streams the states of the operation until it is done."""
        request = await receive_request(stream)
        instance = self._instances.get(stream, request.instance_name, Right.EXECUTE)
        request.instance_name = instance.name  # from here on it is the name of the one that serves it
        action = await _checked(instance, request, _requester(stream), user=_user(stream.identity))
        await self._follow(stream, await instance.scheduler.submit(action, owner=stream.identity.name))

    async def wait_execution(self, stream: WaitStream) -> None:
        """Streams the states of an operation from now on. NotFoundError if it is unknown: the client executes anew."""
        request = await receive_request(stream)
        _, operation = self._finder.find(stream.identity, request.name)
        await self._follow(stream, operation)

    async def _follow(self, stream: ExecuteStream | WaitStream, operation: Operation) -> None:
        with operation.watched():
            state = operation.state
            while True:
                await stream.send_parts(operation_parts(state))
                if state.done:
                    return
                with trio.move_on_after(self._keepalive_s):
                    state = await operation.wait_changed(state.version)

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        kind = grpclib.const.Cardinality.UNARY_STREAM
        return {
            _PREFIX + "Execute": grpclib.const.Handler(self.execute, kind, reapi.ExecuteRequest, longrunning.Operation),
            _PREFIX + "WaitExecution": grpclib.const.Handler(
                self.wait_execution, kind, reapi.WaitExecutionRequest, longrunning.Operation
            ),
        }


def cache_lookup(action_cache: Store, completeness: Completeness | None = None) -> Lookup:
    """What a scheduler asks before it runs anything: the response for a stored result, or None.

    `completeness` says whether the result's outputs are still there; None: the store does, or nobody.
    """

    async def look_up(request: ActionRequest) -> bytes | None:
        try:
            encoded = await load_action_result(action_cache, request.action_digest)
            if completeness is not None:
                await completeness.require(ActionKey(*request.action_digest), encoded)
            return await off_loop_if_large(_cached_response, encoded)
        except (BlobNotFoundError, IncompleteError):
            return None
        except (CorruptBlobError, DecodeError) as exc:
            _log.warning("a damaged action result counts as a miss: %s (%s)", exc, request.action_digest)
            return None

    return look_up


def _cached_response(encoded: Buffer) -> bytes:
    return client_response(reapi.ExecuteResponse(result=decode(reapi.ActionResult, encoded), cached_result=True))


async def _checked(
    instance: ExecutionInstance, request: reapi.ExecuteRequest, requester: Mapping[str, str], *, user: str
) -> ActionRequest:
    """The request as the scheduler wants it.

    Raises PreconditionError with one MISSING violation for each of action, command and input root that is not in the
    CAS, InvalidRequestError for what no upload could mend.
    """
    function = parse_function(request.digest_function)
    action_digest = parse_digest(request.action_digest, function, "action_digest")
    action = await _load(instance.cas, action_digest, kind=reapi.Action)
    if action is None:
        raise _missing(function, [(action_digest, "Action")])
    command_digest = parse_digest(action.command_digest, function, "Action.command_digest")
    root_digest = parse_digest(action.input_root_digest, function, "Action.input_root_digest")
    timeout_s = _timeout_s(action)
    command = await _load(instance.cas, command_digest, kind=reapi.Command)
    [root_size] = await instance.cas.has([root_digest])
    absent = [(command_digest, "Action.command_digest")] if command is None else []
    if root_size is None:
        absent.append((root_digest, "Action.input_root_digest"))
    if command is None or absent:
        raise _missing(function, absent)
    _check_command(command, instance)
    return ActionRequest(
        instance_name=request.instance_name,
        action_digest=action_digest,
        digest_function=function,
        platform=_platform(action, command),
        priority=request.execution_policy.priority if request.execution_policy is not None else 0,
        skip_cache_lookup=request.skip_cache_lookup,
        do_not_cache=action.do_not_cache,
        timeout_s=timeout_s,
        execute_request=encode(request),
        user=user,
        **requester,
    )


async def _load(cas: Store, digest: Digest, *, kind: type[M]) -> M | None:
    try:
        return await off_loop_if_large(partial(decode, kind), await cas.get(digest))
    except (BlobNotFoundError, CorruptBlobError):
        return None
    except ExhaustedError as exc:
        raise InvalidRequestError(f"{kind.__name__} {digest} is too large: {exc.message}") from exc
    except DecodeError as exc:
        raise InvalidRequestError(f"the blob {digest} is not a {kind.__name__}: {exc}") from exc


def _missing(function: DigestFunction, absent: list[tuple[Digest, str]]) -> PreconditionError:
    """Clients upload again what the subjects name, if all violations have this very shape (REAPI A.7 rule 1)."""
    segment = "" if function is DigestFunction.SHA256 else f"{function.name.lower()}/"
    details = tuple(
        Violation("MISSING", f"blobs/{segment}{digest.hash}/{digest.size}", what) for digest, what in absent
    )
    names = ", ".join(f"{what} {digest}" for digest, what in absent)
    return PreconditionError(f"not in the CAS, upload and try again: {names}", details=details)


def _timeout_s(action: reapi.Action) -> float | None:
    if action.timeout is None:
        return None
    timeout_s = wkt.duration_to_ns(action.timeout) / 1e9
    if timeout_s < 0:
        raise InvalidRequestError(f"Action.timeout is negative: {timeout_s:g} s")
    return timeout_s


def _check_command(command: reapi.Command, instance: ExecutionInstance) -> None:
    if not command.arguments:
        raise InvalidRequestError("Command.arguments is empty: there is nothing to run")
    unknown = sorted(set(command.output_node_properties) - instance.node_properties)
    if unknown:
        known = ", ".join(sorted(instance.node_properties)) or "none"
        raise InvalidRequestError(f"unknown output_node_properties {', '.join(map(repr, unknown))}; supported: {known}")


def _platform(action: reapi.Action, command: reapi.Command) -> Properties:
    """Action.platform, or Command.platform where a client of before 2.2 has put it."""
    platform = action.platform if action.platform is not None and action.platform.properties else command.platform
    if platform is None:
        return ()
    return tuple(sorted((each.name, each.value) for each in platform.properties))


def _user(identity: Identity) -> str:
    """Who has a share of his own; those without credentials have none but that of their build."""
    return "" if identity is EVERYONE or identity.is_anonymous else identity.name


def _requester(stream: ExecuteStream) -> dict[str, str]:
    """Who asks, as fields of an ActionRequest, from the RequestMetadata header under either of its names: a malformed
    one is no reason to refuse a build. What is longer than any client writes is cut: it is kept with the action.
    """
    for header in _METADATA_HEADERS:
        try:
            value = stream.header(header)
            if not isinstance(value, bytes):
                continue
            metadata = decode(reapi.RequestMetadata, value)
        except (DecodeError, InvalidRequestError) as exc:
            _log.debug("%s: unreadable header %s: %s", stream.peer, header, exc)
            return {}
        tool = metadata.tool_details
        found = {
            "tool": f"{tool.tool_name} {tool.tool_version}" if tool is not None else "",
            "target": metadata.target_id,
            "mnemonic": metadata.action_mnemonic,
            "invocation": metadata.tool_invocation_id,
        }
        return {key: text[:MAX_METADATA_CHARS] for key, text in found.items()}
    return {}
