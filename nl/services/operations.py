"""google.longrunning.Operations: ask after operations by name, wait for them, cancel and forget them.

The same operations that Execute streams, on the same port. Not here: what cancelling does (scheduler).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpclib.const
import trio

from nl.errors import InvalidRequestError
from nl.model.access import ANY_RIGHT
from nl.pb import longrunning, wkt
from nl.pb.codec import encode
from nl.rpc.contract import ServerStream
from nl.scheduler.contract import Scheduler
from nl.services.limits import REPLY_BYTES
from nl.services.operation_filter import parse_filter
from nl.services.operation_finder import OperationFinder
from nl.services.operation_message import operation_message, operation_parts
from nl.services.requests import Instances, receive_request

_PREFIX = "/google.longrunning.Operations/"
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
LONGEST_WAIT_S = 24 * 3600.0
"""How long WaitOperation waits when the client sets no timeout; its deadline usually ends it earlier."""


class OperationsService:
    """google.longrunning.Operations over the schedulers of all instances."""

    def __init__(self, schedulers: Mapping[str, Scheduler], *, any_name: bool = False) -> None:
        self._finder = OperationFinder(schedulers)
        self._instances = Instances(schedulers, any_name=any_name)

    async def get_operation(self, stream: ServerStream[longrunning.GetOperationRequest, longrunning.Operation]) -> None:
        """The present state. NotFoundError if there is no such operation (any more)."""
        request = await receive_request(stream)
        _, operation = self._finder.find(stream.identity, request.name)
        await stream.send_parts(operation_parts(operation.state))

    async def wait_operation(
        self, stream: ServerStream[longrunning.WaitOperationRequest, longrunning.Operation]
    ) -> None:
        """The final state, or the present one when the timeout runs out first."""
        request = await receive_request(stream)
        _, operation = self._finder.find(stream.identity, request.name)
        wait_s = LONGEST_WAIT_S if request.timeout is None else wkt.duration_to_ns(request.timeout) / 1e9
        state = operation.state
        with operation.watched(), trio.move_on_after(min(max(wait_s, 0.0), LONGEST_WAIT_S)):
            while not state.done:
                state = await operation.wait_changed(state.version)
        await stream.send_parts(operation_parts(operation.state))

    async def list_operations(
        self, stream: ServerStream[longrunning.ListOperationsRequest, longrunning.ListOperationsResponse]
    ) -> None:
        """Operations of the instance `name` (empty: of all) that the caller may know of, the oldest first, in pages.

        The name may be that of the instance or of its collection, `{instance}/operations`; what a filter is stands in
        operation_filter.py.
        """
        await stream.send_parts([await self._page(stream)])

    async def _page(self, stream: ServerStream[longrunning.ListOperationsRequest, Any]) -> bytes:
        """The reply; what it is made of is gone when the client takes it."""
        request = await receive_request(stream)
        is_wanted = parse_filter(request.filter)
        if request.page_size < 0:
            raise InvalidRequestError(f"page_size is negative: {request.page_size}")
        after = _parse_token(request.page_token)
        limit = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        reply = longrunning.ListOperationsResponse()
        size = 0
        wanted = None
        if request.name:
            wanted = self._instances.resolve(_instance_of(request.name))
            self._instances.get(stream, wanted, ANY_RIGHT)
        for operation in self._finder.listed(stream.identity, wanted):
            if operation.number <= after or not is_wanted(operation):
                continue
            message = operation_message(operation.state)
            size += len(encode(message)) + 16
            if reply.operations and (size > REPLY_BYTES or len(reply.operations) >= limit):
                reply.next_page_token = str(after)
                break
            reply.operations.append(message)
            after = operation.number
        return encode(reply)

    async def cancel_operation(self, stream: ServerStream[longrunning.CancelOperationRequest, wkt.Empty]) -> None:
        """Ends it as CANCELLED. One that is over already stays as it is."""
        request = await receive_request(stream)
        scheduler, _ = self._finder.find(stream.identity, request.name)
        await scheduler.cancel(request.name)
        await stream.send_message(wkt.Empty())

    async def delete_operation(self, stream: ServerStream[longrunning.DeleteOperationRequest, wkt.Empty]) -> None:
        """Forgets a finished operation; PreconditionError if it still goes on: deleting does not cancel."""
        request = await receive_request(stream)
        scheduler, _ = self._finder.find(stream.identity, request.name)
        scheduler.forget(request.name)
        await stream.send_message(wkt.Empty())

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        def unary(func: Any, request: type, reply: type) -> grpclib.const.Handler:
            return grpclib.const.Handler(func, grpclib.const.Cardinality.UNARY_UNARY, request, reply)

        operation = longrunning.Operation
        return {
            _PREFIX + "GetOperation": unary(self.get_operation, longrunning.GetOperationRequest, operation),
            _PREFIX + "WaitOperation": unary(self.wait_operation, longrunning.WaitOperationRequest, operation),
            _PREFIX + "ListOperations": unary(
                self.list_operations, longrunning.ListOperationsRequest, longrunning.ListOperationsResponse
            ),
            _PREFIX + "CancelOperation": unary(self.cancel_operation, longrunning.CancelOperationRequest, wkt.Empty),
            _PREFIX + "DeleteOperation": unary(self.delete_operation, longrunning.DeleteOperationRequest, wkt.Empty),
        }


def _instance_of(name: str) -> str:
    """The instance that a collection belongs to: no instance has a segment `operations` of its own."""
    instance, _, last = name.rpartition("/")
    return instance if last == "operations" else name


def _parse_token(token: str) -> int:
    if not token:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) < 20):
        raise InvalidRequestError(f"page_token {token[:80]!r} is not one of ours")
    return int(token)
