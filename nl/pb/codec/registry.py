"""Which codec belongs to which class: compiled when a class is first met, kept for good.

The classes are those of the generated code, a fixed set, so nothing here grows with traffic.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import betterproto2

from nl.pb.codec import decoder, encoder, wire
from nl.pb.codec.fields import BYTES, MAP, Field, fields_of

_VIEWS: dict[str, frozenset[str]] = {
    "google.bytestream.WriteRequest": frozenset({"data"}),
    "google.bytestream.ReadResponse": frozenset({"data"}),
    "build.bazel.remote.execution.v2.BatchUpdateBlobsRequest.Request": frozenset({"data"}),
    "build.bazel.remote.execution.v2.BatchReadBlobsResponse.Response": frozenset({"data"}),
}
"""Payload fields, by message: they come out as memoryviews of the input, which they keep alive."""

_message_fields = cache(fields_of)


@cache
def decoder_of(target: Any, is_view: bool, views: frozenset[str] = frozenset()) -> decoder.Decode:
    """The decoder of a message class, or of the entries of a map field."""

    def resolve(name: str, nested: Any, namespace: dict[str, Any]) -> None:
        def compile_and_decode(b: wire.Buffer, i: int, end: int, m: Any, d: int | wire.Levels) -> Any:
            namespace[name] = decoder_of(nested, is_view)
            return namespace[name](b, i, end, m, d)

        namespace[name] = compile_and_decode

    if isinstance(target, Field):
        return decoder.compile_entry(target, resolve=resolve, is_view=is_view)
    wanted = views | _registered_views(target)
    return decoder.compile_decoder(
        target, _message_fields(target), resolve=resolve, is_view=is_view, views=wanted
    )


@cache
def encoder_of(target: Any) -> encoder.Encode:
    """The encoder of a message class, or of the entries of a map field."""

    def resolve(name: str, nested: Any, namespace: dict[str, Any]) -> None:
        def compile_and_encode(m: Any, p: list[wire.Buffer]) -> int:
            namespace[name] = encoder_of(nested)
            size: int = namespace[name](m, p)
            return size

        namespace[name] = compile_and_encode

    if isinstance(target, Field):
        return encoder.compile_entry(target, resolve=resolve)
    return encoder.compile_encoder(target, _message_fields(target), resolve=resolve)


def check_views(cls: type[betterproto2.Message], views: frozenset[str]) -> None:
    """Raises ValueError unless all names are bytes fields of the class."""
    wrong = views - {field.name for field in _message_fields(cls) if field.kind == BYTES}
    if wrong:
        raise ValueError(f"{cls.__name__} has no bytes field {', '.join(sorted(wrong))}")


@cache
def has_views(cls: type[betterproto2.Message]) -> bool:
    """Whether memoryviews may come out of the class or anything inside it."""
    seen: set[type] = set()
    todo: list[type[betterproto2.Message]] = [cls]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if _registered_views(current):
            return True
        for field in _message_fields(current):
            nested = field.value.cls if field.kind == MAP and field.value is not None else field.cls
            if isinstance(nested, type) and issubclass(nested, betterproto2.Message):
                todo.append(nested)
    return False


def _registered_views(cls: type[betterproto2.Message]) -> frozenset[str]:
    from nl.pb.gen.message_pool import default_message_pool

    url: str = default_message_pool.type_to_url.get(cls, "")
    return _VIEWS.get(url.rpartition("/")[2], frozenset())
