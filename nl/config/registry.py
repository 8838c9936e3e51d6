"""Store kinds: found by entry point in the group `nl.stores`, loaded when a config first names them.

Built-in kinds register in the same group; there is no second way in. This module knows no component: a store kind is
recognised by its shape (a class with an `Options` struct whose constructor takes options and context).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from nl.config.convert import suggest
from nl.config.fields import fields_of
from nl.config.types import Options
from nl.errors import ConfigError, PluginError

GROUP = "nl.stores"

PLUGINS = {
    "experimental_cloud_object_store": "nl-cloud-object-store",
    "experimental_mongo": "nl-mongo-store",
    "ontap_s3_existence_cache": "nl-cloud-object-store",
    "redis_store": "nl-redis-store",
}
"""Kinds with heavy dependencies, which lie in `plugins/`: the distribution that brings them."""


@dataclass(frozen=True, slots=True)
class StoreKind:
    """One kind, loaded."""

    name: str
    store: type[Any]
    options: type[Options]
    origin: str
    """Distribution and entry point, for messages."""


class StoreKinds:
    """The installed store kinds. Cheap to make: the entry points are read at the first question."""

    def __init__(self, entry_points: Iterable[metadata.EntryPoint] | None = None) -> None:
        self._given = entry_points
        self._found: dict[str, list[metadata.EntryPoint]] | None = None
        self._loaded: dict[str, StoreKind] = {}

    @classmethod
    def built_in(cls) -> StoreKinds:
        """Only what this package itself brings, whatever else is installed."""
        return cls._of(frozenset({"nl"}))

    @classmethod
    def of_project(cls) -> StoreKinds:
        """What this package brings, and those of the project's plugins that are installed."""
        return cls._of(frozenset({"nl", *PLUGINS.values()}))

    @classmethod
    def _of(cls, distributions: frozenset[str]) -> StoreKinds:
        found = metadata.entry_points(group=GROUP)
        return cls(entry for entry in found if entry.dist and entry.dist.name in distributions)

    def names(self) -> list[str]:
        """The names of all installed kinds, sorted. Loads none of them."""
        return sorted(self._entries())

    def distribution(self, name: str) -> str:
        """`name version` of what brings the kind."""
        return distribution_of(self._entries()[name][0])

    def options(self, name: str, path: str) -> type[Options]:
        """The options class of a kind: what `Conversion.kinds` wants."""
        return self.load(name, path).options

    def load(self, name: str, path: str) -> StoreKind:
        """Imports a kind and checks its shape.

        Raises ConfigError if there is no such kind, PluginError if what is installed under the name cannot be used;
        both carry `path`, where the config names the kind.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name, path)
        return self._loaded[name]

    def _entries(self) -> dict[str, list[metadata.EntryPoint]]:
        if self._found is None:
            given = metadata.entry_points(group=GROUP) if self._given is None else self._given
            self._found = {}
            for entry in given:
                others = self._found.setdefault(entry.name, [])
                if not any((o.value, distribution_of(o)) == (entry.value, distribution_of(entry)) for o in others):
                    others.append(entry)
        return self._found

    def _load(self, name: str, path: str) -> StoreKind:
        entries = self._entries().get(name)
        if entries is None:
            raise ConfigError(path, self._absent(name))
        if len(entries) > 1:
            rivals = " and ".join(sorted(origin_of(entry) for entry in entries))
            raise PluginError(path, f"the store kind {name} is offered twice, by {rivals}; uninstall one of them")
        (entry,) = entries
        origin = origin_of(entry)
        try:
            found = entry.load()
        except Exception as exc:  # foreign code runs at import: whatever it raises is reported
            problem = f"{type(exc).__name__}: {first_line(exc)}"
            raise PluginError(path, f"the store kind {name} cannot be loaded from {origin}: {problem}") from exc
        return StoreKind(name, found, _options_of(found, name=name, origin=origin, path=path), origin)

    def _absent(self, name: str) -> str:
        kinds = ", ".join(self.names()) or "none"
        expected = f"expected one of the installed kinds {kinds}"
        if name in PLUGINS:
            return f"the store kind {name} is not installed: it comes with the plugin {PLUGINS[name]}; {expected}"
        return f"unknown store kind{suggest(name, self.names())}; {expected}"


def _options_of(found: Any, *, name: str, origin: str, path: str) -> type[Options]:
    def broken(problem: str) -> PluginError:
        return PluginError(path, f"the store kind {name} from {origin} {problem}")

    if not isinstance(found, type):
        raise broken(f"is {found!r}; expected a subclass of nl.plugin.Store")
    options = getattr(found, "Options", None)
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise broken("has no class attribute Options; expected a subclass of nl.plugin.Options")
    try:
        fields_of(options)
    except PluginError as exc:
        raise broken(f"has unreadable options: {exc.problem}") from exc
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise broken(f"lacks methods; expected {missing}")
    try:
        inspect.signature(found).bind(None, None)
    except (TypeError, ValueError):
        raise broken(f"has a constructor {found.__name__}{_signature(found)}; expected (options, context)") from None
    return options


def _signature(found: type[Any]) -> str:
    try:
        return str(inspect.signature(found))
    except (TypeError, ValueError):
        return ""


def distribution_of(entry: metadata.EntryPoint) -> str:
    """`name version` of the distribution that declares this entry point."""
    dist = getattr(entry, "dist", None)
    return f"{dist.name} {dist.version}" if dist is not None else "an unknown distribution"


def origin_of(entry: metadata.EntryPoint) -> str:
    """Distribution and entry point, for messages."""
    return f"{distribution_of(entry)} ({entry.name} = {entry.value})"


def first_line(exc: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(exc).splitlines() or [""])[0]
