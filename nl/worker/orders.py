"""What the agent and the runner of actions tell each other: an order, the handle to end it by, and the report on it."""

from __future__ import annotations

from typing import NamedTuple

import trio

from nl.cas.digests import parse_digest
from nl.errors import Code, ExhaustedError, InvalidRequestError
from nl.model.digest import Digest, DigestFunction
from nl.model.execution import Properties
from nl.pb import reapi, rpc_status, wkt, worker_api
from nl.worker.runner import KillSwitch


class NotNowError(ExhaustedError):
    """The worker, not the action, is in no state to run it: the scheduler is to find another, or wait."""


class Report(NamedTuple):
    """What goes back to the scheduler: one of the two, and what was used."""

    response: reapi.ExecuteResponse | None
    error: rpc_status.Status | None
    usage: worker_api.ActionResourceUsage | None = None

    def says(self, code: Code) -> bool:
        """Whether this is its status."""
        status = self.error or (self.response.status if self.response is not None else None)
        return status is not None and status.code == code


class Request(NamedTuple):
    """A StartExecute, checked."""

    operation_id: str
    instance_name: str
    action_digest: Digest
    function: DigestFunction
    platform: Properties
    message: reapi.ExecuteRequest
    queued: wkt.Timestamp | None

    @classmethod
    def parse(cls, start: worker_api.StartExecute) -> Request:
        """Raises InvalidRequestError."""
        message = start.execute_request
        if message is None:
            raise InvalidRequestError("StartExecute has no execute_request")
        number = int(message.digest_function)
        try:
            function = DigestFunction(number) if number else DigestFunction.SHA256
        except ValueError:
            raise InvalidRequestError(f"digest function {number} is not supported by this worker") from None
        return cls(
            start.operation_id,
            message.instance_name,
            parse_digest(message.action_digest, function, "ExecuteRequest.action_digest"),
            function,
            properties_of(start.platform),
            message,
            start.queued_timestamp,
        )


def properties_of(platform: reapi.Platform | None) -> Properties:
    """Platform properties as (name, value)."""
    return () if platform is None else tuple((item.name, item.value) for item in platform.properties)


def asks_for_network(platform: Properties) -> bool:
    """Whether an action says that it needs the network: `requires-network`, as Bazel calls it, and not "no"."""
    return any(name == "requires-network" and value.lower() not in ("0", "false", "no") for name, value in platform)


class Running:
    """The handle of a running action: how it is killed from outside, with what it printed kept."""

    __slots__ = ("_executing", "do_not_cache", "killed", "scope", "switch")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.switch = KillSwitch()
        self.killed = False
        self.do_not_cache = False
        """The action says that it is to be run for each who asks."""
        self._executing = False

    def kill(self) -> None:
        """Ends the action; its report says CANCELLED. May be called at any time."""
        self.killed = True
        self.switch.throw()
        if not self._executing:
            self.scope.cancel()

    def executing(self, on: bool) -> None:
        """While the command runs only the command is killed."""
        self._executing = on
