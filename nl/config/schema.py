"""The JSON schema of configs, made from the same structs that the converter reads into.

It describes the current forms: older map forms and aliases load too, but editors should not offer them. Descriptions
are the docstrings.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from nl.config import types as t
from nl.config.descriptions import describe, describe_fields
from nl.config.document import Config, NamedScheduler, NamedStore
from nl.config.fields import Entries, Field, Ignored, Unsupported, fields_of, without_none
from nl.config.registry import StoreKinds
from nl.config.schedulers import SCHEDULER_KINDS, SchedulerSpec

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_VARIABLE = r"\$"  # text with a variable cannot be judged here
SCALARS: dict[Any, Schema] = {
    t.Text: _TEXT,
    t.SecretText: _TEXT,
    t.StoreName: {"type": "string", "minLength": 1},
    t.SchedulerName: {"type": "string", "minLength": 1},
    t.ServerAddress: _TEXT,
    str: _TEXT,
    t.Count: {"anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": rf"^\s*\+?[0-9]+\s*$|{_VARIABLE}"},
    ]},
    t.Size: {"anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": rf"^\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([KkMmGgTtPpEe][Ii]?)?[Bb]?\s*$|{_VARIABLE}"},
    ]},
    t.Duration: {"anyOf": [{"type": "number", "minimum": 0}, _TEXT]},
    t.SignedDuration: {"anyOf": [{"type": "number"}, _TEXT]},
    t.Milliseconds: {"anyOf": [{"type": "integer", "minimum": 0}, _TEXT]},
    float: {"anyOf": [{"type": "number"}, _TEXT]},
    bool: {"anyOf": [{"type": "boolean"}, _TEXT]},
}
SCALARS[int] = SCALARS[t.Count]


def config_schema(kinds: StoreKinds) -> Schema:
    """The schema (draft 2020-12) of a whole config, with the store kinds that are installed.

    Raises PluginError if one of them cannot be loaded.
    """
    builder = _SchemaBuilder(kinds)
    root = builder.struct(Config)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nl config",
        **root,
        "$defs": {name: builder.definitions[name] for name in sorted(builder.definitions)},
    }


class _SchemaBuilder:
    def __init__(self, kinds: StoreKinds) -> None:
        self.kinds = kinds
        self.definitions: dict[str, Schema] = {}
        self._names: dict[type[Any], str] = {}

    def annotation(self, annotation: Any) -> Schema:
        """The schema of a value of this type."""
        annotation, optional = without_none(annotation)
        schema = self._inner(annotation)
        return {"anyOf": [schema, {"type": "null"}]} if optional else schema

    def _inner(self, annotation: Any) -> Schema:
        if annotation in SCALARS:
            return dict(SCALARS[annotation])
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin is tuple:
            return {"type": "array", "items": self.annotation(arguments[0])}
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.annotation(arguments[1])}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.annotation(member) for member in arguments]}
        if annotation is t.StoreSpec:
            return self._define("Store", lambda: self._tagged(self._stores(), named=False))
        if annotation is NamedStore:
            return self._define("NamedStore", lambda: self._tagged(self._stores(), named=True))
        if annotation is SchedulerSpec:
            return self._define("Scheduler", lambda: self._tagged(SCHEDULER_KINDS, named=False))
        if annotation is NamedScheduler:
            return self._define("NamedScheduler", lambda: self._tagged(SCHEDULER_KINDS, named=True))
        return self._define(self._name(annotation), lambda: self.struct(annotation))

    def _name(self, cls: type[Any]) -> str:
        """The class's name, made unique by its module where two distributions use the same."""
        if cls not in self._names:
            taken = set(self._names.values())
            self._names[cls] = cls.__name__ if cls.__name__ not in taken else f"{cls.__module__}.{cls.__name__}"
        return self._names[cls]

    def _define(self, name: str, make: Any) -> Schema:
        if name not in self.definitions:
            self.definitions[name] = {}  # taken, so that a struct may contain itself
            self.definitions[name] = make()
        return {"$ref": f"#/$defs/{name}"}

    def _stores(self) -> dict[str, type[t.Options]]:
        return {name: self.kinds.options(name, name) for name in self.kinds.names()}

    def _tagged(self, kinds: Mapping[str, type[t.Options]], *, named: bool) -> Schema:
        """`{ <kind>: {...} }`, with a name beside it if `named`."""
        properties: Schema = {"name": {"type": "string", "minLength": 1}} if named else {}
        properties |= {name: self._inner(options) for name, options in kinds.items()}
        count = 2 if named else 1
        schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False,
                          "minProperties": count, "maxProperties": count}
        return schema | {"required": ["name"]} if named else schema

    def struct(self, cls: type[t.Options]) -> Schema:
        """The schema of an Options struct."""
        docs = describe_fields(cls)
        properties, required = {}, []
        for one in fields_of(cls):
            properties[one.key] = self._property(one, docs.get(one.attribute, ""))
            if one.required:
                required.append(one.key)
        schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            schema["required"] = required
        if describe(cls):
            schema["description"] = describe(cls)
        return schema

    def _property(self, one: Field, text: str) -> Schema:
        schema = self.annotation(one.annotation)
        marker = one.marker(Unsupported) or one.marker(Ignored)
        if marker is not None:
            word = "Not supported" if isinstance(marker, Unsupported) else "No effect"
            text = f"{text} {word}: {marker.why}.".strip()
        entries: Entries | None = one.marker(Entries)
        if entries is not None:
            text = f"{text} (Loads {entries.forms}.)"
            if one.marker(Unsupported) is not None:
                schema = {"anyOf": [schema, {"type": "object", "maxProperties": 0}]}
        if text:
            schema["description"] = text
        if not one.required and isinstance(one.default, (str, int, float)):
            schema["default"] = one.default
        return schema
