"""The page that store authors import. Everything a third-party store kind needs, and nothing else.

A kind is a frozen `Options` subclass and a `Store` subclass whose constructor takes `(options, context)` and whose
class attribute `Options` names the former, registered under the entry-point group `nl.stores`::

    [project.entry-points."nl.stores"]
    my_kind = "my_package:MyStore"

and used in a config as `{ name: "X", my_kind: { ...options... } }`. Run `nl.testing.StoreConformance` against it.
"""

from nl.blob.reader import CHUNK, Buffer, BytesReader, Reader, read_all
from nl.config.types import Count, Duration, EvictionPolicy, Flag, Options, Size, StoreName, StoreSpec, Text
from nl.errors import (
    BlobNotFoundError,
    ConfigError,
    CorruptBlobError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NlError,
    RangeError,
    UnavailableError,
    UploadMismatchError,
)
from nl.model.digest import EMPTY_DIGESTS, ActionKey, Digest, Key
from nl.storage.context import StoreContext
from nl.storage.contract import MAX_WHOLE, SMALL, Link, LocalFiles, Store

__all__ = [
    "CHUNK", "EMPTY_DIGESTS", "MAX_WHOLE", "SMALL", "ActionKey", "BlobNotFoundError", "Buffer", "BytesReader",
    "ConfigError", "CorruptBlobError", "Count", "Digest", "Duration", "EvictionPolicy", "ExhaustedError", "Flag",
    "InternalError", "InvalidRequestError", "Key", "Link", "LocalFiles", "NlError", "Options", "RangeError",
    "Reader", "Size", "Store", "StoreContext", "StoreName", "StoreSpec", "Text", "UnavailableError",
    "UploadMismatchError", "read_all",
]
