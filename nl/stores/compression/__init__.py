"""The `compression` kind: blobs are kept compressed in the store behind it."""

from nl.stores.compression.options import CompressionOptions
from nl.stores.compression.store import CompressionStore

__all__ = ["CompressionOptions", "CompressionStore"]
