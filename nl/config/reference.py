"""The reference of all options as Markdown, made from the same structs that the converter reads into."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from nl.config import types as t
from nl.config.descriptions import describe, describe_fields
from nl.config.document import Config, NamedScheduler, NamedStore
from nl.config.fields import Entries, Field, Ignored, Unsupported, ZeroMeansDefault, fields_of, without_none
from nl.config.registry import StoreKinds
from nl.config.schedulers import SCHEDULER_KINDS, SchedulerSpec
from nl.config.values import format_duration, format_size

_INTRODUCTION = """\
# Configuration reference

Written by `nl config reference` from the source; do not edit. `nl config check FILE` says what is wrong with a config,
`nl config schema` prints a JSON schema of it.

A config is a JSON5 file: comments, trailing commas and keys without quotes are fine. Unknown keys and keys that are
there twice are refused. Values:

| type | what is accepted |
|---|---|
| text | text; `${VAR}`, `$VAR` and `${VAR:-default}` are environment variables, `$$` is `$` |
| literal text | text, taken as it is written |
| number | a whole number, or text with one |
| size | bytes as a number, or text with a unit: `"10gb"` = 10^10, `"64KiB"` = 65536, `"1.5 MB"`; b is bytes |
| duration | seconds as a number, or text with units: `"1h 30m"`, `"500ms"` |
| flag | `true` or `false`, also as text |
| store | `{ <kind>: { ... } }`: a store of its own, written in place |
| store name | the name of one of `stores` |

null counts as absent where there is a default.
"""

_WORDS: dict[Any, str] = {
    t.Text: "text", t.SecretText: "text (not shown)", str: "literal text",
    t.Count: "number", int: "number", t.Size: "size", t.Duration: "duration",
    t.SignedDuration: "duration, or a negative number", t.Milliseconds: "milliseconds, or a duration as text",
    float: "number", bool: "flag", t.StoreName: "store name", t.SchedulerName: "scheduler name", t.StoreSpec: "store",
    t.ServerAddress: "address",
    SchedulerSpec: "scheduler", NamedStore: "[named store](#stores)", NamedScheduler: "[named scheduler](#schedulers)",
}


def config_reference(kinds: StoreKinds) -> str:
    """The whole reference with these store kinds. Ends with a line end.

    Raises PluginError if one of them cannot be loaded.
    """
    stores = {name: kinds.options(name, name) for name in kinds.names()}
    structs: dict[type[t.Options], None] = {}
    parts = [_INTRODUCTION, *_section("## The whole", Config, structs)]
    parts += ["## Stores\n", 'Each is `{ name: "X", <kind>: { ... } }`, with exactly one of these kinds.\n']
    for name, options in stores.items():
        parts += _section(f"### Store kind `{name}`", options, structs)
    parts += ["## Schedulers\n", 'Each is `{ name: "X", <kind>: { ... } }`, with exactly one of these kinds.\n']
    for name, options in SCHEDULER_KINDS.items():
        parts += _section(f"### Scheduler kind `{name}`", options, structs)
    parts.append("## Parts\n")
    done: set[type[t.Options]] = set()
    while pending := [cls for cls in structs if cls not in done]:
        for cls in pending:
            done.add(cls)
            parts += _section(f"### {cls.__name__}", cls, structs)
    return "\n".join(parts)


def _section(title: str, cls: type[t.Options], structs: dict[type[t.Options], None]) -> Iterator[str]:
    """A heading, the description, an example and the table of fields; structs met on the way go to `structs`."""
    yield f"{title}\n"
    if describe(cls):
        yield f"{describe(cls)}\n"
    if cls.EXAMPLE:
        yield f"```json5\n{inspect.cleandoc(cls.EXAMPLE)}\n```\n"
    if not fields_of(cls):
        yield "No options.\n"
        return
    docs = describe_fields(cls)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for one in fields_of(cls):
        text = _meaning(one, docs.get(one.attribute, ""))
        cells = (f"`{one.key}`", _type(one.annotation, structs), _default(one), text)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    yield "\n".join(rows) + "\n"


def _meaning(one: Field, text: str) -> str:
    notes = [text] if text else []
    if one.marker(Unsupported):
        notes.append(f"**Not supported**: {one.marker(Unsupported).why}.")
    if one.marker(Ignored):
        notes.append(f"**No effect**: {one.marker(Ignored).why}.")
    if one.marker(ZeroMeansDefault):
        notes.append("0 means the default.")
    if one.marker(Entries):
        notes.append(f"Loads {one.marker(Entries).forms}.")
    notes += [f"Also as `{alias}`." for alias in one.aliases]
    return " ".join(notes)


def _type(annotation: Any, structs: dict[type[t.Options], None]) -> str:
    annotation, _ = without_none(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " \\| ".join(f'`"{choice}"`' for choice in arguments).replace("\\|", "or")
    if origin is tuple:
        return f"list of {_type(arguments[0], structs)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"map of name to {_type(arguments[1], structs)}"
    if origin in (Union, types.UnionType):
        return " or ".join(_type(member, structs) for member in arguments)
    if annotation is t.Options:
        return "object"
    structs.setdefault(annotation)
    return f"[{annotation.__name__}](#{annotation.__name__.lower()})"


def _default(one: Field) -> str:
    """How the default is written in a config; empty for structs, whose own table shows it."""
    annotation, default = without_none(one.annotation)[0], one.default
    if one.required:
        return "required"
    if default is None or isinstance(default, t.Options):
        return ""
    if annotation is t.Size:
        return format_size(default) if default else "0"
    if annotation in (t.Duration, t.SignedDuration):
        return format_duration(default) if default else "0"
    if isinstance(default, bool):
        return "`true`" if default else "`false`"
    if isinstance(default, tuple):
        return "`[]`" if not default else f"`{list(default)}`"
    if isinstance(default, Mapping):
        return "`{}`"
    return f'`"{default}"`' if isinstance(default, str) else f"{default:g}"
