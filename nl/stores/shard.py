"""The `shard` kind: one cache spread over several stores, each with the share of blobs that its weight says.

Which shard has a blob follows from its digest alone, by NativeLink's rule, so that its shards can be taken over. A
weight that is changed, or a shard that is added, moves blobs to other shards, where they are missing at first.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from itertools import accumulate
from struct import Struct
from typing import Final

from nl.plugin import ConfigError, Count, Key, Options, PartitionedStore, StoreContext, StoreSpec

_MAX: Final = 2**32 - 1
_eight_words = Struct("<8I").unpack


class ShardPart(Options):
    """One of the stores."""

    store: StoreSpec
    """Has its share of all blobs."""
    weight: Count | None = 1
    """How large its share is, relative to the weights of the others."""


class ShardOptions(Options):
    """Spreads blobs over several stores by their digests."""

    EXAMPLE = (
        '{ shard: { stores: [{ store: { ref_store: { name: "DISK_1" } }, weight: 2 }, '
        '{ store: { ref_store: { name: "DISK_2" } }, weight: 1 }] } }'
    )

    stores: tuple[ShardPart, ...]
    """The stores. Their order is part of where a blob is."""

    def check(self) -> None:
        """Refuses a list without any share."""
        if not self.stores:
            raise ConfigError("stores", "the list is empty; expected at least one store")
        if not any(_weight(part) for part in self.stores):
            raise ConfigError("stores", "all weights are 0; expected at least one store with a share")


class ShardStore(PartitionedStore):
    """A part per shard."""

    Options = ShardOptions

    def __init__(self, options: ShardOptions, context: StoreContext) -> None:
        super().__init__([context.child(part.store) for part in options.stores])
        total = sum(map(_weight, options.stores))
        shares = [_MAX * _weight(part) // total for part in options.stores]
        self._ends = [*list(accumulate(shares))[:-1], _MAX]
        """Up to which point of the range each shard goes."""

    def part_of(self, key: Key) -> int:
        return bisect_left(self._ends, _point(key))


def _weight(part: ShardPart) -> int:
    return 1 if part.weight is None else part.weight


def _point(key: Key) -> int:
    """Where in 0 to 2^32 - 1 a key lies: its digest's eight words, and its size's two, combined."""
    if isinstance(key, str):
        return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:4], "little")
    point: int = key.size & _MAX ^ key.size >> 32
    for word in _eight_words(bytes.fromhex(key.hash)):
        point ^= word
    return point
