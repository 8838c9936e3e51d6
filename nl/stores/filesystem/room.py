"""Room for one more file: how far down eviction is to go, and whether it has got there."""

from __future__ import annotations

import enum

from nl.plugin import BlobNotFoundError, ExhaustedError
from nl.stores.filesystem.evicting import SLICE, Evictor
from nl.stores.filesystem.layout import Folder
from nl.stores.filesystem.names import IndexKey


class Made(enum.Enum):
    """Whether there is room."""

    YES = enum.auto()
    NOT_YET = enum.auto()
    NOT_KNOWN = enum.auto()
    """There is not, and which files should go is not known yet: a scan will tell."""


class Room:
    """Making room for one file: remembers, from slice to slice, how far down the eviction is to go."""

    def __init__(
        self, evictor: Evictor, cost: int, *, count: int = 1, folder: Folder | None = None, name: str = "",
        beside: IndexKey | None = None,
    ) -> None:  # fmt: skip
        self._evictor = evictor
        self._cost = cost
        self._count = count
        self._folder = folder
        self._name = name
        self._beside = beside
        self._is_evicting = False

    def make(self, *, is_patient: bool = False) -> Made:
        """Evicts a slice of what is needed. Under the lock. Raises ExhaustedError, BlobNotFoundError for `beside`.

        `is_patient`: rather than to evict what may be newer than much that is not known yet, it waits for a scan.
        """
        evictor = self._evictor
        self._refuse_if_not_both_fit()
        for _ in range(SLICE):
            if self._is_enough():
                return Made.YES
            if is_patient and not evictor.knows_old_ones():
                return Made.NOT_KNOWN
            if not evictor.evict_oldest(beside=self._beside):
                if self._beside is not None:
                    raise self._no_room()
                # What could not fit alone has been refused before: the rest of the sum is not known yet.
                return Made.YES if evictor.mirror.is_complete else Made.NOT_KNOWN
        return Made.YES if self._is_enough() else Made.NOT_YET

    def _is_enough(self) -> bool:
        """Whether the file may be placed: under max_bytes, or once that was exceeded, evict_bytes below it."""
        evictor = self._evictor
        policy, index = evictor.policy, evictor.mirror.index
        known = None if self._folder is None else evictor.mirror.known_as(self._folder, self._name)
        replaced = 0 if known is None else index.cost(index.sizes[known[1]])
        total = evictor.sum + self._cost - replaced
        if policy.max_bytes and total > policy.max_bytes:
            self._is_evicting = True
        if self._is_evicting and total > max(policy.max_bytes - policy.evict_bytes, self._cost):
            return False
        count = len(index) + (self._count if known is None else 0)
        return not policy.max_count or count <= policy.max_count

    def _refuse_if_not_both_fit(self) -> None:
        if self._beside is None:
            return
        mirror, limit = self._evictor.mirror, self._evictor.policy.max_bytes
        slot = mirror.index.slots.get(self._beside)
        if slot is None and mirror.is_exact:
            raise BlobNotFoundError(self._name, mirror.layout.where)
        if limit and slot is not None and self._cost + mirror.index.cost(mirror.index.sizes[slot]) > limit:
            raise self._no_room()

    def _no_room(self) -> ExhaustedError:
        return ExhaustedError(f"{self._evictor.mirror.layout.where} has no room for a second file of {self._name}")
