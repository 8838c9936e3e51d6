"""Store kinds for the tests of building chains: real stores, with children and with faults."""

from __future__ import annotations

from nl.config.types import Count, Options, StoreName, StoreSpec
from nl.errors import ConfigError, PluginError
from nl.storage.context import StoreContext
from nl.stores.memory import MemoryOptions, MemoryStore


class PlainOptions(Options):
    pass


class PairOptions(Options):
    left: StoreSpec
    right: StoreSpec


class ListOptions(Options):
    stores: tuple[StoreSpec, ...] = ()


class LinkOptions(Options):
    name: StoreName


class LimitOptions(Options):
    limit: Count = 0


class Plain(MemoryStore):
    Options = PlainOptions

    def __init__(self, options: PlainOptions, context: StoreContext) -> None:
        super().__init__(MemoryOptions(), context)
        self.context = context


class Pair(Plain):
    Options = PairOptions

    def __init__(self, options: PairOptions, context: StoreContext) -> None:
        super().__init__(options, context)
        self.options = options
        self.left = context.child(options.left)
        self.right = context.child(options.right)
        assert context.child(options.left) is self.left


class Several(Plain):
    Options = ListOptions

    def __init__(self, options: ListOptions, context: StoreContext) -> None:
        super().__init__(options, context)
        self.children = [context.child(spec) for spec in options.stores]


class Link(Plain):
    Options = LinkOptions

    def __init__(self, options: LinkOptions, context: StoreContext) -> None:
        super().__init__(options, context)
        self.name = options.name


class Eager(Link):
    def __init__(self, options: LinkOptions, context: StoreContext) -> None:
        super().__init__(options, context)
        context.lookup(options.name)


class Refusing(Plain):
    Options = LimitOptions

    def __init__(self, options: LimitOptions, context: StoreContext) -> None:
        raise ConfigError("limit", f"{options.limit} is too little; expected at least 5")


class Crashing(Plain):
    def __init__(self, options: PlainOptions, context: StoreContext) -> None:
        raise RuntimeError("boom\nand more")


class Impostor:
    Options = PlainOptions

    def __init__(self, options: PlainOptions, context: StoreContext) -> None:
        pass


class Lazy(Plain):
    """Asks for none of its children."""

    Options = PairOptions

    def __init__(self, options: PairOptions, context: StoreContext) -> None:
        super().__init__(PlainOptions(), context)
        self.options = options


class Vague(Plain):
    def __init__(self, options: PlainOptions, context: StoreContext) -> None:
        raise ConfigError("", "is no good")


class Lacking(Plain):
    def __init__(self, options: PlainOptions, context: StoreContext) -> None:
        raise PluginError("", "needs a library that is not here")
