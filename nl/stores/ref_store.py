"""The `ref_store` kind: another name for a store that is defined elsewhere. Adds nothing and hides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from nl.plugin import Options, Store, StoreContext, StoreName, StoreWrapper

C = TypeVar("C")


class RefOptions(Options):
    """Uses a store of the top-level `stores` in a place where a store is written inline."""

    EXAMPLE = '{ ref_store: { name: "CAS_MAIN_STORE" } }'

    name: StoreName
    """The name of the store meant. Where it is defined, before or after, does not matter."""


class RefStore(StoreWrapper):
    """Passes every call on. Looks the store up at the first one, as it may be built later than this."""

    Options = RefOptions

    def __init__(self, options: RefOptions, context: StoreContext) -> None:
        self._target_name = options.name
        self._context = context
        self._target: Store | None = None

    @property
    def backend(self) -> Store:
        """The store meant. Whoever defines it runs it."""
        target = self._target
        if target is None:
            target = self._target = self._context.lookup(self._target_name)
        return target

    def capability(self, kind: type[C]) -> C | None:
        return self.backend.capability(kind)

    def statistics(self) -> Mapping[str, int | float | str]:
        return {"name": self._target_name}
