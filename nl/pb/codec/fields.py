"""What a message class looks like on the wire: the one place that reads betterproto2's field metadata.

Decoders and encoders are compiled from `Field`s and from nothing else.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, Final, cast

import betterproto2

FIXED: Final = {
    betterproto2.TYPE_FIXED32: "<I",
    betterproto2.TYPE_SFIXED32: "<i",
    betterproto2.TYPE_FLOAT: "<f",
    betterproto2.TYPE_FIXED64: "<Q",
    betterproto2.TYPE_SFIXED64: "<q",
    betterproto2.TYPE_DOUBLE: "<d",
}
"""struct formats of the kinds that have a fixed size."""

ENUM, BOOL, STRING, BYTES, MESSAGE, MAP = (
    betterproto2.TYPE_ENUM,
    betterproto2.TYPE_BOOL,
    betterproto2.TYPE_STRING,
    betterproto2.TYPE_BYTES,
    betterproto2.TYPE_MESSAGE,
    betterproto2.TYPE_MAP,
)


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `kind` is the protobuf type's name; `cls` the class of a message or an enum."""

    name: str
    number: int
    kind: str
    cls: Any = None
    repeated: bool = False
    explicit: bool = False
    """Absence can be told from the default: None in Python."""
    rivals: tuple[str, ...] = ()
    """The other members of its oneof."""
    wrapped: bool = False
    """A wrapper message (UInt32Value) that Python sees as its bare value."""
    key: Field | None = None
    value: Field | None = None
    """Of a map."""

    @property
    def wire_type(self) -> int:
        """Of one value; repeated numbers may be packed (2) as well."""
        if self.kind in FIXED:
            return 1 if FIXED[self.kind] in ("<Q", "<q", "<d") else 5
        return 2 if self.kind in (STRING, BYTES, MESSAGE, MAP) else 0

    @property
    def tag(self) -> int:
        """Number and wire type, as they stand before a value."""
        return self.number << 3 | self.wire_type

    @property
    def packed_tag(self) -> int:
        """As they stand before a packed list of numbers."""
        return self.number << 3 | 2


def fields_of(cls: type[betterproto2.Message]) -> list[Field]:
    """The fields of a generated class, by ascending number: the order in which they are written."""
    hints = typing.get_type_hints(cls)
    declared = [(item.name, betterproto2.FieldMetadata.get(item)) for item in dataclasses.fields(cast(Any, cls))]
    groups: dict[str, list[str]] = {}
    for name, meta in declared:
        if meta.group:
            groups.setdefault(meta.group, []).append(name)
    found = []
    for name, meta in declared:
        rivals = tuple(other for other in groups.get(meta.group or "", ()) if other != name)
        found.append(_field(name, meta, hint=hints[name], rivals=rivals))
    return sorted(found, key=lambda field: field.number)


def _field(name: str, meta: betterproto2.FieldMetadata, *, hint: Any, rivals: tuple[str, ...]) -> Field:
    arguments = typing.get_args(hint)
    if meta.map_meta is not None:
        key, value = (
            Field(name=part, number=of.number, kind=of.proto_type, cls=cls, wrapped=of.unwrap is not None)
            for part, of, cls in zip(("key", "value"), meta.map_meta, arguments, strict=True)
        )
        return Field(name=name, number=meta.number, kind=MAP, key=key, value=value)
    cls = arguments[0] if arguments else hint  # list[X], X | None, or X itself
    if meta.unwrap is not None:
        cls = meta.unwrap()
    return Field(
        name=name,
        number=meta.number,
        kind=meta.proto_type,
        cls=cls,
        repeated=bool(meta.repeated),
        explicit=bool(meta.optional or meta.group or meta.proto_type == MESSAGE) and not meta.repeated,
        rivals=rivals,
        wrapped=meta.unwrap is not None,
    )
