"""From configured stores to `Store` objects: one recursion for all kinds, no kind known by name.

A store's constructor asks its context for its children (typed `StoreSpec` fields of its options), so every store of
the result stands behind the ones it needs. Constructors do nothing but remember; whoever holds the `StoreGraph` starts
`run` of each in the order of `StoreGraph.stores`. Called by the server and by `nl config check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nl.config.checks import references_of
from nl.config.document import NamedStore
from nl.config.fields import child_specs, join
from nl.config.registry import StoreKind, StoreKinds, first_line
from nl.config.types import StoreSpec
from nl.errors import ConfigError, InternalError, PluginError
from nl.storage.coder_memory import CoderMemory
from nl.storage.context import StoreContext
from nl.storage.contract import Store


@dataclass(frozen=True, slots=True)
class BuiltStore:
    """One store of a graph."""

    name: str
    """`CAS`, or `CAS.fast` for a child."""
    kind: str
    store: Store
    spec: StoreSpec


class StoreGraph:
    """All stores of a config. `graph["CAS"]` is a named one, `graph.stores` are all, children before parents and what
    is referred to by name before what refers to it.
    """

    def __init__(self, stores: Sequence[BuiltStore], coder_memory: CoderMemory | None = None) -> None:
        self.stores = tuple(stores)
        self.coder_memory = coder_memory or CoderMemory()
        """What the coders of all of them share."""
        self._by_name = {built.name: built.store for built in stores}

    def __getitem__(self, name: str) -> Store:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[BuiltStore]:
        return iter(self.stores)

    def __len__(self) -> int:
        return len(self.stores)

    def __repr__(self) -> str:
        return f"<StoreGraph {', '.join(f'{built.name}: {built.kind}' for built in self.stores)}>"


def build_stores(
    named: Sequence[NamedStore], *, kinds: StoreKinds | None = None, coder_memory: CoderMemory | None = None
) -> StoreGraph:
    """Builds every store of a checked config (names unique, no dangling names, no circles).

    Raises ConfigError if a store refuses its options, PluginError if a kind cannot be built at all.
    """
    builder = _Builder(kinds if kinds is not None else StoreKinds(), named, coder_memory or CoderMemory())
    for entry in in_order(named):
        builder.build(entry.spec, entry.name)
    return builder.finish()


def in_order(named: Sequence[NamedStore]) -> list[NamedStore]:
    """The stores, those that are referred to before those that refer to them, else as in the config."""
    by_name = {entry.name: entry for entry in named}
    result: dict[str, NamedStore] = {}
    entered: set[str] = set()

    def visit(entry: NamedStore) -> None:
        if entry.name in entered:
            return
        entered.add(entry.name)
        for _, target in references_of(entry):
            if target in by_name:
                visit(by_name[target])
        result[entry.name] = entry

    for entry in named:
        visit(entry)
    return list(result.values())


class _Builder:
    def __init__(self, kinds: StoreKinds, named: Sequence[NamedStore], coder_memory: CoderMemory) -> None:
        self.kinds = kinds
        self.coder_memory = coder_memory
        self.names = {entry.name for entry in named}
        self.built: list[BuiltStore] = []
        self.graph: StoreGraph | None = None

    def build(self, spec: StoreSpec, name: str) -> Store:
        """One store, its children first."""
        kind = self.kinds.load(spec.kind, join(spec.path, spec.kind))
        store = self._construct(kind, spec, name)
        self.built.append(BuiltStore(name, spec.kind, store, spec))
        return store

    def finish(self) -> StoreGraph:
        """From here on contexts answer `lookup`, and no store can be added."""
        self.graph = StoreGraph(self.built, self.coder_memory)
        return self.graph

    def _construct(self, kind: StoreKind, spec: StoreSpec, name: str) -> Store:
        path = join(spec.path, spec.kind)
        try:
            store = kind.store(spec.options, _Context(self, spec, name))
        except PluginError:
            raise
        except ConfigError as exc:
            if exc.path.startswith(spec.path) and spec.path:
                raise
            raise ConfigError(f"{path}.{exc.path}" if exc.path else path, exc.problem) from exc
        except Exception as exc:  # foreign code: whatever it raises is reported with its origin
            problem = f"{type(exc).__name__}: {first_line(exc)}"
            raise PluginError(path, f"the store kind {spec.kind} from {kind.origin} cannot be made: {problem}") from exc
        if not isinstance(store, Store):
            raise PluginError(path, f"the store kind {spec.kind} from {kind.origin} makes {type(store).__name__}; "
                                    "expected a subclass of nl.plugin.Store")
        return store


class _Context(StoreContext):
    """What one store sees of the rest."""

    def __init__(self, builder: _Builder, spec: StoreSpec, name: str) -> None:
        self.name = name
        self.coder_memory = builder.coder_memory
        self._builder = builder
        self._specs = {id(child): f"{name}.{path}" for path, child in child_specs(spec.options)}
        self._children: dict[int, Store] = {}
        self._keep = spec  # the ids above stay valid while the specs live

    def child(self, spec: StoreSpec) -> Store:
        """The store of a child field, built at the first call."""
        key = id(spec)
        if key not in self._children:
            if key not in self._specs:
                raise InternalError(f"store {self.name} asked for a child that is not a field of its options")
            if self._builder.graph is not None:
                raise InternalError(f"store {self.name} asked for {self._specs[key]} after its constructor")
            self._children[key] = self._builder.build(spec, self._specs[key])
        return self._children[key]

    def lookup(self, name: str) -> Store:
        """A named store, once all are built."""
        if name not in self._builder.names:
            raise InternalError(f"store {self.name} asked for the store {name}, which the config does not have")
        if self._builder.graph is None:
            raise InternalError(f"store {self.name} asked for the store {name} in its constructor; expected in run")
        return self._builder.graph[name]

    def __repr__(self) -> str:
        return f"<StoreContext of {self.name}>"
