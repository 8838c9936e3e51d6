"""What every service reads from a request in the same way: the instance, the digest function, a digest.

One meaning and one status for each (REAPI A.7 rule 23 asks for consistency over all services): an instance that is
not configured is NOT_FOUND, or means the instance "" where the config says so; a digest function this server does not
speak and a malformed digest are INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

from nl.blob.off_loop import off_loop
from nl.blob.reader import Buffer
from nl.cas.large import IN_PLACE_BYTES
from nl.errors import InvalidRequestError, NotFoundError
from nl.model.access import ANY_RIGHT, EVERYONE, Right
from nl.model.digest import DigestFunction
from nl.rpc.contract import ServerStream

T = TypeVar("T")
Req = TypeVar("Req")
Rep = TypeVar("Rep")
_SHOWN_INSTANCES = 10
_FUNCTIONS = {0: DigestFunction.SHA256, **{int(function): function for function in DigestFunction}}


class Instances(Generic[T]):
    """The configured instances of one service, by name.

    `any_name`: a name that is not configured means the instance "", if there is that one. Clients have default names
    of their own (moon: `moon-outputs`, siso: `default_instance`), and a cache for everybody has no use for names.
    """

    def __init__(self, instances: Mapping[str, T], *, any_name: bool = False) -> None:
        self._instances = dict(instances)
        self._any_name = any_name and "" in self._instances

    def get(self, stream: ServerStream[Any, Any], name: str, right: Right) -> T:
        """The instance that serves `name`, if the caller has `right` for it.

        Raises what `Identity.require` raises, and NotFoundError, which names those that the caller may know of.
        """
        identity = stream.identity
        if identity is EVERYONE and name in self._instances:
            return self._instances[name]
        name = self.resolve(name)
        identity.require(right, name)
        try:
            return self._instances[name]
        except KeyError:
            known = sorted(each for each in self._instances if identity.sees(each))
            shown = ", ".join(map(repr, known[:_SHOWN_INSTANCES])) or "none for this service"
            more = f" and {len(known) - _SHOWN_INSTANCES} more" if len(known) > _SHOWN_INSTANCES else ""
            raise NotFoundError(
                f"unknown instance name {name[:200]!r}; this server has: {shown}{more} (the option any_instance_name "
                "serves every other name as '')"
            ) from None

    def resolve(self, name: str) -> str:
        """The name of the instance that serves `name`: itself, or "". Rights are asked for that one."""
        return "" if self._any_name and name not in self._instances else name

    def __repr__(self) -> str:
        return f"Instances({', '.join(map(repr, sorted(self._instances)))})"


def parse_function(value: int) -> DigestFunction:
    """The digest function of a request. 0 (not set) is SHA256.

    The other functions of this server are always named, because their hashes have the same length (REAPI,
    DigestFunction).
    """
    function = _FUNCTIONS.get(value)
    if function is None:
        raise InvalidRequestError(f"digest function {int(value)} is not supported; supported: SHA256, BLAKE3")
    return function


class EncodedRequest:
    """A request that its handler gets as the bytes it is: one that may be too large to be decoded in the loop."""

    __slots__ = ("data",)

    max_message_size: ClassVar[int] = 0
    """As `nl.rpc.method.Method` has it."""

    def __init__(self, data: Buffer) -> None:
        self.data = data

    @classmethod
    def decode(cls, data: Buffer) -> Self:
        """Takes the bytes as they are."""
        return cls(data)


async def receive_decoded(stream: ServerStream[Any, Any], decode: Callable[[Buffer], T]) -> T:
    """As `receive_request`, for a request that comes encoded. Raises what `decode` raises."""
    request: EncodedRequest = await receive_request(stream)
    data = request.data
    return decode(data) if len(data) <= IN_PLACE_BYTES else await decode_off_loop(stream, decode, data)


async def decode_off_loop(stream: ServerStream[Any, Any], decode: Callable[[Buffer], T], data: Buffer) -> T:
    """`decode(data)` in a thread. There are few of these, and what waits for one is held for its client meanwhile."""
    stream.keep(len(data))
    try:
        return await off_loop(decode, data)
    finally:
        stream.keep(0)


async def receive_request(stream: ServerStream[Req, Rep]) -> Req:
    """The one message of a call that takes one; InvalidRequestError if the client sent none.

    Who has no right at all is refused before anything is read: reading megabytes is work, and what is wrong with them
    is nobody's business.
    """
    if stream.identity is not EVERYONE:
        refuse_strangers(stream)
    request = await stream.recv_message()
    if request is None:
        raise _no_message(stream)
    return request


def refuse_strangers(stream: ServerStream[Any, Any]) -> None:
    """Raises what `Identity.require` raises for those who have no right for any instance."""
    if stream.identity is not EVERYONE:
        stream.identity.require(ANY_RIGHT, None)


async def receive_from_anybody(stream: ServerStream[Req, Rep]) -> Req:
    """The same, of those calls that need no right."""
    request = await stream.recv_message()
    if request is None:
        raise _no_message(stream)
    return request


def _no_message(stream: ServerStream[Any, Any]) -> InvalidRequestError:
    return InvalidRequestError(f"{stream.method} needs a request message, and the call ended without one")
