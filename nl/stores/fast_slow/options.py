"""The options of `fast_slow`, and which way bytes go by them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nl.plugin import Discards, Options, Size, Store, StoreSpec

Direction = Literal["both", "update", "get", "read_only"]


class FastSlowOptions(Options):
    """A fast store (memory, a local disk) in front of a slow one that has everything (a network store).

    The slow store decides what is there; the fast one is filled by uploads and by reads, and read whatever fills it.
    What fills it is hashed on its way; blobs that turn out to be wrong are missing, and deleted from a slow store that
    can delete. Directions: `both` is normal; `update` is filled by uploads only; `get` is filled by reads only;
    `read_only` is never written.
    """

    EXAMPLE = '{ fast_slow: { fast: { memory: {} }, slow: { ref_store: { name: "SHARED" } } } }'

    fast: StoreSpec
    """The store asked first."""
    fast_direction: Direction = "both"
    """What fills the fast store."""
    slow: StoreSpec
    """The store that has everything."""
    slow_direction: Direction = "both"
    """What fills the slow store. As reads never do, `both` equals `update`, and `get` equals `read_only`."""
    bypass_dedup_threshold_bytes: Size = 0
    """Blobs at least this large are read from the slow store by each reader alone and do not fill the fast one; 0
    means no blob is that large."""


@dataclass(frozen=True, slots=True)
class Routes:
    """Which store takes part in what."""

    reads_fast: bool
    fills_fast: bool
    """Reads that miss the fast store put the blob there."""
    writes_fast: bool
    reads_slow: bool
    writes_slow: bool

    @classmethod
    def plan(cls, options: FastSlowOptions, *, fast: Store, slow: Store) -> Routes:
        """The routes by directions; a store that keeps nothing takes part in nothing."""
        fast_keeps = fast.capability(Discards) is None
        slow_keeps = slow.capability(Discards) is None
        return cls(
            reads_fast=fast_keeps,
            fills_fast=fast_keeps and slow_keeps and options.fast_direction in ("both", "get"),
            writes_fast=fast_keeps and options.fast_direction in ("both", "update"),
            reads_slow=slow_keeps,
            writes_slow=slow_keeps and options.slow_direction in ("both", "update"),
        )
