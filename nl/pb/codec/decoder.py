"""Compiles the decoder of one message class: Python source written from its fields, executed once.

A decoder is `decode(b, i, end, m, d)`: it reads `b[i:end]`, fills `m` (a new message when `m` is None) and returns it;
`d` is how many levels may still nest. Fields live in local variables while the bytes are read and are stored at the
end, so a message whose bytes are wrong half-way is never seen. Behaviour is that of google's protobuf: see the package.

A class is compiled in two forms, for `bytes` and for `memoryview` input. They differ in how a slice becomes a value:
a slice of a memoryview is no copy, so only what must be `bytes` is copied out of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from nl.pb.codec import wire
from nl.pb.codec.fields import BOOL, BYTES, ENUM, FIXED, MAP, MESSAGE, STRING, Field

Decode = Callable[[wire.Buffer, int, int, Any, "int | wire.Levels"], Any]
Resolve = Callable[[str, Any, dict[str, Any]], None]
"""Puts the decoder of a class into a namespace under a name, now or when it is first called."""

_LENGTH = (
    "n = b[i]; i += 1",
    "if n > 127: n, i = read_length(b, i, n)",
    "e = i + n",
    "if e > end: raise DecodeError('truncated')",
)
_VARINT = ("v = b[i]; i += 1", "if v > 127: v, i = read_varint(b, i, v)")
_FROM_VARINT = {
    "int64": ("if v > 0x7fffffffffffffff: v -= 0x10000000000000000",),
    "uint64": (),
    "int32": ("if v > 0x7fffffff: v = int32(v)",),
    "uint32": ("v &= 0xffffffff",),
    "sint32": ("v = sint32(v)",),
    "sint64": ("v = sint64(v)",),
    BOOL: ("v = v != 0",),
}
_ZERO = {STRING: "''", BYTES: "b''", BOOL: "False", "float": "0.0", "double": "0.0"}


def compile_decoder(
    cls: type, fields: list[Field], *, resolve: Resolve, is_view: bool, views: frozenset[str] = frozenset()
) -> Decode:
    """The decoder of `cls`. `is_view`: for memoryview input; `views`: bytes fields that stay memoryviews."""
    namespace = _namespace(fields, resolve=resolve)
    namespace |= {"new": cls.__new__, "cls": cls}
    body = [
        "if d < 0: raise DecodeError('nested too deeply')",
        "if m is None:",
        *_indented(["m = new(cls)", "u = b''", *(f"{_var(field)} = {_default(field)}" for field in fields)]),
        "else:",
        *_indented(["u = m._unknown_fields", *(f"{_var(field)} = m.{field.name}" for field in fields)]),
        *_loop(fields, is_view=is_view, views=views, unknown=("if not u: u = bytearray()", "u += b[s:i]")),
        *(f"m.{field.name} = {_var(field)}" for field in fields),
        "m._unknown_fields = u",
        "return m",
    ]
    return _execute(cls.__name__, body, namespace)


def compile_entry(field: Field, *, resolve: Resolve, is_view: bool) -> Decode:
    """The decoder of one entry of a map field: it returns (key, value). `m` is not used."""
    assert field.key is not None
    assert field.value is not None
    fields = [field.key, field.value]
    value = "f_value"
    if field.value.kind == MESSAGE:
        value = "(d_value(b'', 0, 0, None, d) if f_value is None else f_value)"
    body = [
        "if d < 0: raise DecodeError('nested too deeply')",
        *(f"{_var(part)} = {'None' if part.kind == MESSAGE else _default(part)}" for part in fields),
        *_loop(fields, is_view=is_view, views=frozenset(), unknown=()),
        f"return f_key, {value}",
    ]
    return _execute(f"{field.name}_entry", body, _namespace(fields, resolve=resolve))


def _namespace(fields: list[Field], *, resolve: Resolve) -> dict[str, Any]:
    names = ("DecodeError", "read_varint", "read_tag", "read_length", "skip", "int32", "sint32", "sint64")
    namespace: dict[str, Any] = {name: getattr(wire, name) for name in names}
    for field in fields:
        if field.kind == ENUM:
            namespace[f"enum_{field.name}"] = _enum_reader(field.cls)
            namespace[f"zero_{field.name}"] = field.cls(0)
        elif field.kind in FIXED:
            namespace[f"unpack_{field.name}"] = struct.Struct(FIXED[field.kind]).unpack_from
        elif field.kind in (MESSAGE, MAP):
            resolve(f"d_{field.name}", field if field.kind == MAP else field.cls, namespace)
            namespace[f"c_{field.name}"] = field.cls
    return namespace


def _loop(fields: list[Field], *, is_view: bool, views: frozenset[str], unknown: Iterable[str]) -> list[str]:
    """The loop over tags: one arm for each way in which a field may be written."""
    arms: list[str] = []
    for field in fields:
        for tag, lines in _arms(field, is_view=is_view, views=views):
            arms += [f"{'elif' if arms else 'if'} t == {tag}:", *_indented(lines)]
    otherwise = ["i = skip(b, i, end, t, d)", *unknown]
    return [
        "while i < end:",
        *_indented(
            [
                "s = i; t = b[i]; i += 1",
                "if t > 127: t, i = read_tag(b, i, t)",
                *([*arms, "else:", *_indented(otherwise)] if arms else otherwise),
            ]
        ),
        "if i != end: raise DecodeError('truncated')",
    ]


def _arms(field: Field, *, is_view: bool, views: frozenset[str]) -> list[tuple[int, list[str]]]:
    var = _var(field)
    if field.kind == MAP:
        return [(field.tag, [*_LENGTH, f"k, v = d_{field.name}(b, i, e, None, d - 1)", f"{var}[k] = v", "i = e"])]
    if field.repeated and field.wire_type != 2:
        lines, value = _scalar(field)
        listed = [*_LENGTH, "while i < e:", *_indented([*lines, f"{var}.append({value})"])]
        listed.append("if i != e: raise DecodeError('truncated')")  # `end` bounds its values, this the list
        return [(field.packed_tag, listed), (field.tag, [*lines, f"{var}.append({value})"])]
    if field.repeated and field.kind == MESSAGE:
        return [(field.tag, _message_run(field))]
    lines, value = _scalar(field) if field.wire_type != 2 else _sliced(field, is_view=is_view, views=views)
    store = f"{var}.append({value})" if field.repeated else f"{var} = {value}"
    after = ["i = e"] if field.wire_type == 2 else []
    return [(field.tag, [*lines, store, *after, *(f"f_{rival} = None" for rival in field.rivals)])]


def _message_run(field: Field) -> list[str]:
    """Repeated messages mostly come one after the other: stay here while the next tag is the same."""
    lines = [*_LENGTH, f"{_var(field)}.append(d_{field.name}(b, i, e, None, d - 1))", "i = e"]
    if field.tag > 127:
        return lines
    return ["while 1:", *_indented([*lines, f"if i < end and b[i] == {field.tag}: i += 1", "else: break"])]


def _scalar(field: Field) -> tuple[list[str], str]:
    """How a number is read from `b` at `i`, and the expression for it."""
    if field.kind in FIXED:
        size = _size(field)
        bounds = [f"i += {size}", "if i > end: raise DecodeError('truncated')"]
        return bounds, f"unpack_{field.name}(b, i - {size})[0]"
    if field.kind == ENUM:
        return list(_VARINT), f"enum_{field.name}(v)"
    return [*_VARINT, *_FROM_VARINT[field.kind]], "v"


def _sliced(field: Field, *, is_view: bool, views: frozenset[str]) -> tuple[list[str], str]:
    """How a string, bytes or message is found at `b[i:e]`, and the expression for it."""
    lines = list(_LENGTH)
    if field.kind == STRING:
        return lines, "str(b[i:e], 'utf-8')"
    if field.kind == BYTES:
        if field.name in views:
            return lines, "b[i:e]" if is_view else "memoryview(b)[i:e]"
        return lines, "bytes(b[i:e])" if is_view else "b[i:e]"
    var = _var(field)
    if field.wrapped:
        lines.append(f"v = None if {var} is None else c_{field.name}(value={var})")
        return lines, f"d_{field.name}(b, i, e, v, d - 1).value"
    return lines, f"d_{field.name}(b, i, e, {var}, d - 1)"


def _size(field: Field) -> int:
    return struct.calcsize(FIXED[field.kind])


def _var(field: Field) -> str:
    return f"f_{field.name}"


def _default(field: Field) -> str:
    if field.kind == MAP:
        return "{}"
    if field.repeated:
        return "[]"
    if field.explicit:
        return "None"
    if field.kind == ENUM:
        return f"zero_{field.name}"
    return _ZERO.get(field.kind, "0")


def _enum_reader(cls: Any) -> Callable[[int], Any]:
    """From a varint to a member; numbers without a name become nameless members, not errors."""
    members = {int(member): member for member in cls}

    def read(value: int) -> Any:
        member = members.get(value)
        if member is not None:
            return member
        number = wire.int32(value)
        return members[number] if number in members else cls(number)

    return read


def _indented(lines: Iterable[str]) -> list[str]:
    return [f" {line}" for line in lines]


def _execute(name: str, body: list[str], namespace: dict[str, Any]) -> Decode:
    source = "\n".join(["def decode(b, i, end, m, d):", *_indented(body)])
    exec(compile(source, f"<decoder of {name}>", "exec"), namespace)
    decode: Decode = namespace["decode"]
    return decode
