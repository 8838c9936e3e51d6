"""Service objects, seen from the server: a table from full method names to what a call needs to know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import grpclib.const

from nl.blob.reader import Buffer
from nl.pb.codec import decoding, is_generated


class Service(Protocol):
    """Anything with grpclib's mapping from full method names to handlers."""

    def __mapping__(self) -> Mapping[str, grpclib.const.Handler]: ...


class Method:
    """One entry of a service's mapping, with what each call would otherwise look up."""

    __slots__ = ("client_streaming", "decode", "decodes_itself", "func", "max_message_size", "name", "server_streaming")

    def __init__(self, name: str, handler: grpclib.const.Handler) -> None:
        self.name = name
        self.func: Callable[[Any], Awaitable[None]] = handler.func
        self.client_streaming = handler.cardinality.client_streaming
        self.server_streaming = handler.cardinality.server_streaming
        self.decode = decoder_for(handler.request_type)
        self.decodes_itself = handler.request_type is bytes or not is_generated(handler.request_type)
        """Whether the request's class has a `decode` of its own, which takes no time: the handler does the work."""
        self.max_message_size: int = getattr(handler.request_type, "max_message_size", 0)
        """What this method's requests may need beyond what the server allows for all of them."""


def decoder_for(cls: Any) -> Callable[[Buffer], Any]:
    """From encoded bytes to a message of `cls`: a generated class, one with its own `decode`, or bytes as they are."""
    if cls is bytes:
        return lambda data: data if type(data) is bytes else bytes(data)
    return decoding(cls)


def table_of(services: Iterable[Service]) -> dict[bytes, Method]:
    """All methods by path; ValueError if two services offer the same one."""
    table: dict[bytes, Method] = {}
    for service in services:
        for name, handler in service.__mapping__().items():
            if name.encode() in table:
                raise ValueError(f"two services offer {name}")
            table[name.encode()] = Method(name, handler)
    return table
