"""The page that store authors import. Everything a third-party store kind needs, and nothing else.

A kind is a frozen `Options` subclass and a `Store` subclass whose constructor takes `(options, context)` and whose
class attribute `Options` names the former, registered under the entry-point group `nl.stores`::

    [project.entry-points."nl.stores"]
    my_kind = "my_package:MyStore"

and used in a config as `{ name: "X", my_kind: { ...options... } }`. Run `nl.testing.StoreConformance` against it.
"""

from nl.blob.file import open_file
from nl.blob.hashing import Hasher, digest_of, hash_bytes, new_hasher
from nl.blob.reader import CHUNK, Buffer, BytesReader, Reader, read_all
from nl.blob.slice import Opened, SliceReader, clamp, slice_bytes
from nl.blob.tee import Tee
from nl.blob.verify import VerifyingReader
from nl.config.types import Count, Duration, EvictionPolicy, Flag, Options, SecretText, Size, StoreName, StoreSpec, Text
from nl.errors import (
    BlobNotFoundError,
    ConfigError,
    CorruptBlobError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NlError,
    NotFoundError,
    RangeError,
    UnavailableError,
    UploadMismatchError,
)
from nl.model.digest import EMPTY_DIGESTS, ActionKey, Digest, DigestFunction, Key, key_text
from nl.storage.context import StoreContext
from nl.storage.contract import MAX_WHOLE, SMALL, BlobSizeLimit, Discards, Link, LocalFiles, Store
from nl.storage.eviction import LruIndex

__all__ = [
    "CHUNK", "EMPTY_DIGESTS", "MAX_WHOLE", "SMALL", "ActionKey", "BlobNotFoundError", "BlobSizeLimit", "Buffer",
    "BytesReader", "ConfigError", "CorruptBlobError", "Count", "Digest", "DigestFunction", "Discards", "Duration",
    "EvictionPolicy", "ExhaustedError", "Flag", "Hasher", "InternalError", "InvalidRequestError", "Key", "Link",
    "LocalFiles", "LruIndex", "NlError", "NotFoundError", "Opened", "Options", "RangeError", "Reader", "SecretText",
    "Size", "SliceReader", "Store", "StoreContext", "StoreName", "StoreSpec", "Tee", "Text", "UnavailableError",
    "UploadMismatchError", "VerifyingReader", "clamp", "digest_of", "hash_bytes", "key_text", "new_hasher",
    "open_file", "read_all", "slice_bytes",
]
