"""From parsed JSON5 to typed options: one recursive walk over the annotations of `Options` structs.

The first thing that is wrong ends the walk with a ConfigError that has the path of the bad place and what was expected
there. Knows the annotations listed in `Options` and the markers of `fields`; component-specific shapes (older map
forms, `{ name, kind }`) are functions that `Entries` carries or a struct's own `from_raw`.
"""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from nl.config import types as t
from nl.config import values
from nl.config.fields import (
    Conversion,
    Entries,
    Field,
    Ignored,
    Raw,
    Unsupported,
    ZeroMeansDefault,
    fields_of,
    join,
    without_none,
)
from nl.errors import ConfigError, PluginError


def suggest(word: str, choices: Iterable[str]) -> str:
    """` (did you mean "x"?)`, or nothing if no choice is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


# ---------------------------------------------------------------------------------------------------- single values

_SCALARS: dict[Any, tuple[Callable[[Raw, Mapping[str, str]], Any], str]] = {
    t.Text: (values.expand, "text"),
    t.SecretText: (values.expand, "text"),
    t.StoreName: (values.expand, "the name of a store"),
    t.SchedulerName: (values.expand, "the name of a scheduler"),
    t.ServerAddress: (values.expand, "an address such as grpc://host:port"),
    str: (lambda raw, env: values.literal(raw), "text"),
    t.Count: (values.count, "a whole number"),
    int: (values.count, "a whole number"),
    t.Size: (values.size, 'a number of bytes or a size such as "10gb" or "64KiB"'),
    t.Duration: (values.duration, 'a number of seconds or a duration such as "90s" or "1h 30m"'),
    t.SignedDuration: (
        functools.partial(values.duration, signed=True),
        'a number of seconds (negative: off) or a duration such as "90s"',
    ),
    t.Milliseconds: (values.milliseconds, 'a number of milliseconds or a duration such as "500ms"'),
    float: (values.real, "a number"),
    bool: (values.flag, "true or false"),
}


def expectation(annotation: Any) -> str:
    """What belongs where this annotation stands, in words: the end of an error message."""
    annotation, _ = without_none(annotation)
    if annotation in _SCALARS:
        return _SCALARS[annotation][1]
    origin = get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(values.show(choice) for choice in get_args(annotation))
    if origin is tuple:
        return "a list"
    if annotation is t.StoreSpec:
        return "a store, { <kind>: {...} }"
    if origin in (Union, types.UnionType):
        return " or ".join(expectation(member) for member in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, t.Tagged):
        return "{ <kind>: {...} }"
    return "an object"


def _scalar(annotation: Any, raw: Raw, path: str, conversion: Conversion) -> Any:
    parse, expected = _SCALARS[annotation]
    try:
        value = parse(raw, conversion.env)
    except ValueError as exc:
        raise ConfigError(path, f"{exc}; expected {expected}") from None
    typed = value if annotation is bool else annotation(value)
    if annotation in (t.StoreName, t.SchedulerName):
        if not value:
            raise ConfigError(path, f"empty text; expected {expected}")
        conversion.references.append((path, typed))
    return typed


# ----------------------------------------------------------------------------------------------------- whole values


def convert(annotation: Any, raw: Raw, path: str, conversion: Conversion) -> Any:
    """The value of type `annotation` that `raw`, found at `path`, stands for.

    Raises ConfigError with the path of the first bad place.
    """
    annotation, optional = without_none(annotation)
    if raw is None and optional:
        return None
    if annotation in _SCALARS:
        return _scalar(annotation, raw, path, conversion)
    if annotation is t.StoreSpec:
        return store_spec(raw, path, conversion)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _choice(annotation, raw, path, conversion)
    if origin is tuple:
        entries = [(f"{path}[{i}]", entry) for i, entry in enumerate(listed(raw, path))]
        return tuple(convert(arguments[0], entry, at, conversion) for at, entry in entries)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: convert(arguments[1], entry, join(path, key), conversion)
                for key, entry in mapped(raw, path).items()}
    if origin in (Union, types.UnionType):
        return _union(annotation, raw, path, conversion)
    if isinstance(annotation, type) and hasattr(annotation, "from_raw"):
        return annotation.from_raw(raw, path, conversion)
    if isinstance(annotation, type) and issubclass(annotation, t.Options):
        return struct(annotation, raw, path, conversion)
    raise PluginError(path, f"the options declare the type {annotation!r}; expected one that nl.plugin offers")


def listed(raw: Raw, path: str) -> list[Raw]:
    """The value as a list, or a ConfigError."""
    if not isinstance(raw, list):
        raise ConfigError(path, f"{values.show(raw)} is not a list; expected [ ... ]")
    return raw


def mapped(raw: Raw, path: str) -> dict[str, Raw]:
    """The value as an object, or a ConfigError."""
    if not isinstance(raw, dict):
        raise ConfigError(path, f"{values.show(raw)} is not an object; expected {{ ... }}")
    return raw


def _choice(annotation: Any, raw: Raw, path: str, conversion: Conversion) -> Any:
    choices = get_args(annotation)
    if isinstance(raw, str):
        try:
            raw = values.expand(raw, conversion.env)
        except ValueError as exc:
            raise ConfigError(path, f"{exc}; expected {expectation(annotation)}") from None
        if raw in choices:
            return raw
    hint = suggest(raw, choices) if isinstance(raw, str) else ""
    raise ConfigError(path, f"{values.show(raw)} is none of the choices{hint}; expected {expectation(annotation)}")


def _union(annotation: Any, raw: Raw, path: str, conversion: Conversion) -> Any:
    """Text or an object, told apart by what is there."""
    members = get_args(annotation)
    objects = [m for m in members if isinstance(m, type) and issubclass(m, t.Options)]
    others = [m for m in members if m not in objects]
    if isinstance(raw, dict) and objects:
        return convert(objects[0], raw, path, conversion)
    if others and not isinstance(raw, (dict, list)):
        return convert(others[0], raw, path, conversion)
    raise ConfigError(path, f"{values.show(raw)} does not fit; expected {expectation(annotation)}")


def struct(cls: type[t.Options], raw: Raw, path: str, conversion: Conversion) -> Any:
    """An Options struct from an object. Keys are checked first, then values in order of definition."""
    given = mapped(raw, path)
    fields = fields_of(cls)
    known = {key for one in fields for key in (one.key, *one.aliases)}
    for key in given:
        if key not in known:
            names = ", ".join(one.key for one in fields)
            expected = f"expected one of {names}" if names else "expected no keys here"
            raise ConfigError(join(path, key), f"unknown key{suggest(key, known)}; {expected}")
    found: dict[str, Any] = {}
    for one in fields:
        keys = [key for key in (one.key, *one.aliases) if key in given]
        if len(keys) > 1:
            raise ConfigError(join(path, keys[1]), f"says the same as {keys[0]}; expected only one of the two")
        if not keys or (given[keys[0]] is None and not one.required):
            if one.required:
                problem = f"missing; expected {expectation(one.annotation)}"
                raise ConfigError(join(path, one.key), problem)
            continue
        found[one.attribute] = _field(one, given[keys[0]], join(path, keys[0]), conversion)
    return finish(cls, found, path)


def finish(cls: type[t.Options], found: Mapping[str, Any], path: str) -> Any:
    """The struct from its converted fields, its own `check` done."""
    value = cls(**found)
    try:
        value.check()
    except ConfigError as exc:
        where = path if not exc.path else exc.path if not path else f"{path}.{exc.path}"
        raise type(exc)(where, exc.problem) from None
    except ValueError as exc:
        raise ConfigError(path, str(exc)) from exc
    return value


def _field(one: Field, raw: Raw, path: str, conversion: Conversion) -> Any:
    unsupported: Unsupported | None = one.marker(Unsupported)
    if unsupported is not None and raw and not isinstance(raw, str):
        raise _unsupported(unsupported, path)
    entries: Entries | None = one.marker(Entries)
    if entries is not None:
        annotation, _ = without_none(one.annotation)
        value = tuple(convert(get_args(annotation)[0], entry, at, conversion)
                      for at, entry in entries.split(raw, path, conversion))
    else:
        value = convert(one.annotation, raw, path, conversion)
    if one.marker(ZeroMeansDefault) and not value:
        return one.default
    if value and value != one.default:
        if unsupported is not None:
            raise _unsupported(unsupported, path)
        ignored: Ignored | None = one.marker(Ignored)
        if ignored is not None:
            conversion.warn(path, f"has no effect: {ignored.why}")
    return value


def _unsupported(marker: Unsupported, path: str) -> ConfigError:
    return ConfigError(path, f"not supported: {marker.why}; expected this key to be left out")


def store_spec(raw: Raw, path: str, conversion: Conversion) -> t.StoreSpec:
    """A store written `{ <kind>: {...} }`."""
    given = mapped(raw, path)
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise ConfigError(path, f"a store has exactly one kind, found {found}; expected {{ <kind>: {{...}} }}")
    ((kind, inner),) = given.items()
    at = join(path, kind)
    return t.StoreSpec(kind, struct(conversion.kinds(kind, at), {} if inner is None else inner, at, conversion), path)
