"""What an `Options` struct is made of: its fields, the markers on them, and walks over values.

Used by the converter, the checks, the schema and the reference. Reads no configs itself.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

from nl.config import types as t
from nl.config import values
from nl.errors import PluginError

Raw = Any
"""What JSON5 gives: dict, list, str, int, float, bool, None."""

_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*").fullmatch


@dataclass
class Conversion:
    """What a walk needs besides the value, and the warnings it leaves."""

    env: Mapping[str, str]
    kinds: Callable[[str, str], type[t.Options]]
    """(kind, path) -> the options class of a store kind; raises ConfigError."""
    warnings: list[tuple[str, str]] = field(default_factory=list)
    references: list[tuple[str, str]] = field(default_factory=list)
    """(path, StoreName or SchedulerName) of every name that the config uses."""

    def warn(self, path: str, text: str) -> None:
        """Leaves a warning about the place `path`."""
        self.warnings.append((path, text))


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Marks a field that configs may have but this server has no answer to: setting it is refused."""

    why: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """Marks a field whose absence changes nothing that a client could see: setting it gives a warning."""

    why: str


@dataclass(frozen=True, slots=True)
class ZeroMeansDefault:
    """Marks a field for which 0 selects the default, as in NativeLink."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Marks a tuple field that has older forms: `split` gives each entry with its path."""

    split: Callable[[Raw, str, Conversion], list[tuple[str, Raw]]]
    forms: str
    """For the schema and the reference: the other forms in a sentence."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an Options struct, as the walk, the schema and the reference see it."""

    attribute: str
    key: str
    annotation: Any
    markers: tuple[Any, ...]
    required: bool
    default: Any

    @property
    def aliases(self) -> tuple[str, ...]:
        """Older keys for the same field."""
        return tuple(marker.key for marker in self.markers if isinstance(marker, t.Alias))

    def marker(self, kind: type[Any]) -> Any:
        """The marker of this class, or None."""
        return next((marker for marker in self.markers if isinstance(marker, kind)), None)


def fields_of(cls: type[t.Options]) -> tuple[Field, ...]:
    """The fields of a struct in order of definition, with resolved annotations.

    Raises PluginError if an annotation cannot be resolved (a name imported for type checking only, say).
    """
    key: Any = cls
    return _fields_of(key)


@functools.cache
def _fields_of(cls: Any) -> tuple[Field, ...]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError, SyntaxError) as exc:
        raise PluginError("", f"the options {cls.__module__}.{cls.__qualname__} cannot be read: {exc}") from exc
    result = []
    for entry in dataclasses.fields(cls):
        annotation, markers = hints[entry.name], ()
        if get_origin(annotation) is Annotated:
            annotation, *rest = get_args(annotation)
            markers = tuple(rest)
        default = entry.default
        if default is dataclasses.MISSING and entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        required = default is dataclasses.MISSING
        result.append(Field(entry.name, entry.name.rstrip("_"), annotation, markers, required, default))
    return tuple(result)


def join(path: str, key: str) -> str:
    """The path of a key of the object at `path`."""
    if not _IDENTIFIER(key):
        return f"{path}[{values.show(key)}]"
    return f"{path}.{key}" if path else key


def without_none(annotation: Any) -> tuple[Any, bool]:
    """(the annotation without `| None`, whether there was one)."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) < len(get_args(annotation)):
            return (members[0] if len(members) == 1 else Union[tuple(members)]), True  # noqa: UP007 - built, not written
    return annotation, False


def walk(value: Any, path: str = "", *, into_children: bool = True) -> Iterator[tuple[str, Any]]:
    """Every value inside a converted value with its path, outermost first, child stores included or not."""
    yield path, value
    if isinstance(value, t.Tagged):
        inner = [(join(path, value.kind), value.options)]
    elif isinstance(value, t.StoreSpec):
        inner = [(join(path, value.kind), value.options)] if into_children else []
    elif isinstance(value, t.Options):
        inner = [(join(path, one.key), getattr(value, one.attribute)) for one in fields_of(type(value))]
    elif isinstance(value, Mapping):
        inner = [(join(path, key), each) for key, each in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        inner = [(f"{path}[{at}]", each) for at, each in enumerate(value)]
    else:
        inner = []
    for where, each in inner:
        yield from walk(each, where, into_children=into_children)


def child_specs(options: t.Options) -> list[tuple[str, t.StoreSpec]]:
    """The child stores that these options name directly, with their paths inside the options."""
    found = walk(options, into_children=False)
    return [(path, value) for path, value in found if isinstance(value, t.StoreSpec)]
