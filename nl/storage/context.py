"""What a store's constructor is given besides its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from nl.storage.coder_memory import CoderMemory
from nl.storage.contract import Store

if TYPE_CHECKING:
    from nl.config.types import StoreSpec


class StoreContext(ABC):
    """Handed to `XStore(options, context)` by the builder.

    `name` is the configured name of the outermost store plus the path to this one (`"CAS.fast"`): for messages.
    """

    name: str
    coder_memory: CoderMemory
    """The process's: whoever codes blobs that are streamed holds a part of it."""

    @abstractmethod
    def child(self, spec: StoreSpec) -> Store:
        """The store built from a child field of the options. The same object on every call."""

    @abstractmethod
    def lookup(self, name: str) -> Store:
        """A named top-level store. Only to be called from `run` or later: order of definition does not matter.

        That the name exists and that there is no cycle has been checked before any store is built.
        """
