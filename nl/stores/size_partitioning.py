"""The `size_partitioning` kind: small blobs in one store, large ones in another."""

from __future__ import annotations

from typing import TypeVar

from nl.plugin import BlobSizeLimit, Key, Options, PartitionedStore, Size, StoreContext, StoreSpec

C = TypeVar("C")


class SizePartitioningOptions(Options):
    """Keeps small blobs in one store and large ones in another, by the size that their digests say.

    Action results go by the size of the action, as the digest is that of the action; values with names are small.
    """

    EXAMPLE = (
        '{ size_partitioning: { size: "64kb", lower_store: { memory: {} }, upper_store: { ref_store: '
        '{ name: "DISK" } } } }'
    )

    size: Size
    """Blobs smaller than this go to `lower_store`."""
    lower_store: StoreSpec
    """Has the small blobs."""
    upper_store: StoreSpec
    """Has the others."""


class SizePartitioningStore(PartitionedStore):
    """Two parts, by size."""

    Options = SizePartitioningOptions

    def __init__(self, options: SizePartitioningOptions, context: StoreContext) -> None:
        super().__init__([context.child(options.lower_store), context.child(options.upper_store)])
        self._size = options.size

    def part_of(self, key: Key) -> int:
        return 0 if isinstance(key, str) else int(key.size >= self._size)

    def capability(self, kind: type[C]) -> C | None:
        if kind is BlobSizeLimit:  # large blobs go to one of the two
            return self.parts[1].capability(kind)
        return super().capability(kind)
