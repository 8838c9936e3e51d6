"""The `dedup` kind: blobs are cut into chunks where their content says, and each chunk is kept once."""

from nl.stores.dedup.options import DedupOptions
from nl.stores.dedup.store import DedupStore

__all__ = ["DedupOptions", "DedupStore"]
