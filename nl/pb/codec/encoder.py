"""Compiles the encoder of one message class: Python source written from its fields, executed once.

An encoder is `encode(m, p)`: it appends the encoded message to the list `p` piece by piece and returns its length. The
head of a nested message needs the length of what follows it, so its place is taken first and filled in afterwards; a
payload is appended as it is and copied at most once, when the pieces are joined.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from nl.pb.codec import wire
from nl.pb.codec.fields import BOOL, BYTES, ENUM, FIXED, MAP, MESSAGE, STRING, Field

Encode = Callable[[Any, list[wire.Buffer]], int]
Resolve = Callable[[str, Any, dict[str, Any]], None]
"""Puts the encoder of a class into a namespace under a name, now or when it is first called."""

_TO_VARINT = {
    "int64": "V[x] if 0 <= x < SHORT else varint_signed(x)",
    "uint64": "V[x] if 0 <= x < SHORT else varint(x)",
    "int32": "V[x] if 0 <= x < SHORT else varint_int32(x)",
    "uint32": "V[x] if 0 <= x < SHORT else varint_uint32(x)",
    "sint32": "varint_sint32(x)",
    "sint64": "varint_sint64(x)",
    ENUM: "V[x] if 0 <= x < SHORT else varint_int32(x)",
    BOOL: "b'\\1' if x else b'\\0'",
}
_LENGTH = "(V[k] if k < SHORT else varint(k))"


def compile_encoder(cls: type, fields: list[Field], *, resolve: Resolve) -> Encode:
    """The encoder of `cls`."""
    body = ["n = 0"]
    for field in fields:
        body += [f"x = m.{field.name}", f"if {_present(field)}:", *_indented(_written(field))]
    body += ["x = m._unknown_fields", "if x: p.append(x); n += len(x)", "return n"]
    return _execute(cls.__name__, body, _namespace(fields, resolve=resolve))


def compile_entry(field: Field, *, resolve: Resolve) -> Encode:
    """The encoder of one entry of a map field, a pair (key, value); both are always written."""
    assert field.key is not None
    assert field.value is not None
    body = ["n = 0", "x = m[0]", *_written(field.key), "x = m[1]", *_written(field.value), "return n"]
    return _execute(f"{field.name}_entry", body, _namespace([field.key, field.value], resolve=resolve))


def _namespace(fields: list[Field], *, resolve: Resolve) -> dict[str, Any]:
    names = ("varint", "varint_signed", "varint_int32", "varint_uint32", "varint_sint32", "varint_sint64", "SHORT")
    namespace: dict[str, Any] = {name: getattr(wire, name) for name in names}
    namespace["V"] = wire.VARINTS
    for field in fields:
        if field.kind in FIXED:
            namespace[f"pack_{field.name}"] = struct.Struct(FIXED[field.kind]).pack
        elif field.kind in (MESSAGE, MAP):
            resolve(f"e_{field.name}", field if field.kind == MAP else field.cls, namespace)
            namespace[f"c_{field.name}"] = field.cls
    return namespace


def _present(field: Field) -> str:
    """The condition under which `x`, the value of a field, is written."""
    if field.explicit:
        return "x is not None"
    if field.kind in ("float", "double") and not field.repeated:
        return "x or str(x)[0] == '-'"  # minus zero is not the default
    return "x"


def _written(field: Field) -> list[str]:
    """How `x` is appended and counted."""
    if field.kind == MAP:
        return ["for x in x.items():", *_indented(_nested(field))]
    if field.repeated and field.wire_type != 2:
        return [f"x = b''.join([{_number(field)} for x in x])", *_delimited(field.packed_tag)]
    if field.repeated:
        return ["for x in x:", *_indented(_sliced(field))]
    if field.wire_type == 2:
        return _sliced(field)
    return [f"x = {wire.varint(field.tag)!r} + ({_number(field)})", "p.append(x); n += len(x)"]


def _number(field: Field) -> str:
    return f"pack_{field.name}(x)" if field.kind in FIXED else _TO_VARINT[field.kind]


def _sliced(field: Field) -> list[str]:
    if field.kind == STRING:
        return ["x = x.encode()", *_delimited(field.tag)]
    if field.kind == BYTES:
        head = f"h = {wire.varint(field.tag)!r} + {_LENGTH}"
        return ["k = len(x)", head, "p.append(h); p.append(x); n += k + len(h)"]
    return [f"x = c_{field.name}(value=x)", *_nested(field)] if field.wrapped else _nested(field)


def _delimited(tag: int) -> list[str]:
    return ["k = len(x)", f"x = {wire.varint(tag)!r} + {_LENGTH} + x", "p.append(x); n += len(x)"]


def _nested(field: Field) -> list[str]:
    head = f"h = {wire.varint(field.tag)!r} + {_LENGTH}"
    return ["j = len(p); p.append(b'')", f"k = e_{field.name}(x, p)", head, "p[j] = h; n += k + len(h)"]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f" {line}" for line in lines]


def _execute(name: str, body: list[str], namespace: dict[str, Any]) -> Encode:
    source = "\n".join(["def encode(m, p):", *_indented(body)])
    exec(compile(source, f"<encoder of {name}>", "exec"), namespace)
    encode: Encode = namespace["encode"]
    return encode
