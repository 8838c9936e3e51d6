"""Action results at rest: a checksum guards them, since no digest does.

A stored action result is `seal + encoded ActionResult`, where the seal is one more protobuf field: a number that the
message does not define, with a checksum of all bytes after it. Any protobuf parser reads the value as an ActionResult
with an unknown field, so other servers can share the store. The seal comes *first*, so that a value cut short
anywhere, also between two fields, is found out. Values written by others carry no seal and are accepted if they
decode strictly; an empty one is not, because that is what an emptied file looks like, and a miss does no harm.

How large a result may be is decided here, for all who keep or read them. Most are small and take the short way through
the store; the others are read in pieces, and looked into in a thread.

Not here: what a result refers to (`nl.cas.references`) and whether that is still there.
"""

from __future__ import annotations

import hashlib
from typing import Final

from nl.blob.reader import Buffer
from nl.cas.large import READ_IN_PLACE_BYTES, off_loop_if_large
from nl.errors import CorruptBlobError, TooLargeError
from nl.model.digest import ActionKey, Digest
from nl.pb import reapi
from nl.pb.codec import DecodeError, decode, varint
from nl.storage.contract import Store

_FIELD: Final = 50_001
"""In the range that protobuf leaves to in-house use."""
_CHECKSUM_BYTES: Final = 16
MAX_ACTION_RESULT_BYTES: Final = 16 * 1024 * 1024
"""The largest encoded ActionResult that is kept: some 150,000 output files. Actions with more declare directories."""

_PREFIX: Final = varint(_FIELD << 3 | 2) + bytes([_CHECKSUM_BYTES])
_LEAST_TAG: Final = 2 << 3
"""An ActionResult has no field 1, and no seal, whichever bit of it flips, starts with a tag from here to 127."""
_SEALED_FROM: Final = len(_PREFIX)
_SEAL_BYTES: Final = len(_PREFIX) + _CHECKSUM_BYTES


def _checksum(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECKSUM_BYTES]


def seal(data: Buffer) -> bytes:
    """The value to store for an encoded ActionResult."""
    return b"".join((_PREFIX, _checksum(data), data))


def unseal(data: Buffer) -> bytes:
    """The encoded ActionResult in a stored value, without the seal.

    Raises CorruptBlobError if the checksum does not match, or if there is none and the value is not an ActionResult.
    """
    value = bytes(data)
    if value.startswith(_PREFIX):
        encoded = value[_SEAL_BYTES:]
        if _checksum(encoded) != value[_SEALED_FROM:_SEAL_BYTES]:
            raise CorruptBlobError("the stored action result does not match its checksum")
        return encoded
    if not value:
        raise CorruptBlobError("the stored action result is empty")
    if not _LEAST_TAG <= value[0] < 128:
        raise CorruptBlobError("the stored action result starts with a field of no ActionResult, or a damaged seal")
    try:
        decode(reapi.ActionResult, value)
    except DecodeError as exc:
        raise CorruptBlobError(f"the stored action result is not an ActionResult: {exc}") from exc
    return value


async def load_action_result(store: Store, action: Digest | ActionKey) -> bytes:
    """The encoded ActionResult stored for an action, guarded.

    Raises BlobNotFoundError if there is none and CorruptBlobError if what is there is damaged: callers treat both as
    a miss, and the next `store_action_result` mends it.
    """
    try:
        value = await read_value(store, ActionKey(*action))
        return unseal(value) if len(value) <= READ_IN_PLACE_BYTES else await off_loop_if_large(unseal, value)
    except CorruptBlobError as exc:
        exc.add_note(f"action {action}")
        raise


async def read_value(store: Store, key: ActionKey) -> Buffer:
    """The stored value, sealed or not, however large it may be.

    Raises BlobNotFoundError, and CorruptBlobError for one that is larger than any result that is kept.
    """
    try:
        return await store.get(key)
    except TooLargeError:
        pass  # it is larger than what a store hands out whole
    parts: list[bytes] = []
    left = MAX_ACTION_RESULT_BYTES + _SEAL_BYTES
    async with store.open(key) as reader:
        while got := await reader.receive_parts():
            left -= sum(map(len, got))
            if left < 0:
                raise CorruptBlobError(
                    f"the stored action result is larger than the limit of {MAX_ACTION_RESULT_BYTES} bytes"
                )
            parts.extend(map(bytes, got))
    return b"".join(parts)


async def store_action_result(store: Store, action: Digest | ActionKey, encoded: Buffer) -> None:
    """Stores an encoded ActionResult for an action, sealed, in place of what may be there.

    Raises TooLargeError, and stores nothing, if it is larger than what can be read again.
    """
    check_size(action, len(encoded))
    await store.put(ActionKey(*action), seal(encoded))


def check_size(action: object, size: int) -> None:
    """Raises TooLargeError if an encoded ActionResult of so many bytes is too large to be kept."""
    if size > MAX_ACTION_RESULT_BYTES:
        raise TooLargeError(
            f"the result of action {action} has {size} bytes; at most {MAX_ACTION_RESULT_BYTES} can be kept: declare "
            "output directories instead of single files"
        )


def drop_inlined(result: reapi.ActionResult) -> None:
    """Takes out the contents that the result also names by digest: whoever needs them reads them."""
    if result.stdout_digest is not None:
        result.stdout_raw = b""
    if result.stderr_digest is not None:
        result.stderr_raw = b""
    for file in result.output_files:
        if file.digest is not None:
            file.contents = b""
