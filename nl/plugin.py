"""The page that store authors import. Everything a third-party store kind needs, and nothing else.

A kind is a frozen `Options` subclass and a `Store` subclass whose constructor takes `(options, context)` and whose
class attribute `Options` names the former, registered under the entry-point group `nl.stores`::

    [project.entry-points."nl.stores"]
    my_kind = "my_package:MyStore"

and used in a config as `{ name: "X", my_kind: { ...options... } }`. Run `nl.testing.StoreConformance` against it.
"""

from nl.blob.coding import BATCH, OUTPUT, CodingError, Decoder, DecodingReader, Encoder, EncodingReader, code
from nl.blob.file import open_file
from nl.blob.hashing import Hasher, digest_of, hash_bytes, new_hasher
from nl.blob.promised import PromisedSource
from nl.blob.reader import CHUNK, Buffer, BytesReader, Reader, read_all, split_parts
from nl.blob.slice import Opened, OpenedReader, Opening, SliceReader, clamp, slice_bytes
from nl.blob.spool import SpoolingReader
from nl.blob.tee import Tee
from nl.blob.verify import VerifyingReader, check_bytes, check_size
from nl.blob.zstd import ZstdDecoder, ZstdEncoder
from nl.config.types import (
    Alias,
    Count,
    Duration,
    EvictionPolicy,
    Flag,
    Options,
    SecretText,
    ServerAddress,
    Size,
    StoreName,
    StoreSpec,
    Text,
)
from nl.errors import (
    BlobNotFoundError,
    ConfigError,
    CorruptBlobError,
    DeadlineError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NlError,
    NotFoundError,
    PermissionDeniedError,
    RangeError,
    TooLargeError,
    UnavailableError,
    UploadMismatchError,
)
from nl.model.caller import caller_headers
from nl.model.digest import EMPTY_DIGESTS, ActionKey, Digest, DigestFunction, ForeignKey, Key, key_of_text, key_text
from nl.model.encoding import Encoding
from nl.storage.backend import (
    Backend,
    BackendError,
    FullError,
    RefusedError,
    TransientError,
    ValueTooLargeError,
)
from nl.storage.batch import UploadBatch
from nl.storage.capabilities import (
    BlobSizeLimit,
    ChecksCompleteness,
    Deletes,
    Discards,
    EncodedBlobs,
    EncodedReader,
    ForwardsHeaders,
    Link,
    LocalFiles,
    Pins,
    Removals,
    ScanPage,
    Scans,
)
from nl.storage.coder_memory import CoderMemory
from nl.storage.concurrent import for_each
from nl.storage.context import StoreContext
from nl.storage.contract import MAX_WHOLE, SMALL, Store, Traits, must_be_streamed
from nl.storage.eviction import LruIndex
from nl.storage.partition import PartitionedStore
from nl.storage.removals import RemovalFeed, RemovalFeeds
from nl.storage.retrying import ErrorName, RetryOptions, RetryPolicy
from nl.storage.threads import Threads
from nl.storage.traffic import Traffic
from nl.storage.uses import Uses
from nl.storage.wrapper import StoreWrapper
from nl.storage.writes import Writes

__all__ = [
    "ActionKey", "Alias", "BATCH", "Backend", "BackendError", "BlobNotFoundError", "BlobSizeLimit", "Buffer",
    "BytesReader", "CHUNK", "ChecksCompleteness", "CoderMemory", "CodingError", "ConfigError", "CorruptBlobError",
    "Count", "DeadlineError", "Decoder", "DecodingReader", "Deletes", "Digest", "DigestFunction", "Discards",
    "Duration", "EMPTY_DIGESTS", "EncodedBlobs", "EncodedReader", "Encoder", "Encoding", "EncodingReader",
    "ErrorName", "EvictionPolicy", "ExhaustedError", "Flag", "ForeignKey", "ForwardsHeaders", "FullError", "Hasher",
    "InternalError", "InvalidRequestError", "Key", "Link", "LocalFiles", "LruIndex", "MAX_WHOLE", "NlError",
    "NotFoundError", "OUTPUT", "Opened", "OpenedReader", "Opening", "Options", "PartitionedStore",
    "PermissionDeniedError", "Pins", "PromisedSource", "RangeError", "Reader", "RefusedError", "RemovalFeed",
    "RemovalFeeds", "Removals", "RetryOptions", "RetryPolicy", "SMALL", "ScanPage", "Scans", "SecretText",
    "ServerAddress", "Size", "SliceReader", "SpoolingReader", "Store", "StoreContext", "StoreName", "StoreSpec",
    "StoreWrapper", "Tee", "Text", "Threads", "TooLargeError", "Traffic", "Traits", "TransientError",
    "UnavailableError", "UploadBatch", "UploadMismatchError", "Uses", "ValueTooLargeError", "VerifyingReader",
    "Writes", "ZstdDecoder", "ZstdEncoder", "caller_headers", "check_bytes", "check_size", "clamp", "code",
    "digest_of", "for_each", "hash_bytes", "key_of_text", "key_text", "must_be_streamed", "new_hasher", "open_file",
    "read_all", "slice_bytes", "split_parts",
]
