"""What a fast_slow store can do beyond the contract: what both of its sides can, or the one that decides."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

import trio

from nl.plugin import Deletes, Key, NlError, Pins, Removals, Scans, Store, Traits
from nl.stores.fast_slow.fetches import Fetches
from nl.stores.fast_slow.options import Routes
from nl.stores.fast_slow.stale import Stale

C = TypeVar("C")
_ABOUT_WHAT_IS_THERE = (Removals, Scans, Pins)
_CLEAN_UP_S = 10.0
_log = logging.getLogger(__name__)


def traits(routes: Routes, *, fast: Store, slow: Store) -> Traits:
    """Those of the store that `has` asks; of both, where it asks both."""
    if not routes.reads_slow:
        return fast.traits
    if routes.writes_slow or not routes.reads_fast:
        return slow.traits
    return Traits(
        authoritative=fast.traits.authoritative and slow.traits.authoritative,
        tracks_use=fast.traits.tracks_use and slow.traits.tracks_use,
    )


def of_the_truth(routes: Routes, kind: type[C], *, fast: Store, slow: Store) -> C | None:
    """Removals, Scans and Pins are about what `has` says is there: those of the one store that it asks. Else None."""
    if kind not in _ABOUT_WHAT_IS_THERE:
        return None
    if not routes.reads_slow:
        return fast.capability(kind)
    if routes.reads_fast and not routes.writes_slow:
        return None
    if kind is Removals and slow.capability(Deletes) is None:
        return None  # a wrong blob is missing from then on, and the slow store does not know
    return slow.capability(kind)


class DeletesBoth:
    """`Deletes` where every side that is read has it."""

    def __init__(self, slow: Deletes | None, fast: Deletes | None, *, fetches: Fetches, stale: Stale) -> None:
        self._sides = [side for side in (slow, fast) if side is not None]
        self._fetches = fetches
        self._stale = stale

    @classmethod
    def of(cls, routes: Routes, *, fast: Store, slow: Store, fetches: Fetches, stale: Stale) -> DeletesBoth | None:
        """None unless nothing could be read any more of what was deleted."""
        slow_side = slow.capability(Deletes) if routes.reads_slow else None
        fast_side = fast.capability(Deletes) if routes.reads_fast else None
        if (routes.reads_slow and slow_side is None) or (routes.reads_fast and fast_side is None):
            return None
        return cls(slow_side, fast_side, fetches=fetches, stale=stale) if slow_side or fast_side else None

    async def delete(self, keys: Sequence[Key]) -> None:
        """See `Deletes`. The slow store first: what is on its way into the fast one lands before that is told.

        What the slow store has begun to delete is deleted in the fast one all the same, if this fails or is cancelled.
        """
        try:
            for side in self._sides:
                await self._delete_in(side, keys)
        except BaseException:
            with trio.move_on_after(_CLEAN_UP_S, shield=True):
                for side in self._sides[1:]:
                    await self._delete_at_last(side, keys)
            raise
        for key in keys:
            self._stale.discard(key)

    async def _delete_in(self, side: Deletes, keys: Sequence[Key]) -> None:
        await side.delete(keys)
        await self._wait_for_fetches(keys)

    async def _delete_at_last(self, side: Deletes, keys: Sequence[Key]) -> None:
        """The same when it has failed or nobody waits: the fast store would answer until it is deleted once more."""
        await self._wait_for_fetches(keys)
        try:
            await side.delete(keys)
        except NlError as error:
            _log.warning("%d blobs may still be in the fast store, which could not delete them: %s", len(keys), error)

    async def _wait_for_fetches(self, keys: Sequence[Key]) -> None:
        for key in keys:
            if (fetch := self._fetches.running.get(key)) is not None:
                await fetch.done.wait()
