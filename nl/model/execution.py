"""What the execution services, the scheduler and the workers' side of the wire tell each other. Pure values.

Responses are opaque encoded bytes here (`ExecuteResponse` on the wire): the scheduler carries them and does not look
inside, so it needs no protobuf.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nl.errors import NlError
from nl.model.digest import Digest, DigestFunction


class Stage(enum.IntEnum):
    """build.bazel.remote.execution.v2.ExecutionStage.Value."""

    UNKNOWN = 0
    CACHE_CHECK = 1
    QUEUED = 2
    EXECUTING = 3
    COMPLETED = 4


Properties = tuple[tuple[str, str], ...]
"""Platform properties as (name, value), sorted, names may repeat (REAPI Platform)."""


@dataclass(frozen=True, slots=True)
class ActionRequest:
    """One Execute, as the scheduler sees it."""

    instance_name: str
    action_digest: Digest
    digest_function: DigestFunction
    platform: Properties = ()
    priority: int = 0
    """Lower is sooner, negative allowed (REAPI ExecutionPolicy)."""
    skip_cache_lookup: bool = False
    do_not_cache: bool = False
    timeout_s: float | None = None
    """Action.timeout; None if the action sets none."""
    execute_request: bytes = b""
    """The encoded ExecuteRequest, passed on to the worker."""
    invocation: str = ""
    """Which build asks (RequestMetadata.tool_invocation_id); "" if it does not say. Builds have fair shares."""
    user: str = ""
    """Whose build it is: the name that the door knows; "" without credentials."""
    target: str = ""
    """What it is for (RequestMetadata.target_id, `//pkg:name` say)."""
    mnemonic: str = ""
    """What kind of action it is (RequestMetadata.action_mnemonic, `CppCompile` say)."""
    tool: str = ""
    """Who asks: name and version of the client."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended. Exactly one of `response` and `error` is set."""

    response: bytes | None = None
    """Encoded ExecuteResponse (its own status may well be an error)."""
    error: NlError | None = None
    """The action never got a response from a worker; becomes ExecuteResponse.status."""
    cached: bool = False


@dataclass(frozen=True, slots=True)
class OperationState:
    """A snapshot of one operation. `version` grows with every change; `wait_changed(version)` waits for a later one."""

    name: str
    action_digest: Digest
    digest_function: DigestFunction
    stage: Stage
    version: int
    outcome: Outcome | None = None
    worker_id: str = ""
    queued_at: float = 0.0
    """Unix time, seconds."""

    @property
    def done(self) -> bool:
        return self.outcome is not None
